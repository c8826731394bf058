"""Takes a measured throughput and the accepted speed of the same device and batch; gives the verdict on FPS."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.judge.baseline import Speed
from harness.judge.verdict import Status, Verdict
from harness.measure.throughput import Throughput

# Two-sided 95 % of a normal distribution.
CONFIDENCE = 1.96


@dataclass(frozen=True)
class Context:
    """What the message says beside the figure: conditions of the measurement, and the command that repeats it."""

    notes: tuple[str, ...]
    rerun: str
    accept: str


def notes(
    random_weights: bool,
    elsewhere: Speed | None,
    measured: Throughput,
    device_differences: Callable[[Mapping[str, Any]], list[str]],
    version_differences: Sequence[str] = (),
) -> tuple[str, ...]:
    """What stands beside any FPS: random weights, how the speed accepted on another device compares, and new versions.

    Versions are what is under test: they are named, and the speed is judged all the same.
    """
    found = ["RANDOM WEIGHTS: speed only"] if random_weights else []
    if elsewhere is not None and (changed := device_differences(elsewhere.device)):
        found.append(
            f"{measured.fps / elsewhere.fps:.2f} x the speed accepted on another device ({'; '.join(changed)})"
        )
    if version_differences:
        found.append(f"versions changed since it was accepted ({'; '.join(version_differences)})")
    return tuple(found)


def too_noisy(measured: Throughput, tolerance: float) -> bool:
    """The median is known less well than half the tolerance: a verdict would be a coin toss."""
    return uncertainty(measured) > tolerance / 2


def uncertainty(measured: Throughput) -> float:
    """Half-width of the 95 % interval of the median, as a fraction of it; infinite when there were too few calls."""
    error = measured.standard_error_of_median_relative
    return float("inf") if error is None else CONFIDENCE * error


def judge(cell: str, measured: Throughput, accepted: Speed, context: Context) -> Verdict:
    """FPS at least the accepted one less its tolerance is PASS, less is REGRESSED, noise is INVALID."""
    ratio = measured.fps / accepted.fps
    facts = (
        f"{measured.fps:.2f} FPS, expected {accepted.fps:.2f} (accepted {accepted.accepted.when[:10]}), "
        f"tolerance {accepted.tolerance:.0%}"
    )
    if too_noisy(measured, accepted.tolerance):
        status = Status.INVALID
        reason = f"{facts}: the median is uncertain by ±{uncertainty(measured):.1%}, wanted at most half the tolerance"
    elif ratio < 1 - accepted.tolerance:
        status, reason = Status.REGRESSED, f"{facts}: {1 - ratio:.1%} slower"
    elif ratio > 1 + accepted.tolerance:
        status, reason = Status.IMPROVED, f"{facts}: {ratio - 1:.1%} faster"
    else:
        status, reason = Status.PASS, facts
    remedy = context.rerun if status in (Status.INVALID, Status.REGRESSED) else ""
    reason = "; ".join((reason, *context.notes))
    return Verdict(cell, "performance", "fps", status, reason, measured.fps, accepted.fps, accepted.tolerance, remedy)


def record(cell: str, measured: Throughput, context: Context) -> Verdict:
    """No accepted speed on this device and batch: the figure is kept, nothing is judged."""
    parts = [f"{measured.fps:.2f} FPS, no speed accepted on this device at batch {measured.batch}"]
    return Verdict(
        cell,
        "performance",
        "fps",
        Status.RECORDED,
        "; ".join((*parts, *measured.noise, *context.notes)),
        figure=measured.fps,
        remedy=context.accept,
    )
