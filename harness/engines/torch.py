"""Takes a model file and weights; gives torch eager on the CPU, the reference every other engine is held to."""

import importlib.metadata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.engines.base import Capabilities, Engine, Images, Inspection, Maps, Session, Source, import_fault
from harness.errors import EngineError
from harness.model.export import raw_maps, run_module
from harness.model.mmdet import describe_head, load_config, load_module

if TYPE_CHECKING:
    from torch import nn

DTYPES = {"torch.float32": "fp32", "torch.float16": "fp16"}


class Torch(Engine):
    """torch eager: the same module that is exported, run layer by layer."""

    name = "torch"
    file_suffix = ".pth"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(computes={"fp32": "fp32"}, source="module", device="cpu")

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

    @property
    def module(self) -> "nn.Module":
        if self._module is None:
            raise EngineError("the session is closed", "open the engine again")
        return self._module

    def _infer(self, images: Images) -> Maps:
        return run_module(self.module, self._head, images)

    def prepare(self, images: Images) -> Callable[[], None]:
        import torch

        maps = raw_maps(self.module)
        resident = torch.from_numpy(images)

        def call() -> None:
            with torch.inference_mode():
                maps(resident)

        return call

    def inspect(self) -> Inspection:
        import torch

        layers = [m for m in self.module.modules() if isinstance(m, torch.nn.Conv2d)]
        counts = Counter(DTYPES.get(str(layer.weight.dtype), str(layer.weight.dtype)) for layer in layers)
        return Inspection(str(layers[0].weight.device), dict(counts))

    def close(self) -> None:
        self._module = None
