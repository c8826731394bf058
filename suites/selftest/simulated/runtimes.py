"""Takes a name; gives a machine with that simulated runtime: what all of them have in common, for tests of them all."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.engines import tensorrt
from suites.selftest.simulated import ixrt, tvm
from suites.selftest.simulated.tensorrt import V10, V11, simulated_tensorrt

# runtime -> the engine that it is for
RUNTIMES: Mapping[str, str] = {"tensorrt 10": "tensorrt", "tensorrt 11": "tensorrt", "ixrt": "ixrt", "igie": "igie"}


@contextmanager
def installed(runtime: str, folder: Path) -> Iterator[None]:
    """The runtime, importable until the block ends; then nothing may be left on its device.

    Args:
        folder: where its package seems to lie.
    """
    if runtime == "ixrt":
        with ixrt.installed(folder) as here:
            yield
            here.require_clean()
    elif runtime == "igie":
        with tvm.installed() as there:
            yield
            there.require_clean()
    else:
        version = V10 if runtime == "tensorrt 10" else V11
        with pytest.MonkeyPatch.context() as patch, simulated_tensorrt(patch, version) as machine:
            yield
            tensorrt._primary_context.cache_clear()
            machine.driver.require_clean()
