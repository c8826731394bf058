"""Takes what a conformance check saw of an engine; gives `Finding`, and the verdict of a cell on it."""

import math
from dataclasses import dataclass

from harness.judge.verdict import Status, Verdict

HELD, NOT_HELD = "held", "not held"


@dataclass(frozen=True)
class Finding:
    """One promise of an engine, and whether it keeps it.

    check: its name in test ids. promise: what a sound engine does. figure, bound: what was seen and the most that is
        allowed, in `unit`; None where the answer is yes or no. detail: what was seen, in words.
    doubt: why a promise that is not held may be held on a quieter machine; empty where there is none.
    """

    check: str
    promise: str
    held: bool
    figure: float | None = None
    bound: float | None = None
    unit: str = ""
    detail: str = ""
    doubt: str = ""

    @property
    def seen(self) -> str:
        """The figure against its bound, and what is to be said of it."""
        figures = "" if self.figure is None else f"{self.figure:.3g} {self.unit}, at most {self.bound:g}"
        told = "; ".join(part for part in (figures, self.detail, self.doubt) if part)
        return told or (HELD if self.held else NOT_HELD)


def measured(check: str, promise: str, figure: float, bound: float, unit: str, detail: str = "") -> Finding:
    """A promise with a figure: held up to the bound; a figure that is no number is not."""
    return Finding(check, promise, math.isfinite(figure) and figure <= bound, figure, bound, unit, detail)


def verdict(finding: Finding, cell: str, rerun: str) -> Verdict:
    """PASS where the promise is held, INCONCLUSIVE where that it is not is in doubt, else INVALID.

    Args:
        rerun: the command that repeats this check alone.
    """
    broken = Status.INCONCLUSIVE if finding.doubt else Status.INVALID
    status, remedy = (Status.PASS, "") if finding.held else (broken, rerun)
    reason = f"{finding.promise}: {finding.seen}"
    return Verdict(cell, "conformance", finding.check, status, reason, finding.figure, finding.bound, remedy=remedy)
