"""Every chosen cell's engine keeps what it owes its caller: interface, refusals, memory, its file."""

import pytest

from fixtures.conformance import Examine
from harness.conformance.contract import CHECKS
from harness.pipeline import Cell

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("check", CHECKS)
def test_contract(cell: Cell, check: str, examine: Examine) -> None:
    examine(check, CHECKS[check])
