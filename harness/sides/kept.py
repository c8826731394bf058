"""Takes files that `compare --speed --pairs FILE` wrote; gives their comparisons again, and what two of them say."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness import __version__
from harness.errors import EvaluationError, RecordError
from harness.judge.record import read_json
from harness.judge.sequential import Decision, decide, decide_between
from harness.judge.verdict import Status
from harness.measure.turns import Pair
from harness.model.registry import first_fault
from harness.sides.comparison import SCHEMA, SpeedComparison, require_comparable

_AGAIN = "measure again: python -m harness compare --speed OLD NEW --pairs FILE"


class _Side(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    label: str
    cell: str
    batch: int
    start: str
    fingerprint: str
    device: dict[str, Any]
    engine_version: str
    artifacts: dict[str, str | None]
    flags: dict[str, Any]
    versions: dict[str, str]
    precision_ran: str
    device_ran: str


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["speed"]
    old: _Side
    new: _Side
    decision: dict[str, Any]
    pairs: tuple[dict[str, Any], ...] = Field(min_length=2)


@dataclass(frozen=True)
class TwoRecords:
    """Two comparisons beside the same old engine: how much longer a call of the second's new side takes."""

    first: SpeedComparison
    second: SpeedComparison
    decision: Decision

    @property
    def status(self) -> Status:
        """`INCONCLUSIVE` where the pairs do not decide."""
        return self.decision.status or Status.INCONCLUSIVE

    def as_json(self) -> dict[str, Any]:
        """The judgement, and both records."""
        decision = {**asdict(self.decision), "status": self.status.value}
        return {"schema": SCHEMA, "kind": "speed records", "decision": decision} | {
            name: getattr(self, name).as_json() for name in ("first", "second")
        }


def load(path: Path) -> SpeedComparison:
    """The comparison that was kept in a file.

    Raises:
        RecordError: it is not there, cut short, of a newer schema, or its verdict is not that of its pairs.
    """
    data = read_json(path, _AGAIN)
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise RecordError(
            f"{path} is of schema {schema}; detgate {__version__} reads {SCHEMA}", f"update detgate, or {_AGAIN}"
        )
    try:
        kept = _Kept.model_validate(data)
        pairs = tuple(Pair.from_json(pair) for pair in kept.pairs)
    except ValidationError as error:
        raise RecordError(f"{path}: {first_fault(error)}", _AGAIN) from error
    except EvaluationError as error:
        raise RecordError(f"{path}: {error.cause}", _AGAIN) from error
    except (KeyError, TypeError) as error:
        raise RecordError(f"{path}: a pair of it lacks its times: {error}", _AGAIN) from error
    found = SpeedComparison(data["old"], data["new"], pairs, decide([pair.log_ratio for pair in pairs]))
    if found.status != kept.decision.get("status"):
        raise RecordError(
            f"{path} was edited or is not whole: its {len(pairs)} pairs say {found.status}, "
            f"its decision {kept.decision.get('status')}",
            f"copy the whole file again, or {_AGAIN}",
        )
    return found


def compare_records(first: Path, second: Path) -> TwoRecords:
    """Judge whether the second record's new side is slower than the first's, each beside the same old engine.

    Raises:
        RecordError: what `load` refuses, or the old sides are not the same engine.
        UsageError: they were measured on different devices, or with different batches.
    """
    one, other = load(first), load(second)
    require_comparable(one.old, other.old, (str(first), str(second)))
    _require_same_reference(one.old, other.old, first, second)
    ratios = [[pair.log_ratio for pair in found.pairs] for found in (one, other)]
    return TwoRecords(one, other, decide_between(*ratios))


def _require_same_reference(one: dict[str, Any], other: dict[str, Any], first: Path, second: Path) -> None:
    reference = [
        {"cell": side["cell"], "engine version": side["engine_version"], "engine file": side["artifacts"].get("engine")}
        for side in (one, other)
    ]
    if reference[0] != reference[1]:
        shown = [json.dumps(side) for side in reference]
        raise RecordError(
            f"{first} and {second} were measured beside different old engines: {shown[0]}; {shown[1]}",
            "measure both new engines beside the same old one, or the two beside each other: "
            "python -m harness compare --speed OLD NEW",
        )
