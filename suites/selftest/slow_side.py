"""A side of a speed comparison (`harness.sides.child`) whose calls take DETGATE_TEST_DELAY longer, as a fraction.

The delay is calibrated on each call and spent busy. What it came to is measured by another clock than the one that the
harness times with, and written to DETGATE_TEST_DELAY_REPORT, where that is set, when the process ends.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from harness.sides.child import main

VARIABLE = "DETGATE_TEST_DELAY"
REPORT = "DETGATE_TEST_DELAY_REPORT"
CLOCK = time.CLOCK_MONOTONIC_RAW
"""That of the processor, which no time server corrects."""

Call = Callable[[], None]


class Delayed:
    """A call that takes `fraction` longer than it did."""

    def __init__(self, call: Call, fraction: float) -> None:
        self._call, self._fraction = call, fraction
        self._ratios: list[float] = []

    def __call__(self) -> None:
        before_ns = time.clock_gettime_ns(CLOCK)
        start = time.perf_counter()
        self._call()
        end = start + (1 + self._fraction) * (time.perf_counter() - start)
        between_ns = time.clock_gettime_ns(CLOCK)
        while time.perf_counter() < end:
            pass
        after_ns = time.clock_gettime_ns(CLOCK)
        self._ratios.append((after_ns - before_ns) / max(1, between_ns - before_ns))

    @property
    def realised(self) -> float:
        """How much longer a call took, as a fraction: the median over all calls."""
        return median(self._ratios) - 1


def delayed(call: Call) -> Delayed:
    """The call, longer by the fraction that the environment names."""
    return Delayed(call, float(os.environ[VARIABLE]))


def run(arguments: list[str]) -> int:
    """The side's process; leaves the report."""
    made: list[Delayed] = []

    def slower(call: Call) -> Call:
        made.append(delayed(call))
        return made[-1]

    code = main(arguments, slower=slower)
    if made and (report := os.environ.get(REPORT)):
        Path(report).write_text(json.dumps(made[-1].realised), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
