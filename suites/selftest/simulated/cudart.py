"""Takes a simulated device; gives a simulated `cuda.cudart`: every argument checked, and calls that fail on request."""

from collections.abc import Callable
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from suites.selftest.simulated.device import Device, Misuse, OutOfMemory

NAME = "cuda.cudart"
Returned = tuple[Any, ...]


class cudaError_t(IntEnum):
    """Return codes, with the numbers of the CUDA runtime."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorIllegalAddress = 700


class cudaMemcpyKind(IntEnum):
    """Directions of a copy, with the numbers of the CUDA runtime."""

    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class Cudart:
    """The calls that an ixRT adapter needs. `failing` maps a call's name to the code it returns, or what it raises."""

    def __init__(self, device: Device, devices: int = 1) -> None:
        self.device = device
        self.devices = devices
        self.chosen: int | None = None
        self.failing: dict[str, cudaError_t | Exception] = {}
        self.failing_from: dict[str, int] = {}
        self.calls: list[str] = []

    def fail(self, name: str, how: cudaError_t | Exception, after: int = 0) -> None:
        """Let a call return a code, or raise, once it has worked `after` more times."""
        self.failing[name] = how
        self.failing_from[name] = self.calls.count(name) + after

    def module(self) -> ModuleType:
        """What `import cuda.cudart` gives."""
        made = ModuleType(NAME)
        vars(made).update(cudaError_t=cudaError_t, cudaMemcpyKind=cudaMemcpyKind)
        for name in dir(self):
            if name.startswith("cuda"):
                vars(made)[name] = self._call(name)
        return made

    def _call(self, name: str) -> Callable[..., Returned]:
        def call(*arguments: Any) -> Returned:
            self.calls.append(name)
            how = self.failing.get(name)
            if how is not None and self.calls.count(name) > self.failing_from[name]:
                if isinstance(how, Exception):
                    raise type(how)(*how.args)
                return (how, None) if name.startswith(("cudaMalloc", "cudaGet")) else (how,)
            return getattr(self, name)(*arguments)

        return call

    def cudaGetDeviceCount(self) -> Returned:
        return (cudaError_t.cudaSuccess, self.devices) if self.devices else (cudaError_t.cudaErrorNoDevice, 0)

    def cudaSetDevice(self, index: int) -> Returned:
        if not isinstance(index, int) or not 0 <= index < self.devices:
            return (cudaError_t.cudaErrorInvalidDevice,)
        self.chosen = index
        return (cudaError_t.cudaSuccess,)

    def cudaGetDeviceProperties(self, index: int) -> Returned:
        if not 0 <= index < self.devices:
            return (cudaError_t.cudaErrorInvalidDevice, None)
        return (cudaError_t.cudaSuccess, SimpleNamespace(name=self.device.name.encode() + b"\0"))

    def cudaMemGetInfo(self) -> Returned:
        self._require_chosen("cudaMemGetInfo")
        limit = self.device.memory_limit
        return (cudaError_t.cudaSuccess, limit - self.device.used, limit)

    def cudaMalloc(self, nbytes: int) -> Returned:
        self._require_chosen("cudaMalloc")
        try:
            return (cudaError_t.cudaSuccess, self.device.alloc(nbytes, "cudaMalloc"))
        except OutOfMemory:
            return (cudaError_t.cudaErrorMemoryAllocation, None)

    def cudaFree(self, address: int) -> Returned:
        self.device.free(address)
        return (cudaError_t.cudaSuccess,)

    def cudaMemcpy(self, target: Any, source: Any, nbytes: int, kind: cudaMemcpyKind) -> Returned:
        to_device = kind is cudaMemcpyKind.cudaMemcpyHostToDevice
        if not to_device and kind is not cudaMemcpyKind.cudaMemcpyDeviceToHost:
            raise Misuse(f"cudaMemcpy: wanted a direction of cudaMemcpyKind between host and device, found {kind!r}")
        host, address = (source, target) if to_device else (target, source)
        if not isinstance(host, np.ndarray) or isinstance(address, np.ndarray):
            raise Misuse(f"cudaMemcpy: {kind.name} of {type(source).__name__} to {type(target).__name__}")
        if nbytes != host.nbytes:
            raise Misuse(f"cudaMemcpy: wanted the {host.nbytes} bytes of the host array, found {nbytes}")
        if to_device:
            self.device.copy_in(address, host)
        else:
            self.device.copy_out(host, address)
        return (cudaError_t.cudaSuccess,)

    def cudaDeviceSynchronize(self) -> Returned:
        self.device.synchronise()
        return (cudaError_t.cudaSuccess,)

    def _require_chosen(self, call: str) -> None:
        if self.chosen is None:
            raise Misuse(f"{call} before cudaSetDevice: it would use whichever GPU comes first")
