"""Takes a model file and weights; gives torch eager on the CPU, the reference every other engine is held to."""

import importlib.metadata
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.engines.base import (
    Capabilities,
    Engine,
    Images,
    Inspection,
    Layer,
    Maps,
    Session,
    Source,
    import_fault,
    opened,
)
from harness.model.export import raw_maps, run_module
from harness.model.mmdet import describe_head, load_config, load_module

if TYPE_CHECKING:
    from torch import nn

DTYPES = {"torch.float32": "fp32", "torch.float16": "fp16"}


class Torch(Engine):
    """torch eager: the same module that is exported, run layer by layer."""

    name = "torch"
    file_suffix = ".pth"
    verified = "CPU"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(computes={"fp32": "fp32"}, source="module", device="cpu", repeatable=True)

    def available(self) -> str | None:
        return import_fault("torch")

    @property
    def remedy(self) -> str:
        return "pip install -e ."

    def version(self) -> str:
        return importlib.metadata.version("torch")

    def build(self, source: Source, target: Path) -> None:
        import torch

        torch.save({"meta": {}, "state_dict": _module(source).state_dict()}, target)

    def open(self, source: Source, file: Path) -> Session:
        return _TorchSession(source, _module(source, file))


def _module(source: Source, file: Path | None = None) -> "nn.Module":
    config = load_config(source.spec, source.models_directory)
    path = file or (source.weights.path if source.weights else None)
    return load_module(source.spec, config, path)


class _TorchSession(Session):
    def __init__(self, source: Source, module: "nn.Module") -> None:
        super().__init__(source)
        self._head = describe_head(source.spec, load_config(source.spec, source.models_directory))
        self._module: nn.Module | None = module
        self._resident: Sequence[Any] | None = None

    @property
    def module(self) -> "nn.Module":
        return opened(self._module)

    def _infer(self, images: Images) -> Maps:
        return run_module(self.module, self._head, images)

    def prepare(self, images: Images) -> Callable[[], None]:
        import torch

        maps = raw_maps(self.module)
        self._resident = None  # of another call
        resident = torch.from_numpy(images)

        def call() -> None:
            with torch.inference_mode():
                self._resident = maps(resident)

        return call

    def read_back(self) -> Maps | None:
        if self._resident is None:
            return None
        names = self._head.output_names
        return {name: maps.numpy().copy() for name, maps in zip(names, self._resident, strict=True)}

    def inspect(self) -> Inspection:
        device = str(next(self.module.parameters()).device)
        return Inspection(device, convolution_layers(self.module, self.source.input_shape))

    def close(self) -> None:
        self._module = self._resident = None


def convolution_layers(module: "nn.Module", shape: tuple[int, int, int, int]) -> tuple[Layer, ...]:
    """The module's convolutions for images of `shape`, all calls of one summed; found without computing anything."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    work: dict[str, int] = {}
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, torch.nn.Conv2d)}

    def count(name: str) -> Callable[[torch.nn.Module, Any, torch.Tensor], None]:
        def hook(layer: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            work[name] = work.get(name, 0) + output.numel() * prod(layers[name].weight.shape[1:])

        return hook

    hooks = [layer.register_forward_hook(count(name)) for name, layer in layers.items()]
    parameter = next(module.parameters())
    try:
        with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True):
            raw_maps(module)(torch.empty(shape, dtype=parameter.dtype, device=parameter.device))
    finally:
        for hook in hooks:
            hook.remove()
    types = {name: str(layer.weight.dtype) for name, layer in layers.items()}
    return tuple(Layer(name, DTYPES.get(types[name], types[name]), work[name]) for name in work)
