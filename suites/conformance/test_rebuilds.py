"""Every chosen cell, built `--rebuilds N` times from nothing, stays as good and as fast; else nothing is collected."""

import pytest

from fixtures.conformance import Conclusion
from harness.conformance.rebuilds import CHECKS, Builds
from harness.pipeline import Cell

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("check", CHECKS)
def test_rebuilds(cell: Cell, check: str, builds: Builds, conclusion: Conclusion) -> None:
    conclusion(CHECKS[check](builds))
