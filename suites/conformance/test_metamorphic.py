"""Every chosen cell's outputs follow when its images change as they must, without any ground truth."""

import pytest

from fixtures.conformance import Examine
from harness.conformance.metamorphic import CHECKS
from harness.pipeline import Cell

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("check", CHECKS)
def test_metamorphic(cell: Cell, check: str, examine: Examine) -> None:
    examine(check, CHECKS[check])
