"""Takes two sides whose calls can be timed; gives `Pair`: how much longer a call of the new one takes, in turns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol, Self

from harness.errors import EvaluationError

PAIR_S = 3.0
BLOCK_S = 0.1
MIN_ROUNDS = 10
WARM_UP_S = 0.5


class Side(Protocol):
    """One of two processes that are alive together; it computes only while it is asked to."""

    def warm_up(self, seconds: float) -> float:
        """Call for that long, at least once; gives the seconds of one warm call."""

    def block(self, calls: int) -> float:
        """Seconds of `calls` calls, one after the other."""


@dataclass(frozen=True)
class Pair:
    """Two fresh processes that took turns in blocks of calls.

    new_first: the new side began the first round; from round to round they change places.
    old_s, new_s: seconds of one call in each round `[R]`, R even.
    """

    new_first: bool
    old_s: tuple[float, ...]
    new_s: tuple[float, ...]

    def __post_init__(self) -> None:
        wrong = [value for value in (*self.old_s, *self.new_s) if not (math.isfinite(value) and value > 0)]
        counts = len(self.old_s), len(self.new_s)
        if wrong or not counts[0] or counts[0] % 2 or counts[0] != counts[1]:
            raise EvaluationError(
                "wanted a positive time of both sides in each of an even number of rounds, "
                f"found {counts[0]} and {counts[1]} rounds, {len(wrong)} times that are none",
                "measure the pair again",
            )

    @property
    def log_ratio(self) -> float:
        """Logarithm of new / old seconds of a call, positive where the new side is slower.

        The median over pairs of rounds, in which each side came first once: what drifts from call to call cancels.
        """
        ratios = [math.log(new / old) for old, new in zip(self.old_s, self.new_s, strict=True)]
        return median((one + other) / 2 for one, other in zip(ratios[::2], ratios[1::2], strict=True))

    def as_json(self) -> dict[str, Any]:
        """Plain data, for records."""
        return {"new_first": self.new_first, "old_s": list(self.old_s), "new_s": list(self.new_s)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        return cls(bool(data["new_first"]), tuple(data["old_s"]), tuple(data["new_s"]))


def take_turns(old: Side, new: Side, new_first: bool, seconds: float = PAIR_S) -> Pair:
    """Time both sides in rounds of one block each for `seconds`, after a warm-up.

    The sides change places from round to round, so that neither is always the one that finds the caches cold or the
    clock a little lower. A block lasts about a tenth of a second, or one call.
    """
    sides: Sequence[Side] = (old, new)
    one_call_s = max(side.warm_up(WARM_UP_S) for side in sides)
    calls = max(1, round(BLOCK_S / one_call_s))
    rounds = max(MIN_ROUNDS, 2 * round(seconds / (4 * calls * one_call_s)))
    spent: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        first = (turn + new_first) % 2
        for place in (first, 1 - first):
            spent[place].append(sides[place].block(calls) / calls)
    return Pair(new_first, tuple(spent[0]), tuple(spent[1]))
