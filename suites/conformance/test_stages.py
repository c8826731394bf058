"""No step on the way of a chosen cell, from torch to its engine, costs more than that step explains."""

import pytest

from fixtures import commands
from fixtures.cells import Conclude
from harness import chain
from harness.judge import stages
from harness.pipeline import Cell, Pipeline
from harness.report.results import stage_facts

pytestmark = pytest.mark.conformance


@pytest.fixture(scope="session")
def shared() -> chain.Shared:
    """What cells have in common on their way."""
    return chain.Shared()


def test_stages(
    cell: Cell, pipeline: Pipeline, shared: chain.Shared, conclude: Conclude, pytestconfig: pytest.Config
) -> None:
    pipeline.require(cell)
    hops = list(chain.measure(pipeline, cell, shared=shared))
    conclude(stages.judge(cell.id, hops, commands.blame(pytestconfig, cell)), stage_facts(hops))
