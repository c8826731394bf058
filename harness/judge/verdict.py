"""Takes figures and expectations of the other judge modules; gives `Verdict`, the one form in which a check ends."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal, Self

Kind = Literal["accuracy", "performance", "against", "conformance"]
# The check of a verdict that could not begin; in reasons it stands for all checks that lack the same.
NEEDS = "needs"
# The check of a verdict that stands for a fault of detgate itself.
INTERNAL_ERROR = "internal error"


class Status(StrEnum):
    """How a check ended; the words that tests, results and messages share."""

    PASS = "PASS"
    IMPROVED = "IMPROVED"
    RECORDED = "RECORDED"
    MISSING = "MISSING"
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"
    REGRESSED = "REGRESSED"


GREEN = frozenset({Status.PASS, Status.IMPROVED, Status.RECORDED})
# From harmless to grave; a cell shows the gravest of its checks.
GRAVITY = tuple(Status)


def gravest(statuses: list[Status]) -> Status:
    """The status a cell with these checks shows."""
    return max(statuses, key=GRAVITY.index)


@dataclass(frozen=True)
class Verdict:
    """One check of one cell.

    figure, expected: in the check's own unit (AP from 0 to 1, or images per second); None where there is none.
    tolerance: absolute AP, or a fraction of FPS.
    remedy: the command to run next, empty when the check is green.
    blocking: a MISSING that fails even where nothing is required (no accepted baseline).
    wrong_input: the cause is what the user handed in, not the engine: exit code 4 in place of 1.
    interval: of the change since an earlier run, 95 %, absolute AP; None where it was not computed.
    known: why this check is expected to fail, empty where it is not; then its failure does not count.
    """

    cell: str
    kind: Kind
    check: str
    status: Status
    reason: str
    figure: float | None = None
    expected: float | None = None
    tolerance: float | None = None
    remedy: str = ""
    blocking: bool = False
    wrong_input: bool = False
    known: str = ""
    interval: tuple[float, float] | None = None

    def fails(self, required: bool) -> bool:
        """True when the test must fail: worse, invalid or undecided; RECORDED and MISSING too when required."""
        if self.known:
            return False
        if self.status in (Status.RECORDED, Status.MISSING):
            return required or self.blocking
        return self.status not in GREEN

    def message(self) -> str:
        """One line of verdict, one of remedy."""
        line = f"{self.status} {self.cell} {self.check}: {self.reason}"
        return f"{line}\n  next: {self.remedy}" if self.remedy else line

    def as_json(self) -> dict[str, Any]:
        """Plain data, for results and for the way from an xdist worker to the controller."""
        return {**asdict(self), "status": self.status.value}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        interval = data["interval"] and tuple(data["interval"])  # JSON has lists
        return cls(**{**data, "status": Status(data["status"]), "interval": interval})
