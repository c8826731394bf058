"""Takes the hops of a cell's way; gives the first that breaks, and a verdict that names it."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.judge.verdict import Status, Verdict
from harness.measure.hops import Hop
from harness.tolerances import TOLERANCES

CHECK = "stages"


@dataclass(frozen=True)
class Break:
    """What a hop costs too much of: `figure` and `bound` in the unit that `reason` names; None where there is none."""

    hop: Hop
    reason: str
    figure: float | None = None
    bound: float | None = None


def first_break(hops: Sequence[Hop]) -> Break | None:
    """Of the hops in order, the first that costs more than its step explains."""
    return next((found for found in map(_break, hops) if found is not None), None)


def _break(hop: Hop) -> Break | None:
    allowed, worst = TOLERANCES[hop.step], hop.worst
    if hop.broken:
        return Break(hop, hop.broken)
    if worst is not None and not worst.relative <= allowed.relative:
        error = f"output '{worst.output}' is {worst.relative:.2g} off (relative L2), tolerance {allowed.relative:g}"
        return Break(hop, error, worst.relative, allowed.relative)
    if hop.change is not None and hop.change < -allowed.map_50_95:
        return Break(hop, f"AP {hop.change:+.4f}, tolerance {allowed.map_50_95:g}", hop.change, allowed.map_50_95)
    if hop.matched is not None and hop.matched < allowed.matched:
        kept = f"{hop.matched:.1%} of the confident boxes are still there, wanted at least {allowed.matched:.0%}"
        return Break(hop, kept, hop.matched, allowed.matched)
    return None


def judge(cell: str, hops: Sequence[Hop], blame: str) -> Verdict:
    """PASS where every hop stays within what its step explains, else INVALID by the first that does not.

    Args:
        blame: the command that looks for the layer.
    """
    found = first_break(hops)
    if found is None:
        worst = max((hop.worst.relative for hop in hops if hop.worst), default=0.0)
        return Verdict(cell, "conformance", CHECK, Status.PASS, f"{len(hops)} hops, the largest error {worst:.2g}")
    reason = f"{found.hop.name} is the first of {len(hops)} hops that breaks: {found.reason}"
    return Verdict(cell, "conformance", CHECK, Status.INVALID, reason, found.figure, found.bound, remedy=blame)
