"""Takes the results of a run's cells; adds a line for each to a history file (JSON lines), and reads such files."""

import datetime
import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.environment import collect
from harness.errors import ResultsError
from harness.judge.baseline import Spread, spread_of
from harness.judge.record import Artifacts
from harness.judge.verdict import Status
from harness.model.registry import first_fault
from harness.report.results import CellResult, DatasetResult, Given, unwritable

SCHEMA = 1
GIT_TIMEOUT_S = 10.0
T = TypeVar("T", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PastAccuracy(_Strict):
    """AP of one run; null where the run had none."""

    map_50_95: float | None
    map_50: float | None
    status: Status
    given: Given = Field(default_factory=dict)


class PastSpeed(_Strict):
    """FPS of one run; null where the run had none."""

    fps: float | None
    uncertainty: float | None
    status: Status
    given: Given = Field(default_factory=dict)


class Entry(_Strict):
    """One line: a cell of one run."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    time: datetime.datetime
    cell: str
    batch: int | None
    start: str | None
    options: dict[str, str]
    engine_version: str | None
    dataset: DatasetResult | None
    artifacts: Artifacts
    accuracy: PastAccuracy | None
    performance: PastSpeed | None
    fingerprint: str
    device: dict[str, str | int | float | None]
    versions: dict[str, str]
    baselines_commit: str | None = Field(description="`-dirty` behind it: with changes; null outside a repository")


@dataclass(frozen=True)
class History:
    """A history file: what could be read, in the file's order, and one phrase for each line that could not."""

    entries: tuple[Entry, ...]
    skipped: tuple[str, ...]


def append(path: Path, cells: Iterable[CellResult], baselines: Path) -> int:
    """Add a line for each cell that ran (more than MISSING is known of it); gives how many.

    All of a run are one write to a file opened for appending, so that runs at the same time do not mix their lines.

    Raises:
        ResultsError: the file cannot be written.
    """
    commit, now = commit_of(baselines), datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    entries = [_entry(cell, commit, now) for cell in cells if cell.batch is not None or not _missing(cell)]
    text = "".join(entry.model_dump_json(by_alias=True) + "\n" for entry in entries)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _ends_inside_a_line(path):
            text = "\n" + text  # what a killed writer left spoils its own line alone
        with path.open("ab", buffering=0) as stream:
            written = stream.write(text.encode())
    except OSError as error:
        raise unwritable(path, error, "--history FILE") from error
    if written != len(text.encode()):
        raise ResultsError(f"{path}: the disk is full, the last line is cut", "make room and run again")
    return len(entries)


def _missing(cell: CellResult) -> bool:
    return all(status is Status.MISSING for status in cell.statuses)


def _ends_inside_a_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() != b"\n"


def _entry(cell: CellResult, commit: str | None, now: datetime.datetime) -> Entry:
    environment = collect()
    return Entry(
        schema=1,
        time=now,
        cell=cell.id,
        batch=cell.batch,
        start=cell.start,
        options=cell.options,
        engine_version=cell.engine_version,
        dataset=cell.dataset,
        artifacts=cell.artifacts,
        accuracy=_past(PastAccuracy, cell.accuracy),
        performance=_past(PastSpeed, cell.performance),
        fingerprint=environment.fingerprint,
        device=environment.device,
        versions=environment.versions,
        baselines_commit=commit,
    )


def _past(kind: type[T], part: BaseModel | None) -> T | None:
    return None if part is None else kind.model_validate({name: getattr(part, name) for name in kind.model_fields})


def commit_of(folder: Path) -> str | None:
    """The commit that is checked out where `folder` lies, with `-dirty` behind it where files were changed.

    None where git is not here, or `folder` is in no repository of this user.
    """
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def load(path: Path) -> History:
    """A history file; lines that are damaged, or that a newer detgate wrote, are left out and told.

    Raises:
        ResultsError: the file cannot be read, or none of its lines can.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ResultsError(
            f"cannot read {path}: {error.strerror}", f"run `pytest --history {path}` first, or name its file"
        ) from error
    entries: list[Entry] = []
    skipped: list[str] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                entries.append(_parsed(line))
            except ValueError as error:
                skipped.append(f"line {number}: {error}")
    if not entries:
        first = f", first {skipped[0]}" if skipped else ""
        raise ResultsError(
            f"{path} has no line that can be read, {len(skipped)} that cannot{first}", "name another file"
        )
    return History(tuple(entries), tuple(skipped))


def _parsed(line: bytes) -> Entry:
    """One line.

    Raises:
        ValueError: what is wrong with it, in a phrase.
    """
    try:
        data: Any = json.loads(line)
    except ValueError as error:
        raise ValueError("damaged, not JSON") from error
    found = data.get("schema") if isinstance(data, dict) else None
    if isinstance(found, int) and found > SCHEMA:
        raise ValueError(f"schema {found}, of a newer detgate: this one reads {SCHEMA}")
    try:
        return Entry.model_validate(data)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from error


def speeds_like(history: History, cell: CellResult, fingerprint: str) -> list[float]:
    """FPS of the runs of exactly this engine file, batch and options on this device, in the file's order."""
    wanted = (cell.id, cell.batch, cell.options, cell.artifacts.engine, fingerprint)
    return [
        entry.performance.fps
        for entry in history.entries
        if (entry.cell, entry.batch, entry.options, entry.artifacts.engine, entry.fingerprint) == wanted
        and entry.performance is not None
        and entry.performance.fps is not None
    ]


def spread_from(path: Path, cell: CellResult, fingerprint: str) -> tuple[Spread, list[float]]:
    """How much the cell's speed varies from process to process by a history file, and the speeds.

    Raises:
        ResultsError: the file cannot be read.
        BaselineError: it has too few runs of this engine file here, or they vary too much.
    """
    fps = speeds_like(load(path), cell, fingerprint)
    return spread_of(fps), fps
