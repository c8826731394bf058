"""Takes `baselines/recorded/<model>.json`; gives the accepted figures that hold for a run, and accepts new ones."""

import datetime
import getpass
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.errors import BaselineError, SpecError
from harness.files import write_atomically
from harness.model.registry import Fraction, Precision, first_fault, read_json

# Fractions of FPS: the tolerance of a speed whose spread is not known; how many spreads another may be; and the spread
# beyond which no speed is accepted, which bounds the tolerance of any file.
SPEED_TOLERANCE = 0.05
SPREADS = 3
MAXIMUM_SPREAD = 0.05
LEAST_PROCESSES = 10
# AP below it is 0.000 in any table: a run that found nothing right, and later runs could be no worse.
LEAST_AP = 0.0005
SCHEMA_FILE = "recorded.schema.json"
# Stands in the commands that messages print; not a reason.
PLACEHOLDER = "WHY"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Acceptance(_Strict):
    """Who accepted a figure, when, why, and what it replaced."""

    by: str = Field(min_length=1)
    when: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$")
    reason: str = Field(min_length=1)
    cell: str = Field(min_length=1, description="the cell whose figures were accepted")
    previous: dict[str, float] | None = None


class AccuracyKey(_Strict):
    """What a recorded accuracy holds for: this precision, data set and weights, on every engine."""

    precision: Precision
    dataset: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the data set")
    weights: str = Field(pattern=r"^[0-9a-f]{8}$", description="first 8 hex digits of the checkpoint's SHA-256")


class Accuracy(AccuracyKey):
    """A recorded accuracy."""

    dataset_name: str
    images: int = Field(ge=1)
    map_50_95: Annotated[Fraction, Field(ge=LEAST_AP)]
    map_50: Fraction
    accepted: Acceptance

    @property
    def key(self) -> AccuracyKey:
        """What it holds for."""
        return AccuracyKey(precision=self.precision, dataset=self.dataset, weights=self.weights)


class SpeedKey(NamedTuple):
    """What a recorded speed holds for: exactly this cell, batch, device and engine options."""

    cell: str
    batch: int
    fingerprint: str
    options: tuple[tuple[str, str], ...] = ()


class Spread(_Strict):
    """How much FPS varies between fresh processes of the same engine file on an unchanged machine."""

    processes: int = Field(ge=LEAST_PROCESSES, description="runs, each in a process of its own")
    deviation: float = Field(ge=0.0, le=MAXIMUM_SPREAD, description="standard deviation of the FPS, fraction of FPS")


def spread_of(fps: Sequence[float]) -> Spread:
    """The spread over runs, each in a process of its own.

    Raises:
        BaselineError: too few runs, or they vary too much to judge by.
    """
    if len(fps) < LEAST_PROCESSES:
        raise BaselineError(
            f"wanted the speed of at least {LEAST_PROCESSES} runs of this engine file on this device, found {len(fps)}",
            "repeat `pytest -m performance --history FILE` for the cell, then accept",
        )
    deviation = statistics.stdev(fps) / statistics.mean(fps)
    if deviation > MAXIMUM_SPREAD:
        raise BaselineError(
            f"the speed varies by {deviation:.1%} from process to process, wanted at most {MAXIMUM_SPREAD:.0%}: "
            "later runs could not be judged by it",
            "measure again on an idle machine with locked clocks, then accept",
        )
    return Spread(processes=len(fps), deviation=round(deviation, 6))


def speed_tolerance(spread: Spread | None) -> float:
    """The loosest tolerance, as a fraction of FPS: 5 %, or three times the spread where that is known and more."""
    return max(SPEED_TOLERANCE, round(SPREADS * spread.deviation, 9)) if spread else SPEED_TOLERANCE


class Speed(_Strict):
    """A recorded speed: holds on the same device fingerprint, for the same batch, only."""

    cell: str
    batch: int = Field(ge=1)
    fingerprint: str = Field(min_length=8)
    options: dict[str, str] = Field(default_factory=dict, description="engine options (provider, threads) it ran with")
    device: dict[str, Any]
    fps: Annotated[float, Field(gt=0.0)]
    tolerance: float = Field(ge=0.01, le=round(SPREADS * MAXIMUM_SPREAD, 9), description="fraction of FPS")
    spread: Spread | None = Field(default=None, description="null where it was not measured: the tolerance is 5 %")
    versions: dict[str, str] | None = Field(default=None, description="packages and driver it was measured with")
    accepted: Acceptance

    @model_validator(mode="after")
    def _tolerance_is_measured(self) -> Self:
        loosest = speed_tolerance(self.spread)
        if self.tolerance > loosest + 1e-9:
            spread = f"{self.spread.deviation:.1%}" if self.spread else "not measured"
            raise ValueError(
                f"tolerance: wanted at most {loosest:.1%} (the spread is {spread}), found {self.tolerance:.1%}"
            )
        return self

    @property
    def key(self) -> SpeedKey:
        """What it holds for."""
        return SpeedKey(self.cell, self.batch, self.fingerprint, tuple(sorted(self.options.items())))


class Recorded(_Strict):
    """All accepted figures of one model."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    model: str
    accuracy: tuple[Accuracy, ...] = Field(default=(), strict=False)
    speed: tuple[Speed, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        accuracy = [tuple(entry.key) for entry in self.accuracy]
        speed = [entry.key for entry in self.speed]
        if len(set(accuracy)) < len(accuracy) or len(set(speed)) < len(speed):
            raise ValueError("two entries hold for the same run; keep one")
        return self

    def find_accuracy(self, key: AccuracyKey) -> Accuracy | None:
        """The accepted accuracy for exactly this precision, data set and weights."""
        return next((entry for entry in self.accuracy if entry.key == key), None)

    def find_speed(self, key: SpeedKey) -> Speed | None:
        """The accepted speed for exactly this cell, batch, device and engine options."""
        return next((entry for entry in self.speed if entry.key == key), None)

    def speed_elsewhere(self, key: SpeedKey) -> Speed | None:
        """The last accepted speed of the same cell, batch and options on another device, for information."""
        same = (entry for entry in self.speed if entry.key._replace(fingerprint=key.fingerprint) == key)
        others = [entry for entry in same if entry.fingerprint != key.fingerprint]
        return max(others, key=lambda entry: entry.accepted.when, default=None)


def recorded_schema() -> dict[str, Any]:
    """JSON schema of a file of accepted figures, generated from the types."""
    schema = Recorded.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "detgate accepted figures"}


class Proposal(_Strict):
    """`results/proposed/<model>.json`: figures of a run that has no accepted baseline yet."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    model: str
    accuracy: dict[str, dict[str, Any]] = Field(description="by cell id: a recorded accuracy without its acceptance")


def recorded_file(baselines: Path, model: str) -> Path:
    """Where the accepted figures of `model` are kept."""
    return baselines / "recorded" / f"{model}.json"


def load_recorded(baselines: Path, model: str) -> Recorded:
    """The accepted figures of a model; empty when nothing was accepted yet.

    Raises:
        SpecError: the file breaks the schema; names file, key, wanted and found.
    """
    path = recorded_file(baselines, model)
    if not path.exists():
        return Recorded(model=model, schema=1)
    data = read_json(path)
    try:
        return Recorded.model_validate(data)
    except ValidationError as error:
        raise SpecError(
            f"{path}: {first_fault(error)}",
            "who edited it: restore it from version control, and change it only with `baseline accept` or `ratchet`",
        ) from error


def write_proposal(directory: Path, model: str, cells: dict[str, dict[str, Any]]) -> Path:
    """Write the figures of scored cells beside those proposed before; nothing is accepted by this."""
    path = directory / f"{model}.json"
    try:
        older = load_proposal(path).accuracy
    except BaselineError:  # none yet, or of another version
        older = {}
    _write(path, {"schema": 1, "model": model, "accuracy": older | cells})
    return path


def load_proposal(path: Path) -> Proposal:
    """Figures that a run proposed.

    Raises:
        BaselineError: no such file, or not a proposal.
    """
    if not path.exists():
        raise BaselineError(
            f"no proposal {path}: the last run proposed nothing for this model",
            "run `pytest -m accuracy --model MODEL` first; it proposes what it finds",
        )
    try:
        return Proposal.model_validate(read_json(path))
    except (ValidationError, SpecError) as error:
        raise BaselineError(f"{path} is not a proposal of this version", f"rm {path} and run pytest again") from error


def require_reason(reason: str) -> None:
    """Refuse what says nothing.

    Raises:
        BaselineError: the reason is empty, or the placeholder of a printed command.
    """
    if reason.strip() in ("", PLACEHOLDER):
        raise BaselineError(
            f"--reason '{reason}' says nothing",
            'say why the figure is right, e.g. --reason "first run, checked by hand"',
        )


def acceptance(cell: str, reason: str, previous: dict[str, float] | None) -> Acceptance:
    """Who, when and why, for an accepted figure.

    Raises:
        BaselineError: the reason is empty.
    """
    require_reason(reason)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Acceptance(by=_user(), when=now, reason=reason.strip(), cell=cell, previous=previous)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def accept_accuracy(baselines: Path, model: str, cell: str, figures: dict[str, Any], reason: str) -> Accuracy:
    """Record a proposed accuracy, replacing the entry for the same precision, data set and weights.

    Raises:
        BaselineError: the proposal lacks a figure, its AP is 0.000, or the reason is empty.
        SpecError: the recorded file is broken.
    """
    recorded = load_recorded(baselines, model)
    try:
        _require_found(cell, figures["map_50_95"])
        key = AccuracyKey(**{name: figures[name] for name in AccuracyKey.model_fields})
        old = recorded.find_accuracy(key)
        previous = {"map_50_95": old.map_50_95, "map_50": old.map_50} if old else None
        entry = Accuracy(**figures, accepted=acceptance(cell, reason, previous))
    except (KeyError, TypeError, ValidationError) as error:
        raise BaselineError(
            f"the proposal for {cell} is incomplete: {error}", "run pytest -m accuracy again"
        ) from error
    others = tuple(item for item in recorded.accuracy if item.key != key)
    _save(baselines, recorded.model_copy(update={"accuracy": (*others, entry)}))
    return entry


def _require_found(cell: str, ap: float) -> None:
    if 0 <= ap < LEAST_AP:
        raise BaselineError(
            f"{cell}: wanted an AP that is not 0.000, found {ap:.6f}: no later run could be worse than this baseline",
            "run the cell on another engine too (`pytest -m accuracy --engine torch`); where that finds nothing either "
            "look at the checkpoint, the classes and the input in the model's JSON, and at the images",
        )


def accept_speed(
    baselines: Path,
    model: str,
    figures: dict[str, Any],
    uncertainty: float | None,
    reason: str,
    spread: Spread | None = None,
) -> Speed:
    """Record a measured speed, replacing the entry for the same cell, batch and device.

    Args:
        figures: cell, batch, fingerprint, options, device, versions, fps.
        uncertainty: half-width of the median's 95 % interval, as a fraction of it.
        spread: over fresh processes; None where it was not measured.

    Raises:
        BaselineError: the measurement was too noisy to be judged by, or the reason is empty.
    """
    tolerance = speed_tolerance(spread)
    if uncertainty is None or uncertainty > tolerance / 2:
        known = "unknown" if uncertainty is None else f"±{uncertainty:.1%}"
        raise BaselineError(
            f"the uncertainty of {figures['cell']}'s median is {known}, wanted at most ±{tolerance / 2:.1%}: "
            "later runs could not be judged by it",
            "measure again on an idle machine, then accept",
        )
    recorded = load_recorded(baselines, model)
    accepted = acceptance(figures["cell"], reason, None)
    entry = Speed(**figures, tolerance=tolerance, spread=spread, accepted=accepted)
    old = recorded.find_speed(entry.key)
    if old is not None:
        previous = {"fps": old.fps}
        entry = entry.model_copy(update={"accepted": entry.accepted.model_copy(update={"previous": previous})})
    others = tuple(other for other in recorded.speed if other.key != entry.key)
    _save(baselines, recorded.model_copy(update={"speed": (*others, entry)}))
    return entry


def _save(baselines: Path, recorded: Recorded) -> None:
    checked = Recorded.model_validate(recorded.model_dump(mode="python", by_alias=True))
    _write(recorded_file(baselines, recorded.model), checked.model_dump(mode="json", by_alias=True))


def _write(path: Path, data: dict[str, Any]) -> None:
    try:
        write_atomically(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise BaselineError(f"cannot write {path}: {error.strerror}", "make the directory writable") from error
