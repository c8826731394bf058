"""Takes a run's detections and what made them; gives the folder that later runs are compared with, and reads it back.

A record is a folder with `detections.npz`, `curves.npz` and, written last, `record.json`, which names the hash of the
detections: a folder without it, or with other detections, is refused.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness import __version__
from harness.detect.detections import Detections
from harness.environment import collect
from harness.errors import EvaluationError, RecordError
from harness.files import write_atomically
from harness.measure.curves import Curves
from harness.model.registry import Precision, first_fault

SCHEMA: Literal[1] = 1
DETECTIONS, CURVES, RECORD = "detections.npz", "curves.npz", "record.json"
FOLDER = "record"
"""Where pytest keeps the records of a run, beside its results file."""
Start = Literal["checkpoint", "random weights", "onnx file", "engine file"]
_MAKE = "pytest -m accuracy --record DIR"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EnvironmentResult(_Strict):
    """Where the cells were measured; the fields of `harness.environment.Environment`."""

    python: str
    platform: str
    versions: dict[str, str]
    device: dict[str, str | int | float | None]
    fingerprint: str = Field(min_length=1, description="stands for `device`: equal exactly where the device is")


class DatasetIdentity(_Strict):
    """The images that a cell was measured on."""

    name: str
    images: int
    sha256: str


class Artifacts(_Strict):
    """SHA-256 of what the cell was made from; null where this run did not see it."""

    weights: str | None = None
    onnx: str | None = None
    engine: str | None = None


class Record(_Strict):
    """`record.json`: what a run's detections were made of, and the AP that they reached."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    detgate: str = Field(default=__version__, description="version that wrote it")
    id: str
    model: str
    precision: Precision
    engine: str
    engine_version: str
    options: dict[str, str] = Field(description="engine options it ran with")
    batch: int
    start: Start
    precision_ran: str
    device: str
    dataset: DatasetIdentity
    artifacts: Artifacts
    metrics: dict[str, float] = Field(description="all 12 COCO numbers; -1: no ground truth")
    detections: str = Field(description="SHA-256 of detections.npz")
    environment: EnvironmentResult = Field(default_factory=lambda: EnvironmentResult(**collect().as_json()))


@dataclass(frozen=True, eq=False)
class Recorded:
    """A run that can be compared: its record and its detections."""

    record: Record
    detections: Detections


def sha256_of(detections: Detections) -> str:
    """What `record.json` says of its detections."""
    return hashlib.sha256(detections.to_bytes()).hexdigest()


def keep(folder: Path, run: Recorded, curves: Curves) -> None:
    """Write a record to `folder`, in place of an older one.

    Raises:
        OSError: it cannot be written; the folder is then no record.
    """
    (folder / RECORD).unlink(missing_ok=True)
    run.detections.save(folder / DETECTIONS)
    curves.save(folder / CURVES)
    write_atomically(folder / RECORD, run.record.model_dump_json(by_alias=True, indent=1) + "\n")


def load(folder: Path) -> Recorded:
    """The record in `folder`.

    Raises:
        RecordError: there is none, it is of a newer schema, broken, or its detections are not those it was written for.
    """
    record = _read(folder / RECORD)
    path = folder / DETECTIONS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}", f"make the record again: {_MAKE}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != record.detections:
        raise RecordError(
            f"{path} is cut short or of another run: its record wants SHA-256 {record.detections[:12]}…, "
            f"found {found[:12]}…",
            f"copy the whole folder again, or make the record again: {_MAKE}",
        )
    try:
        return Recorded(record, Detections.from_bytes(content))
    except EvaluationError as error:
        raise RecordError(f"{path}: {error.cause}", f"make the record again: {_MAKE}") from error


def folders(run: Path) -> dict[str, Path]:
    """The record folders of a run by cell id: `run` is one, holds some, has them in `record/`, or is a results file.

    Raises:
        RecordError: nothing is there, no record is there, two are of one cell, or it is a record of speed.
    """
    if not run.exists():
        raise RecordError(
            f"no run at {run}: wanted a results file with record/ beside it, a folder of records, or one record",
            "make one: `pytest -m accuracy --results FILE`",
        )
    if of_speed(run):
        raise RecordError(
            f"{run} is a record of speed; wanted one of an accuracy run",
            "give a record folder, or a results file with record/ beside it; two records of speed can be compared too",
        )
    places = [run, *_below(run), *_below(run / FOLDER)] if run.is_dir() else _below(run.parent / FOLDER)
    found = [place for place in places if (place / RECORD).is_file()]
    if not found:
        raise RecordError(_no_record(run, places), f"make one, and give its folder: {_MAKE}")
    by_cell: dict[str, Path] = {}
    for place in found:
        cell = _read(place / RECORD).id
        if cell in by_cell:
            raise RecordError(f"{run} holds two records of {cell}: {by_cell[cell]} and {place}", "name one of them")
        by_cell[cell] = place
    return by_cell


def _below(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _no_record(run: Path, places: list[Path]) -> str:
    unfinished = [place for place in places if (place / DETECTIONS).is_file()]
    if unfinished:
        return f"{unfinished[0]} has no {RECORD}: its run was broken off, or was of an older detgate"
    where = run if run.is_dir() else run.parent / FOLDER
    return f"no record in {where}: wanted {RECORD} and {DETECTIONS} there, or in folders below"


def of_speed(run: Path) -> bool:
    """Whether `run` is a file that `compare --speed --pairs` wrote.

    Raises:
        RecordError: it is cut short.
    """
    if run.suffix != ".json" or not run.is_file():
        return False
    data = read_json(run, "copy the whole file again")
    return isinstance(data, dict) and data.get("kind") == "speed"


def read_json(path: Path, again: str) -> Any:
    """What a file of a record holds; `again` is the remedy where it is damaged.

    Raises:
        RecordError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}", again) from error
    except ValueError as error:  # JSON or UTF-8
        raise RecordError(f"{path} is cut short or was edited: {error}", again) from error


def _read(path: Path) -> Record:
    data = read_json(path, f"make the record again: {_MAKE}")
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise RecordError(
            f"{path} is of schema {schema}, written by detgate {data.get('detgate')}; {__version__} reads {SCHEMA}",
            "update detgate, or make the record again with this version",
        )
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        raise RecordError(f"{path}: {first_fault(error)}", f"make the record again: {_MAKE}") from error
