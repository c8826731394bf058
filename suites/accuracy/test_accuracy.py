"""Every chosen cell reaches its published or recorded AP and AP50, on detections of every image."""

import pytest

from fixtures import commands
from fixtures.cells import Conclude
from harness.accuracy_run import AccuracyRun
from harness.judge import accuracy, baseline
from harness.judge.accuracy import METRICS, Metric
from harness.pipeline import Cell, Pipeline
from harness.report.results import PROPOSAL, accuracy_facts

pytestmark = pytest.mark.accuracy


@pytest.mark.parametrize("metric", METRICS)
def test_map(
    cell: Cell,
    metric: Metric,
    accuracy_run: AccuracyRun,
    pipeline: Pipeline,
    conclude: Conclude,
    pytestconfig: pytest.Config,
) -> None:
    spec, data, metrics = pipeline.models[cell.model], accuracy_run.dataset, accuracy_run.metrics
    key = baseline.AccuracyKey(precision=cell.precision, dataset=data.sha256, weights=spec.checkpoint.sha256[:8])
    recorded = baseline.load_recorded(pipeline.settings.baselines, cell.model)
    expected = accuracy.expectation(spec, cell.precision, data.full_val2017, key, recorded)
    figure, facts = float(getattr(metrics, metric)), accuracy_facts(accuracy_run)
    facts[PROPOSAL] = accuracy.proposal(key, data.name, metrics.images, metrics.map_50_95, metrics.map_50)
    if expected is None:
        accept = commands.accept(pytestconfig, cell)
        conclude(accuracy.no_baseline(cell.id, metric, figure, f"{data.name}, {metrics.images} images", accept), facts)
    else:
        rerun = commands.rerun(pytestconfig, cell, "accuracy")
        conclude(accuracy.judge(cell.id, metric, figure, expected, rerun), facts)
