"""Takes COCO metrics and what is expected of the cell; gives one verdict per metric, and the run's integrity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from harness.errors import InvalidRun
from harness.judge.baseline import Accuracy, AccuracyKey, Recorded
from harness.judge.verdict import Status, Verdict
from harness.model.registry import ModelSpec, Precision

Metric = Literal["map_50_95", "map_50"]
METRICS: tuple[Metric, ...] = ("map_50_95", "map_50")


@dataclass(frozen=True)
class Expectation:
    """What a run's AP must reach: the figure less the tolerance (absolute AP); `source` says where it is from."""

    map_50_95: float
    map_50: float
    tolerance: float
    source: str

    def of(self, metric: Metric) -> float:
        """The expected figure of a metric."""
        return self.map_50_95 if metric == "map_50_95" else self.map_50


def expectation(
    spec: ModelSpec, precision: Precision, full_val2017: bool, key: AccuracyKey, recorded: Recorded
) -> Expectation | None:
    """The published row on the full val2017, else the recorded figures of exactly this data set and weights."""
    tolerance = float(getattr(spec.tolerance, precision))
    row = spec.published_row(precision)
    if full_val2017 and row is not None:
        return Expectation(row.map_50_95, row.map_50, tolerance, f"published for {row.engine} {row.precision}")
    entry: Accuracy | None = recorded.find_accuracy(key)
    if entry is None:
        return None
    return Expectation(entry.map_50_95, entry.map_50, tolerance, f"recorded {entry.accepted.when[:10]}")


def judge(cell: str, metric: Metric, figure: float, expected: Expectation, rerun: str) -> Verdict:
    """AP within the tolerance of what is expected is PASS, below REGRESSED, above IMPROVED.

    Args:
        rerun: the command that repeats this cell.

    Raises:
        InvalidRun: the figure is not a number.
    """
    wanted, tolerance = expected.of(metric), expected.tolerance
    gap = round(figure - wanted, 9)  # 0.331 - 0.333 is a little under -0.002 in binary
    if not math.isfinite(figure):
        raise InvalidRun(f"{cell}: {metric} is {figure}", "the evaluation failed: report the detections that led to it")
    facts = f"{figure:.4f}, expected {wanted:.4f} ({expected.source}), tolerance {tolerance:g}"
    if gap < -tolerance:
        status, reason, remedy = Status.REGRESSED, f"{facts}: {-gap:.4f} lower", rerun
    elif gap > tolerance:
        status, reason, remedy = Status.IMPROVED, f"{facts}: {gap:.4f} higher", ""
    else:
        status, reason, remedy = Status.PASS, facts, ""
    return Verdict(cell, "accuracy", metric, status, reason, figure, wanted, tolerance, remedy)


def proposal(key: AccuracyKey, dataset_name: str, images: int, map_50_95: float, map_50: float) -> dict[str, Any]:
    """A recorded accuracy that lacks only its acceptance, as `baseline accept` takes it."""
    figures = {"map_50_95": round(map_50_95, 6), "map_50": round(map_50, 6)}
    return {**key.model_dump(), "dataset_name": dataset_name, "images": images, **figures}


def no_baseline(cell: str, metric: Metric, figure: float, dataset: str, accept: str) -> Verdict:
    """No accepted figure for this precision, data set and weights: fails, and proposes the one measured."""
    return Verdict(
        cell,
        "accuracy",
        metric,
        Status.MISSING,
        f"{figure:.4f}, but no baseline is accepted for this precision, weights and data set ({dataset})",
        figure=figure,
        remedy=accept,
        blocking=True,
    )


def require_every_image(cell: str, wanted: Sequence[int], processed: Sequence[int]) -> None:
    """Every image of the data set was processed, once.

    Raises:
        InvalidRun: names how many were lost or doubled.
    """
    lost = sorted(set(wanted) - set(processed))
    extra = len(processed) - len(set(processed) & set(wanted))
    if lost or extra or not wanted:
        raise InvalidRun(
            f"{cell}: wanted each of {len(wanted)} images once, found {len(processed)} processed, {len(lost)} lost"
            f"{' (first ' + ', '.join(map(str, lost[:3])) + ')' if lost else ''}, {extra} doubled or unknown",
            "the figures of this run mean nothing: mend the run and repeat it",
        )
