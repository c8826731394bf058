"""Takes the last results and a reason; gives accepted figures: of one cell, or of every cell that improved."""

import fnmatch
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import BaselineError, UsageError
from harness.judge import baseline
from harness.judge.baseline import Accuracy, AccuracyKey, SpeedKey
from harness.judge.record import EnvironmentResult
from harness.judge.verdict import Status
from harness.model.registry import ModelSpec, load_models
from harness.report.history import spread_from
from harness.report.results import CellResult, Results, load

METRICS = ("map_50_95", "map_50")


def accept_speed(baselines: Path, results: Path, cell: str, reason: str, history: Path | None) -> str:
    """Accept the FPS of the last run for a cell on this device.

    Args:
        history: runs of the same engine file on this device: the median of their FPS is accepted, and their spread
            decides how far another run may be below.

    Raises:
        BaselineError: no such figure, too noisy a one, too few runs, or no reason.
        ResultsError, SpecError: a file cannot be read.
    """
    found = load(results)
    result = next((c for c in found.cells if c.id == cell), None)
    if result is None or result.performance is None or result.performance.fps is None:
        raise BaselineError(f"{results} has no speed of cell '{cell}'", "run `pytest -m performance` for it first")
    return f"accepted {_accept_speed(baselines, found.environment, result, reason, history)}"


def _accept_speed(
    baselines: Path, environment: EnvironmentResult, result: CellResult, reason: str, history: Path | None
) -> str:
    assert result.performance is not None
    spread, told, fps = None, "", result.performance.fps
    if history is not None:
        spread, runs = spread_from(history, result, environment.fingerprint)
        fps = statistics.median(runs)
        told = f" (median of {spread.processes} runs, spread {spread.deviation:.1%})"
    figures = {
        "cell": result.id,
        "batch": result.batch,
        "fingerprint": environment.fingerprint,
        "device": environment.device,
        "versions": environment.versions,
        "fps": fps,
        "options": result.options,
    }
    uncertainty = result.performance.uncertainty
    entry = baseline.accept_speed(baselines, result.model, figures, uncertainty, reason, spread)
    previous = entry.accepted.previous
    old = f"{previous['fps']:.2f} -> " if previous else ""
    return f"{result.id}: {old}{entry.fps:.2f} FPS{told} at batch {entry.batch}, tolerance {_percent(entry.tolerance)}"


def _percent(fraction: float) -> str:
    return f"{fraction * 100:.3g}%"


def ratchet(
    baselines: Path, results: Path, patterns: Sequence[str], reason: str, speed: bool, history: Path | None
) -> list[str]:
    """Accept the figures of every cell whose verdict is IMPROVED; gives a line for each. No figure gets worse.

    Args:
        patterns: of cell ids; all cells without one.

    Raises:
        UsageError: a pattern matches no cell of the results.
        BaselineError: no reason, or a speed that is too noisy.
        ResultsError, SpecError: a file cannot be read.
    """
    found, models = load(results), load_models(baselines)
    baseline.require_reason(reason)
    for pattern in patterns:
        if not fnmatch.filter([cell.id for cell in found.cells], pattern):
            raise UsageError(f"'{pattern}' matches no cell of {results}", "see `python -m harness baseline diff`")
    part = "performance" if speed else "accuracy"
    better = [
        cell
        for cell in found.cells
        if (not patterns or any(fnmatch.fnmatchcase(cell.id, pattern) for pattern in patterns))
        and getattr(cell, part) is not None
        and getattr(cell, part).status is Status.IMPROVED
    ]
    if speed:
        return [_accept_speed(baselines, found.environment, cell, reason, history) for cell in better]
    first_of = {(cell.model, cell.precision, cell.dataset): cell for cell in reversed(better)}
    chosen = [cell for cell in better if cell in first_of.values()]  # engines share an accuracy: once is enough
    return [_ratchet_accuracy(baselines, found, cell, models[cell.model], reason) for cell in chosen]


def accuracy_key(cell: CellResult, spec: ModelSpec) -> AccuracyKey | None:
    """What the cell's accuracy is recorded under; None where it was measured on no data."""
    if cell.dataset is None:
        return None
    return AccuracyKey(precision=cell.precision, dataset=cell.dataset.sha256, weights=spec.checkpoint.sha256[:8])


def speed_key(cell: CellResult, fingerprint: str) -> SpeedKey:
    """What the cell's speed is recorded under."""
    return SpeedKey(cell.id, cell.batch or 0, fingerprint, tuple(sorted(cell.options.items())))


def _ratchet_accuracy(baselines: Path, found: Results, cell: CellResult, spec: ModelSpec, reason: str) -> str:
    """One baseline holds for all engines: it rises to the lowest figure of those that ran, never above."""
    assert cell.dataset is not None
    key = accuracy_key(cell, spec)
    assert key is not None
    if cell.dataset.full_val2017 and spec.published_row(cell.precision):
        return f"{cell.id}: judged by its published row, which no acceptance changes"
    old = baseline.load_recorded(baselines, cell.model).find_accuracy(key)
    if old is None:
        raise BaselineError(
            f"{cell.id} is IMPROVED, but {baselines} has no accepted figure for its data and weights",
            "give the --baselines that the run was judged by, or run `pytest -m accuracy` again",
        )
    sharing = [
        other
        for other in found.cells
        if other.model == cell.model
        and accuracy_key(other, spec) == key
        and other.accuracy is not None
        and other.accuracy.map_50_95 is not None
    ]
    new = {name: max(getattr(old, name), round(_lowest(sharing, name), 6)) for name in METRICS}
    group = f"{cell.model} {cell.precision} on {old.dataset_name}"
    engines = ", ".join(other.engine for other in sharing)
    if all(new[name] == getattr(old, name) for name in METRICS):
        return f"{group}: stays at AP {old.map_50_95:.4f}, for not all of {engines} are better"
    figures: dict[str, Any] = old.model_dump(exclude={"accepted"}) | new
    baseline.accept_accuracy(baselines, cell.model, cell.id, figures, reason)
    return f"{group}: {_arrows(old, new)}{f' (the lowest of {engines})' if len(sharing) > 1 else ''}"


def _lowest(cells: Sequence[CellResult], metric: str) -> float:
    return min(float(getattr(cell.accuracy, metric)) for cell in cells)


def _arrows(old: Accuracy, new: dict[str, float]) -> str:
    names = {"map_50_95": "AP", "map_50": "AP50"}
    return ", ".join(f"{names[name]} {getattr(old, name):.4f} -> {value:.4f}" for name, value in new.items())
