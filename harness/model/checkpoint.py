"""Takes a checkpoint file in OpenMMLab form; gives its tensors, hash-checked, loaded into a module."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cache import sha256_of
from harness.errors import CheckpointError, Missing
from harness.model.registry import SHIPPED_BASELINES, ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

RANDOM_SEED = 20260101


@dataclass(frozen=True)
class Weights:
    """Weights of one model: a checked file, or seeded random values (`path` None) that say nothing of accuracy."""

    path: Path | None
    sha256: str

    @property
    def random(self) -> bool:
        """True when no checkpoint stands behind the figures."""
        return self.path is None


RANDOM_WEIGHTS = Weights(None, f"random-seed-{RANDOM_SEED}")


def find(spec: ModelSpec, directories: Sequence[Path], baselines: Path = SHIPPED_BASELINES) -> Weights:
    """The model's checkpoint in the first directory that has it, with its hash checked.

    Args:
        baselines: where `spec` is from; only the remedies need it.

    Raises:
        Missing: in none of the directories; the remedy fetches it.
        CheckpointError: found, but its SHA-256 is not the model file's.
    """
    for directory in directories:
        path = directory / spec.checkpoint.file
        if path.is_file():
            return _checked(spec, path, baselines)
    looked = ", ".join(str(d) for d in directories)
    raise Missing(
        f"checkpoint {spec.checkpoint.file} of '{spec.name}' not found in {looked}",
        _fetch_command(spec, directories[0], baselines),
    )


def _fetch_command(spec: ModelSpec, directory: Path, baselines: Path) -> str:
    if spec.checkpoint.url is None:
        return f"put the file at {directory / spec.checkpoint.file}, or give --checkpoints DIR"
    words = ["python", "-m", "harness", "fetch", spec.name, "--checkpoints", str(directory)]
    return shlex.join(words if baselines == SHIPPED_BASELINES else [*words, "--baselines", str(baselines)])


def _checked(spec: ModelSpec, path: Path, baselines: Path) -> Weights:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", f"chmod u+r {path}") from error
    if not found.startswith(spec.checkpoint.sha256):
        raise CheckpointError(
            f"{path}: wanted SHA-256 {spec.checkpoint.sha256}…, found {found[:16]}…: truncated, or another file",
            f"rm {shlex.quote(str(path))} && {_fetch_command(spec, path.parent, baselines)}",
        )
    return Weights(path, found)


def load_state_dict(path: Path) -> "dict[str, torch.Tensor]":
    """The tensors of a checkpoint file. Nothing in the file is executed (`weights_only=True`, nothing allow-listed).

    Raises:
        CheckpointError: truncated, holds other objects than tensors and plain data, or has no state dict.
    """
    import pickle

    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unsafe(path, error) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint: {(str(error) or type(error).__name__).splitlines()[0]}",
            f"remove {path} and fetch it again",
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(
            f"{path}: wanted 'state_dict' with tensors (OpenMMLab form), found {type(content).__name__}",
            "save it with torch.save({'meta': {}, 'state_dict': model.state_dict()}, FILE)",
        )
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _unsafe(path: Path, error: Exception) -> CheckpointError:
    named = re.search(r"(?:GLOBAL|global|class|Unsupported global:?)\s+['\"]?([A-Za-z_][\w.]*\.[\w.]+)", str(error))
    found = f"an object of type '{named.group(1)}'" if named else "objects that are not tensors, or a damaged pickle"
    strip = (
        "import torch; c = torch.load('IN.pth', weights_only=False); "
        "torch.save({'meta': {}, 'state_dict': c['state_dict']}, 'OUT.pth')"
    )
    return CheckpointError(
        f"{path} holds {found}; only tensors and plain data are loaded, because loading anything else can run code",
        f'if you made and trust this file, strip it: python -c "{strip}"',
    )


def load_into(module: "nn.Module", path: Path, name: str) -> None:
    """Load a checkpoint into `module`, all keys or nothing.

    Raises:
        CheckpointError: missing or unexpected keys, wrong shapes, or values that are not finite.
    """
    import torch

    state = load_state_dict(path)
    own = module.state_dict()
    missing = sorted(set(own) - set(state) - {k for k in own if k.endswith("num_batches_tracked")})
    unexpected = sorted(set(state) - set(own))
    shapes = sorted(k for k in set(own) & set(state) if own[k].shape != state[k].shape)
    for kind, keys in (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", shapes)):
        if keys:
            raise CheckpointError(
                f"{path} does not fit '{name}': {len(keys)} {kind} keys, first {', '.join(keys[:3])}",
                "use the checkpoint that belongs to the model file's config and overrides",
            )
    broken = [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise CheckpointError(f"{path}: NaN or Inf in {', '.join(broken[:3])}", f"remove {path} and fetch it again")
    module.load_state_dict(state, strict=False)
