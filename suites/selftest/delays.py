"""A pytest plugin (`-p suites.selftest.delays`): every timed call of ONNX Runtime takes DETGATE_TEST_DELAY longer.

The delay is a fraction of the session's own call time, measured when the session is prepared, and spent busy.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from harness.engines import onnxruntime
from harness.measure.throughput import warm_up

VARIABLE = "DETGATE_TEST_DELAY"
CALIBRATION_S = 2.0
_prepare = onnxruntime._OnnxRuntimeSession.prepare


def _delayed(session: Any, images: np.ndarray) -> Callable[[], None]:
    call = _prepare(session, images)
    delay = float(os.environ[VARIABLE]) * warm_up(call, CALIBRATION_S)

    def slower() -> None:
        call()
        end = time.perf_counter() + delay
        while time.perf_counter() < end:
            pass

    return slower


def pytest_configure() -> None:
    onnxruntime._OnnxRuntimeSession.prepare = _delayed  # type: ignore[method-assign]
