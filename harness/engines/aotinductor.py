"""Takes a model file and weights; gives AOTInductor: the module compiled ahead of time by torch, on the CPU or CUDA.

It needs nothing but torch and, to build, a C++ compiler. On CUDA: unverified on hardware.
"""

import importlib.metadata
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.engines.base import (
    Capabilities,
    Engine,
    Images,
    Inspection,
    Layer,
    Maps,
    Session,
    Source,
    first_line,
    import_fault,
    opened,
)
from harness.engines.option import Option
from harness.engines.torch import DTYPES
from harness.errors import EngineError
from harness.model.export import raw_maps
from harness.model.mmdet import load_config, load_module

if TYPE_CHECKING:
    import torch
    from torch import nn

LAYERS, COMPILED_FOR = "detgate_layers", "AOTI_DEVICE_KEY"
"""Keys under which the package carries what its convolutions compute in, and the device that it was compiled for."""


class AotInductor(Engine):
    """torch.export and AOTInductor, from the same module that is exported to ONNX; images in and maps out are fp32."""

    name = "aotinductor"
    file_suffix = ".pt2"
    verified = "CPU; CUDA: no"
    known_options: ClassVar = {"device": Option("where it runs", "cpu", ("cpu", "cuda"))}

    @property
    def capabilities(self) -> Capabilities:
        # On a CPU torch's half-precision kernels convert around float32 ones: neither native nor of use to anybody.
        cpu = self.device == "cpu"
        return Capabilities(
            computes={"fp32": "fp32"} if cpu else {"fp32": "fp32", "fp16": "fp16"},
            source="module",
            device="cpu" if cpu else "accelerator",
            repeatable=cpu,
        )

    @property
    def device(self) -> str:
        """Where it runs."""
        return self.option("device")

    def available(self) -> str | None:
        fault = import_fault("torch")
        if fault is not None:
            return fault
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            return f"aotinductor builds with a C++ compiler, found no {compiler}"
        if self.device == "cuda":
            import torch

            return None if torch.cuda.is_available() else f"torch {self.version()} finds no CUDA device"
        return None

    @property
    def remedy(self) -> str:
        if self.device == "cuda":
            return "install torch's CUDA build and the driver, or ask for aotinductor.device=cpu"
        return "apt install g++, or set CXX to your compiler"

    def version(self) -> str:
        return importlib.metadata.version("torch")

    def build(self, source: Source, target: Path) -> None:
        import torch
        from torch._inductor import aoti_compile_and_package

        self._keep_float32()
        # Made before: what is wrong with the checkpoint or config is said by their own errors.
        module, images = _typed(source, self.device), torch.zeros(source.input_shape, device=self.device)
        try:
            with torch.no_grad(), _quiet():
                program = torch.export.export(module, (images,), strict=False)
                layers = json.dumps([vars(layer) for layer in _layers(program)])
                aoti_compile_and_package(
                    program, package_path=str(target), inductor_configs={"aot_inductor.metadata": {LAYERS: layers}}
                )
        except Exception as error:  # torch's compilers raise errors of many unrelated kinds
            raise EngineError(
                f"aotinductor (torch {self.version()}) did not compile {source.spec.name}: {first_line(error)}",
                "see that the C++ compiler works (g++ --version) and the disk has room; TORCH_LOGS=inductor tells more",
            ) from error

    def open(self, source: Source, file: Path) -> Session:
        from torch._inductor import aoti_load_package

        self._keep_float32()
        try:
            with _quiet():
                package = aoti_load_package(str(file))
            told = package.get_metadata()
            layers, compiled_for = tuple(Layer(**layer) for layer in json.loads(told[LAYERS])), told[COMPILED_FOR]
        except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"aotinductor (torch {self.version()}) cannot open {file}: {first_line(error)}",
                "build it again: the file is damaged, of another version or not detgate's (remove it, or leave "
                "--engine-file out)",
            ) from error
        return _AotInductorSession(source, package, Inspection(compiled_for, layers), self.device)

    def device_bytes(self) -> int | None:
        """Bytes of the GPU's memory that are in use, by whatever process; None on the CPU.

        Raises:
            EngineError: the device failed.
        """
        import torch

        if self.device != "cuda":
            return None
        try:
            torch.cuda.empty_cache()  # what torch keeps for its next tensors is nobody's
            free, total = torch.cuda.mem_get_info()
        except RuntimeError as error:
            raise EngineError(
                f"the GPU does not tell how much of its memory is in use: {first_line(error)}",
                "see with nvidia-smi whether the GPU is well, then run the same command again",
            ) from error
        return total - free

    def _keep_float32(self) -> None:
        """No TF32 on CUDA, in this process: compiled kernels and cuDNN, when called, ask these switches."""
        import torch

        if self.device == "cuda":
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings about torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _typed(source: Source, device: str) -> "nn.Module":
    """The module in the source's precision, float32 on both ends."""
    import torch

    config = load_config(source.spec, source.models_directory)
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[source.precision]
    weights = source.weights.path if source.weights else None
    maps = raw_maps(load_module(source.spec, config, weights)).to(device, dtype)

    class Typed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = maps

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(level.float() for level in self.maps(images.to(dtype)))

    return Typed().eval()


def _layers(program: "torch.export.ExportedProgram") -> list[Layer]:
    """The convolutions of an exported program, with the type of what they compute."""
    found = []
    for node in program.graph.nodes:
        if node.op == "call_function" and "conv" in str(node.target):
            output, weight = node.meta["val"], node.args[1].meta["val"]
            dtype = DTYPES.get(str(output.dtype), str(output.dtype))
            found.append(Layer(node.name, dtype, output.numel() * prod(weight.shape[1:])))
    return found


class _AotInductorSession(Session):
    def __init__(self, source: Source, package: Any, ran: Inspection, device: str) -> None:
        super().__init__(source)
        self._package = package
        self._ran = ran
        self._device = device
        self._resident: list[torch.Tensor] | None = None

    @property
    def package(self) -> Any:
        return opened(self._package)

    def _run(self, images: "torch.Tensor") -> "list[torch.Tensor]":
        import torch

        try:
            with torch.inference_mode():
                return list(self.package(images))
        except RuntimeError as error:
            raise EngineError(
                f"aotinductor failed on images {tuple(images.shape)}: {first_line(error)}",
                "build it for this batch and input size; leave more memory, or set a smaller --batch-size",
            ) from error

    def _infer(self, images: Images) -> Maps:
        import torch

        return self._named(self._run(torch.from_numpy(images).to(self._device)))

    def _named(self, maps: "list[torch.Tensor]") -> Maps:
        """On the host, by output name.

        Raises:
            EngineError: another number of outputs than the model's.
        """
        names = list(self.source.shapes)
        if len(maps) != len(names):
            raise EngineError(
                f"wanted {len(names)} outputs, found {len(maps)}", "the engine is another model's: mend --engine-file"
            )
        return {name: level.cpu().numpy() for name, level in zip(names, maps, strict=True)}

    def prepare(self, images: Images) -> Callable[[], None]:
        import torch

        opened(self._package)
        self._resident = None  # of another call
        resident = torch.from_numpy(images).to(self._device)
        cuda = self._device == "cuda"

        def call() -> None:
            self._resident = self._run(resident)
            if cuda:
                torch.cuda.synchronize()

        return call

    def read_back(self) -> Maps | None:
        return None if self._resident is None else self._named(self._resident)

    def memory(self) -> int | None:
        import torch

        return torch.cuda.memory_allocated() if self._device == "cuda" else None

    def inspect(self) -> Inspection:
        opened(self._package)
        return self._ran

    def close(self) -> None:
        self._package = self._resident = None
