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
    """

    check: str
    promise: str
    held: bool
    figure: float | None = None
    bound: float | None = None
    unit: str = ""
    detail: str = ""

    @property
    def seen(self) -> str:
        """The figure against its bound, and what is to be said of it."""
        figures = "" if self.figure is None else f"{self.figure:.3g} {self.unit}, at most {self.bound:g}"
        return "; ".join(part for part in (figures, self.detail) if part) or (HELD if self.held else NOT_HELD)


def measured(check: str, promise: str, figure: float, bound: float, unit: str, detail: str = "") -> Finding:
    """A promise with a figure: held up to the bound; a figure that is no number is not."""
    return Finding(check, promise, math.isfinite(figure) and figure <= bound, figure, bound, unit, detail)


def verdict(finding: Finding, cell: str, rerun: str) -> Verdict:
    """PASS where the promise is held, else INVALID.

    Args:
        rerun: the command that repeats this check alone.
    """
    status, remedy = (Status.PASS, "") if finding.held else (Status.INVALID, rerun)
    reason = f"{finding.promise}: {finding.seen}"
    return Verdict(cell, "conformance", finding.check, status, reason, finding.figure, finding.bound, remedy=remedy)
