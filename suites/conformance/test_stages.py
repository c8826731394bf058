"""No step on the way of a chosen cell, from torch to its engine, costs more than that step explains."""

import pytest

from fixtures import commands
from fixtures.cells import Conclude
from harness import chain
from harness.judge import stages
from harness.pipeline import Cell, Pipeline
from harness.report.results import stage_facts

pytestmark = pytest.mark.conformance


def test_stages(cell: Cell, pipeline: Pipeline, conclude: Conclude, pytestconfig: pytest.Config) -> None:
    pipeline.require(cell)
    hops = list(chain.measure(pipeline, cell))
    conclude(stages.judge(cell.id, hops, commands.blame(pytestconfig, cell)), stage_facts(hops))
