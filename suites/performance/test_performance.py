"""Every chosen cell is as fast as the accepted baseline of this device; where none is accepted, FPS is recorded."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fixtures import commands
from fixtures.cells import Conclude, Opened
from fixtures.timing import time_cell
from harness.environment import collect, differences
from harness.judge import baseline, speed
from harness.pipeline import Cell, Pipeline
from harness.report.results import performance_facts

pytestmark = pytest.mark.performance


def test_fps(
    cell: Cell,
    opened: Opened,
    pipeline: Pipeline,
    benchmark: BenchmarkFixture,
    conclude: Conclude,
    pytestconfig: pytest.Config,
) -> None:
    prepared, environment = opened.prepared, collect()
    recorded = baseline.load_recorded(pipeline.settings.baselines, cell.model)
    options = tuple(sorted(prepared.engine.flags().items()))
    key = baseline.SpeedKey(cell.id, prepared.source.batch, environment.fingerprint, options)
    accepted = recorded.find_speed(key)
    speeds = time_cell(benchmark, opened, pipeline.timing_images(prepared), accepted)
    measured = speeds.compute
    context = speed.Context(
        notes=speed.notes(
            prepared.start == "random weights",
            recorded.speed_elsewhere(key),
            measured,
            lambda other: differences(other, environment.device),
            differences(accepted.versions, environment.versions) if accepted and accepted.versions else (),
        ),
        rerun=commands.rerun(pytestconfig, cell, "performance"),
        accept=commands.accept(pytestconfig, cell, speed=True),
    )
    verdict = (
        speed.judge(cell.id, measured, accepted, context) if accepted else speed.record(cell.id, measured, context)
    )
    conclude(verdict, performance_facts(prepared, speeds, opened.precision_ran, opened.device))
