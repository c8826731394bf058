"""Takes two sides; gives `SpeedComparison`: as many pairs of fresh processes as the decision needs, with a record."""

import json
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.environment import differences
from harness.errors import ResultsError, UsageError
from harness.files import write_atomically
from harness.judge.sequential import LOOKS, Decision, decide, sign_flip_p
from harness.judge.verdict import Status
from harness.measure.turns import PAIR_S, Pair, take_turns
from harness.sides.process import MODULE, Asked, Prepared, prepare

SCHEMA = 1

Tell = Callable[[str], None]


@dataclass(frozen=True)
class SpeedComparison:
    """How much longer a call of the new side takes; the facts of both sides and every pair are kept."""

    old: dict[str, Any]
    new: dict[str, Any]
    pairs: tuple[Pair, ...]
    decision: Decision

    @property
    def status(self) -> Status:
        """`INCONCLUSIVE` where the pairs ran out."""
        return self.decision.status or Status.INCONCLUSIVE

    def as_json(self) -> dict[str, Any]:
        """The record: what a later reader needs to judge the pairs again."""
        ratios = [pair.log_ratio for pair in self.pairs]
        decision = {**asdict(self.decision), "status": self.status.value, "p_sign_flip": sign_flip_p(ratios)}
        pairs = [pair.as_json() for pair in self.pairs]
        return {
            "schema": SCHEMA,
            "kind": "speed",
            "old": self.old,
            "new": self.new,
            "decision": decision,
            "pairs": pairs,
        }

    def save(self, path: Path) -> None:
        """Write the record.

        Raises:
            ResultsError: the path cannot be written.
        """
        try:
            write_atomically(path, json.dumps(self.as_json(), indent=1).encode())
        except OSError as error:
            raise ResultsError(
                f"cannot write {path}: {error.strerror}", "give a writable path: --pairs FILE"
            ) from error


def compare(old: Asked, new: Asked, tell: Tell, seconds: float = PAIR_S) -> SpeedComparison:
    """Build both sides, then measure pairs until the decision is made, at most 24.

    Args:
        seconds: of one pair's turns. tell: takes a line of progress.

    Raises:
        UsageError: a side cannot be built, or the two cannot be compared.
        EngineError: a side's process ended.
    """
    with tempfile.TemporaryDirectory(prefix="detgate-sides-") as directory:
        sides = []
        for name, asked in (("old", old), ("new", new)):
            tell(f"{name}: building {asked.label}")
            sides.append(prepare(asked, Path(directory) / name))
        require_comparable(sides[0].facts, sides[1].facts)
        return measure(sides[0], sides[1], tell, seconds)


def measure(old: Prepared, new: Prepared, tell: Tell, seconds: float = PAIR_S, module: str = MODULE) -> SpeedComparison:
    """Pairs of fresh processes of two prepared sides, until the decision is made.

    Args:
        module: what the new side's processes run.
    """
    pairs: list[Pair] = []
    decision = decide([])
    while decision.status is None and len(pairs) < LOOKS[-1]:
        with closing(old.start()) as one, closing(new.start(module)) as other:
            pairs.append(take_turns(one, other, new_first=len(pairs) % 2 == 1, seconds=seconds))
        decision = decide([pair.log_ratio for pair in pairs])
        tell(_progress(decision))
    return SpeedComparison(_facts(old), _facts(new), tuple(pairs), decision)


def require_comparable(
    old: dict[str, Any], new: dict[str, Any], names: tuple[str, str] = ("the old side", "the new one")
) -> None:
    """Refuse sides whose times mean different things.

    Raises:
        UsageError: another device, or another number of images in a call.
    """
    if old["fingerprint"] != new["fingerprint"]:
        changed = "; ".join(differences(old["device"], new["device"]))
        raise UsageError(
            f"{names[0]} and {names[1]} were measured on different devices ({changed})",
            "compare on one machine, with the same threads, power cap and clocks for both",
        )
    if old["batch"] != new["batch"]:
        raise UsageError(
            f"{names[0]} takes {old['batch']} images a call, {names[1]} {new['batch']}",
            "give both the same: --batch-size N",
        )


def _facts(side: Prepared) -> dict[str, Any]:
    return {"label": side.asked.label, **side.facts}


def _progress(decision: Decision) -> str:
    line = f"pair {decision.pairs:>2}: a call takes {decision.slow_down:+.2%}"
    if decision.pairs > 1:
        line += f" [{decision.low:+.2%}, {decision.high:+.2%}]"
    following = next((look for look in LOOKS if look > decision.pairs), None)
    return line if decision.status or following is None else f"{line}, next look after pair {following}"
