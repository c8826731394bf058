"""A side of a speed comparison (`harness.sides.child`) whose calls take DETGATE_TEST_DELAY longer, as a fraction.

The delay is calibrated on the call itself when the process starts, and spent busy.
"""

import os
import sys
import time
from collections.abc import Callable

from harness.measure.throughput import warm_up
from harness.sides.child import main

VARIABLE = "DETGATE_TEST_DELAY"
CALIBRATION_S = 2.0

Call = Callable[[], None]


def delayed(call: Call) -> Call:
    delay = float(os.environ[VARIABLE]) * warm_up(call, CALIBRATION_S)

    def slower() -> None:
        call()
        end = time.perf_counter() + delay
        while time.perf_counter() < end:
            pass

    return slower


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], slower=delayed))
