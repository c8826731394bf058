"""Takes what the checks of a run found; gives the results file: one object per cell, schema-checked, merged by hash."""

import errno
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.accuracy_run import AccuracyRun
from harness.engines.base import DeviceTimer
from harness.environment import collect
from harness.errors import ResultsError
from harness.files import write_atomically
from harness.judge.record import Artifacts, DatasetIdentity, EnvironmentResult, Start
from harness.judge.speed import uncertainty
from harness.judge.verdict import NEEDS, Kind, Status, Verdict, gravest
from harness.measure.hops import Hop
from harness.measure.throughput import Speeds, Throughput
from harness.model.registry import Precision, first_fault
from harness.pipeline import Cell, Prepared
from harness.tolerances import TOLERANCES

SCHEMA_FILE = "results.schema.json"
PREVIOUS_SUFFIX = ".prev"
# The fact that carries a proposed baseline; it goes to its own file.
PROPOSAL = "proposal"


Given = Annotated[
    dict[str, str], Field(description="options of the run that change what is judged, where they are not the default's")
]
Fails = Annotated[
    bool | None,
    Field(description="whether the run is red for it: never where it is known, also MISSING where it is required"),
]
Remedy = Annotated[str, Field(description="the command to run next; empty where it is green")]
Command = Annotated[str, Field(description="the command that repeats it, with the options of the run")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Part(_Strict):
    """What every kind of check says beside its figures; a file of an older detgate says nothing."""

    fails: Fails = None
    remedy: Remedy = ""
    command: Command = ""


class DatasetResult(DatasetIdentity):
    """The images a cell was measured on."""

    full_val2017: bool
    note: str = ""


class AccuracyResult(_Part):
    """AP of the cell; `expected` and `tolerance` in absolute AP."""

    map_50_95: float | None
    map_50: float | None
    status: Status
    expected: dict[str, float] | None
    tolerance: float | None
    reason: str
    metrics: dict[str, float] = Field(default_factory=dict, description="all 12 COCO numbers; -1: no ground truth")
    per_class: dict[str, float] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(
        default_factory=dict, description="time of each stage, summed over threads, and `wall`, all but `evaluate`"
    )
    known: str = Field(default="", description="why this is expected to fail")
    resumed: int = Field(default=0, description="images taken over from a killed run; the seconds are of the others")
    given: Given = Field(default_factory=dict)


class CheckResult(_Strict):
    """One check; the units are the check's own."""

    status: Status
    reason: str
    figure: float | None
    expected: float | None
    tolerance: float | None
    remedy: Remedy = ""
    interval: tuple[float, float] | None = Field(
        default=None, description="of the change since an earlier run, 95 %; null where it was not computed"
    )


class ChecksResult(_Part):
    """Checks by name, and the gravest of them."""

    status: Status
    reason: str
    checks: dict[str, CheckResult]
    known: str = Field(default="", description="why this is expected to fail")


class AgainstResult(ChecksResult):
    """The cell against its record in an earlier run; `identical` stands alone where the bits are the same."""


class ConformanceResult(ChecksResult):
    """What the engine must keep without ground truth; `expected` is the most that the figure may be."""


P = TypeVar("P", bound=ChecksResult)


class Latency(_Strict):
    """Percentiles of the time of one call, in milliseconds, by linear interpolation."""

    p50: float
    p90: float
    p99: float


class SpeedBeside(_Strict):
    """FPS that is told and not judged: batch / median, over `rounds` calls, on the clock `timer`."""

    fps: float
    timer: Literal["host"] | DeviceTimer
    rounds: int
    uncertainty: float = Field(description="half-width of the median's 95 % interval, relative")


class StageResult(_Strict):
    """One hop on the way from torch to the engine, on a few images."""

    name: str
    relative: float | None = Field(description="L2 error of the worst output over its L2 norm; null: not comparable")
    tolerance: float
    map_change: float | None = Field(description="absolute AP after less before, on these images")
    matched: float | None = Field(description="share of the confident boxes that are still where they were")
    broken: str = Field(description="names or shapes that differ, NaN or Inf; empty where there is none")


class PerformanceResult(_Part):
    """FPS = batch / median latency, inputs and outputs resident, on the host's clock around calls that wait."""

    fps: float | None
    latency_ms: Latency | None
    latency_steps_ms: tuple[float, ...] = Field(
        default=(), description="the shortest call, the longest, and every 5 % between: how the time of a call varies"
    )
    cv: float | None
    status: Status
    expected: float | None
    tolerance: float | None
    reason: str
    known: str = Field(default="", description="why this is expected to fail")
    rounds: int | None = None
    uncertainty: float | None = Field(default=None, description="half-width of the median's 95 % interval, relative")
    timer: Literal["host"] = Field(default="host", description="the clock of `fps` and `latency_ms`")
    transfer: SpeedBeside | None = Field(
        default=None, description="with copies from and to the host; null on a CPU, where it is the same as `fps`"
    )
    device: SpeedBeside | None = Field(
        default=None, description="on the device's own clock; null where the runtime has none"
    )
    memory_bytes: int | None = Field(default=None, description="held on the device; null where it is not told")
    given: Given = Field(default_factory=dict)


class CellResult(_Strict):
    """All that a run knows of one cell."""

    id: str
    model: str
    precision: Precision
    engine: str
    engine_version: str | None = None
    batch: int | None = None
    start: Start | None = None
    precision_ran: str | None = None
    device: str | None = None
    options: dict[str, str] = Field(default_factory=dict, description="engine options it ran with")
    dataset: DatasetResult | None = None
    artifacts: Artifacts = Field(default_factory=Artifacts)
    accuracy: AccuracyResult | None = None
    performance: PerformanceResult | None = None
    against: AgainstResult | None = None
    conformance: ConformanceResult | None = None
    stages: tuple[StageResult, ...] | None = Field(default=None, description="what each hop from torch on costs")

    @property
    def statuses(self) -> list[Status]:
        """Of the parts that were checked."""
        parts = (self.accuracy, self.performance, self.against, self.conformance)
        return [part.status for part in parts if part is not None]


class Results(_Strict):
    """`results.json`."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    environment: EnvironmentResult
    cells: tuple[CellResult, ...]


@dataclass(frozen=True)
class Record:
    """One check as it travels from the test to the results: the cell, its verdict, and facts measured beside it.

    facts: fields of `CellResult`, plain JSON; those of `accuracy` and `performance` without status and reason.
    given: options of the run that change what is judged.
    fails: whether the run is red for it.
    command: what repeats the check.
    """

    cell: dict[str, str]
    verdict: Verdict
    facts: dict[str, Any]
    given: dict[str, str] = field(default_factory=dict)
    fails: bool = False
    command: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain data that pytest-xdist can carry."""
        return {**vars(self), "verdict": self.verdict.as_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Record":
        """The inverse of `as_json`."""
        return cls(**{**data, "verdict": Verdict.from_json(data["verdict"])})


def results_schema() -> dict[str, Any]:
    """JSON schema of the results file, generated from the types."""
    schema = Results.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "detgate results"}


def cell_facts(prepared: Prepared, precision_ran: str, device: str) -> dict[str, Any]:
    """What any measurement says of its cell."""
    return {
        "engine_version": prepared.engine.version(),
        "batch": prepared.source.batch,
        "start": prepared.start,
        "precision_ran": precision_ran,
        "device": device,
        "options": prepared.engine.flags(),
        "artifacts": prepared.artifacts,
    }


def accuracy_facts(run: AccuracyRun) -> dict[str, Any]:
    """What a scored run says of its cell."""
    numbers = {k: v for k, v in vars(run.metrics).items() if isinstance(v, float)}
    return cell_facts(run.prepared, run.inspection.dominant, run.inspection.device) | {
        "dataset": {
            "name": run.dataset.name,
            "images": len(run.dataset.images),
            "sha256": run.dataset.sha256,
            "full_val2017": run.dataset.full_val2017,
            "note": run.dataset.note,
        },
        "accuracy": {
            "map_50_95": run.metrics.map_50_95,
            "map_50": run.metrics.map_50,
            "metrics": numbers,
            "per_class": run.metrics.per_class,
            "seconds": run.run.seconds,
            "resumed": run.run.resumed,
        },
    }


def performance_facts(prepared: Prepared, speeds: Speeds, precision_ran: str, device: str) -> dict[str, Any]:
    """What a timed session says of its cell."""
    measured, latency = speeds.compute, speeds.compute.latency_ms
    return cell_facts(prepared, precision_ran, device) | {
        "performance": {
            "fps": measured.fps,
            "latency_ms": {"p50": latency.p50, "p90": latency.p90, "p99": latency.p99},
            "latency_steps_ms": measured.latency_steps_ms,
            "cv": measured.cv,
            "rounds": measured.calls,
            "uncertainty": uncertainty(measured),
            "transfer": _speed_beside(speeds.transfer, "host"),
            "device": _speed_beside(speeds.device, speeds.device_timer),
            "memory_bytes": speeds.memory_bytes,
        },
    }


def _speed_beside(measured: Throughput | None, timer: str | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    return {"fps": measured.fps, "timer": timer, "rounds": measured.calls, "uncertainty": uncertainty(measured)}


def stage_facts(hops: Iterable[Hop]) -> dict[str, Any]:
    """What the way of a cell from torch to its engine says of it."""
    return {
        "stages": [
            {
                "name": hop.name,
                "relative": hop.worst.relative if hop.worst and isfinite(hop.worst.relative) else None,
                "tolerance": TOLERANCES[hop.step].relative,
                "map_change": hop.change,
                "matched": hop.matched,
                "broken": hop.broken,
            }
            for hop in hops
        ]
    }


def collate(records: Iterable[Record]) -> list[CellResult]:
    """One result per cell from the records of all its checks, in order of first appearance."""
    by_cell: dict[str, list[Record]] = {}
    for record in records:
        by_cell.setdefault(record.verdict.cell, []).append(record)
    return [_cell_result(found) for found in by_cell.values()]


def _cell_result(records: list[Record]) -> CellResult:
    facts: dict[str, Any] = {}
    for record in records:
        facts |= {name: value for name, value in record.facts.items() if name != PROPOSAL}
    cell, given = records[0].cell, {"given": records[0].given}
    own: dict[Kind, list[Record]] = {}
    for record in records:
        own.setdefault(record.verdict.kind, []).append(record)
    parts = {
        "accuracy": _accuracy(own.get("accuracy", []), facts.pop("accuracy", {}) | given),
        "performance": _performance(own.get("performance", []), facts.pop("performance", {}) | given),
        "against": _checks(AgainstResult, own.get("against", [])),
        "conformance": _checks(ConformanceResult, own.get("conformance", [])),
    }
    return CellResult(**{"id": records[0].verdict.cell, **cell, **facts, **parts})


def _beside(own: list[Record], status: Status) -> dict[str, Any]:
    """What a part says beside its figures; the remedy is that of the first verdict with the part's status."""
    remedy = next((r.verdict.remedy for r in own if r.verdict.status is status and r.verdict.remedy), "")
    known = "; ".join(sorted({f"{r.verdict.check}: {r.verdict.known}" for r in own if r.verdict.known}))
    fails = any(record.fails for record in own)
    return {"known": known, "fails": fails, "remedy": remedy, "command": own[0].command}


def _reason(verdicts: list[Verdict], status: Status) -> str:
    """Each check with its reason; what several checks lack is said once."""
    lacking = Counter(v.reason for v in verdicts if status is Status.MISSING)
    own = [v for v in verdicts if v.status is status]
    return "; ".join(sorted({f"{NEEDS if lacking[v.reason] > 1 else v.check}: {v.reason}" for v in own}))


def _accuracy(own: list[Record], facts: dict[str, Any]) -> AccuracyResult | None:
    if not own:
        return None
    verdicts = [record.verdict for record in own]
    status = gravest([v.status for v in verdicts])
    expected = {v.check: v.expected for v in verdicts if v.expected is not None}
    tolerance = next((v.tolerance for v in verdicts if v.tolerance is not None), None)
    figures = {"map_50_95": None, "map_50": None} | facts
    return AccuracyResult(
        **figures,
        **_beside(own, status),
        status=status,
        expected=expected or None,
        tolerance=tolerance,
        reason=_reason(verdicts, status),
    )


def _performance(own: list[Record], facts: dict[str, Any]) -> PerformanceResult | None:
    if not own:
        return None
    worst = max((record.verdict for record in own), key=lambda v: list(Status).index(v.status))
    figures = {"fps": None, "latency_ms": None, "cv": None} | facts
    return PerformanceResult(
        **figures,
        **_beside(own, worst.status),
        status=worst.status,
        expected=worst.expected,
        tolerance=worst.tolerance,
        reason=worst.reason,
    )


def _checks(part: type[P], own: list[Record]) -> P | None:
    if not own:
        return None
    verdicts = [record.verdict for record in own]
    # What could not be asked hides nothing that could.
    status = gravest([v.status for v in verdicts if v.status is not Status.MISSING] or [Status.MISSING])
    fields = CheckResult.model_fields
    checks = {v.check: CheckResult(**{name: getattr(v, name) for name in fields}) for v in verdicts}
    return part(**_beside(own, status), status=status, reason=_reason(verdicts, status), checks=checks)


def load(path: Path) -> Results:
    """A results file.

    Raises:
        ResultsError: unreadable, or not of this schema.
    """
    try:
        return Results.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ResultsError(
            f"cannot read {path}: {error.strerror}", "run pytest first, or name its --results"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} is not valid JSON: {error}", f"rm {path}; the next run writes it again") from error
    except ValidationError as error:
        raise ResultsError(
            f"{path}: {first_fault(error)}", f"rm {path}; it was edited, or written by another version of detgate"
        ) from error


def save(path: Path, cells: list[CellResult]) -> Results:
    """Write the results, merged with what the same environment measured before.

    Cells of the same artefacts keep their other half (accuracy, then performance); a file of another environment,
    or one that cannot be read, is kept as `PATH.prev`.

    Raises:
        ResultsError: the file cannot be written.
    """
    environment = EnvironmentResult(**collect().as_json())
    old = _previous(path, environment)
    fresh = {cell.id: _merged(old.get(cell.id), cell) for cell in cells}
    results = Results(schema=1, environment=environment, cells=tuple((old | fresh).values()))
    _write(path, results.model_dump_json(by_alias=True, indent=1))
    return results


def require_writable(path: Path, option: str = "--results FILE") -> None:
    """Refuse a path where no file can be written, before hours of measuring.

    Raises:
        ResultsError: the path is a directory, or lies below a file or a directory that cannot be written.
    """
    nearest = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if path.is_dir():
        raise unwritable(path, OSError(errno.EISDIR, os.strerror(errno.EISDIR)), option)
    if not nearest.is_dir():
        raise unwritable(path, OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)), option)
    if not os.access(nearest, os.W_OK):
        raise unwritable(path, OSError(errno.EACCES, os.strerror(errno.EACCES)), option)


def _previous(path: Path, environment: EnvironmentResult) -> dict[str, CellResult]:
    if not path.exists():
        return {}
    try:
        results = load(path)
    except ResultsError:
        results = None
    if results is not None and results.environment == environment:
        return {cell.id: cell for cell in results.cells}
    try:
        os.replace(path, path.with_name(path.name + PREVIOUS_SUFFIX))
    except OSError as error:
        raise unwritable(path, error) from error
    return {}


def _merged(old: CellResult | None, new: CellResult) -> CellResult:
    if old is None or (new.artifacts.engine is not None and (old.artifacts, old.batch) != (new.artifacts, new.batch)):
        return new
    if new.artifacts.engine is None and old.artifacts.engine is not None:
        return new
    halves = ("accuracy", "performance", "conformance", "stages", "dataset", *(() if new.accuracy else ("against",)))
    kept = {name: getattr(old, name) for name in halves if getattr(new, name) is None}
    return new.model_copy(update=kept)


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text + "\n")
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError, option: str = "--results FILE") -> ResultsError:
    """The error of a file that cannot be written where `option` asks for it."""
    return ResultsError(f"cannot write {path}: {error.strerror}", f"give a writable path: {option}")


def cell_names(cell: Cell) -> dict[str, str]:
    """The parts of a cell's id, as `CellResult` has them."""
    return {"model": cell.model, "precision": cell.precision, "engine": cell.engine}
