"""Takes an engine's named outputs; gives them back checked against what the head must produce."""

import functools
from typing import TYPE_CHECKING

import numpy as np

from harness.detect.decode.boxes import Maps
from harness.errors import DecodeError

if TYPE_CHECKING:
    from harness.model.mmdet import HeadSpec, InputSpec

EXPORT_AGAIN = "export the model with detgate, or name and shape the outputs of your own graph like that"


def output_shapes(head: "HeadSpec", input_spec: "InputSpec", batch: int) -> dict[str, tuple[int, ...]]:
    """Shape of every raw map for a batch, `(batch, channels, rows, columns)`, in the order of `output_names`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in head.output_names:
        stride = int(name.rpartition("_")[2])
        rows, columns = -(-input_spec.height // stride), -(-input_spec.width // stride)
        shapes[name] = (batch, head.channels(name), rows, columns)
    return shapes


@functools.cache
def _shapes_of_one(head: "HeadSpec", input_spec: "InputSpec") -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape of every raw map for one image; asked for at each decoding."""
    return tuple((name, shape[1:]) for name, shape in output_shapes(head, input_spec, 1).items())


def are_arrays(outputs: Maps) -> bool:
    """Whether the maps are numpy arrays; otherwise they are torch tensors, wherever those lie."""
    return isinstance(next(iter(outputs.values())), np.ndarray)


@functools.cache
def _type_name(dtype: object) -> str:
    """Of numpy's types and torch's alike; asked for each map of each image, and slow to be told."""
    return str(dtype).removeprefix("torch.")


def check_outputs(outputs: Maps, head: "HeadSpec", input_spec: "InputSpec", images: int) -> None:
    """Accept the raw maps of a batch of at least `images` rows, numpy arrays or torch tensors.

    Raises:
        DecodeError: names, shapes or types are not the head's.
    """
    _check_names(set(outputs), head)
    first = outputs[head.output_names[0]]
    batch = int(first.shape[0]) if first.ndim else 0
    if batch < images:
        raise DecodeError(
            f"wanted outputs for {images} images, found {batch} rows", "run the engine on the whole batch, then decode"
        )
    for name, of_one in _shapes_of_one(head, input_spec):
        found, shape = outputs[name], (batch, *of_one)
        if found.shape != shape:
            raise DecodeError(f"output '{name}': wanted shape {list(shape)}, found {list(found.shape)}", EXPORT_AGAIN)
        dtype = _type_name(found.dtype)
        if dtype not in ("float32", "float16"):
            raise DecodeError(
                f"output '{name}': wanted float32 or float16, found {dtype}",
                "let the engine convert its outputs to float32 (an int8 graph ends in DequantizeLinear)",
            )
        if isinstance(found, np.ndarray) != isinstance(first, np.ndarray):
            raise DecodeError(
                f"output '{name}': wanted a {type(first).__name__} like the others, found a {type(found).__name__}",
                "hand in all maps as numpy arrays, or all as torch tensors",
            )


def _check_names(found: set[str], head: "HeadSpec") -> None:
    missing = [name for name in head.output_names if name not in found]
    surplus = sorted(found - set(head.output_names))
    if missing or surplus:
        raise DecodeError(
            f"wanted the outputs {', '.join(head.output_names)}; missing: {', '.join(missing) or 'none'}; "
            f"not known: {', '.join(surplus) or 'none'}",
            EXPORT_AGAIN,
        )
