"""A pytest plugin (`-p suites.selftest.delays`): every timed call of ONNX Runtime takes DETGATE_TEST_DELAY longer.

The delay is that of `slow_side`, calibrated on each call.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from harness.engines import onnxruntime
from suites.selftest.slow_side import delayed

_prepare = onnxruntime._OnnxRuntimeSession.prepare


def _delayed(session: Any, images: np.ndarray) -> Callable[[], None]:
    return delayed(_prepare(session, images))


def pytest_configure() -> None:
    onnxruntime._OnnxRuntimeSession.prepare = _delayed  # type: ignore[method-assign]
