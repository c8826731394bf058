"""Every chosen cell is no worse than its record in the run that --against names; without it nothing is collected."""

import pytest

from fixtures.cells import Conclude
from fixtures.gate import gate_of
from harness.accuracy_run import AccuracyRun
from harness.judge import previous
from harness.judge.previous import Pair
from harness.pipeline import Cell
from harness.report.results import accuracy_facts

pytestmark = [pytest.mark.accuracy, pytest.mark.against]


@pytest.mark.parametrize("check", previous.CHECKS)
def test_against(
    cell: Cell, check: str, pair: Pair, accuracy_run: AccuracyRun, conclude: Conclude, pytestconfig: pytest.Config
) -> None:
    # Each test stands alone, so p is corrected for the number of cells as Holm's first step does: Bonferroni's.
    tests = len(gate_of(pytestconfig).against)
    conclude(previous.judge(pair, check, tests), accuracy_facts(accuracy_run))
