"""Takes a layer and values of its tensors; gives their ranges: lowest, highest, Inf, NaN, zeros, how many saturate."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.blame.sides import Values

if TYPE_CHECKING:
    import onnx

LARGEST_FP16 = 65504.0


@dataclass(frozen=True)
class Range:
    """One tensor on one side.

    low, high: of its finite values. inf, nan, zeros, saturated: shares of all; saturated: at the ends of what float16
    or the layer's own 8-bit quantiser can hold, None where there is neither.
    """

    tensor: str
    side: str
    low: float
    high: float
    inf: float
    nan: float
    zeros: float
    saturated: float | None


def ranges(model: "onnx.ModelProto", values: Values, side: str) -> list[Range]:
    """Of each of `values`, tensors of the layer that `model` is."""
    limits = dict(_limits(model))
    return [_range(name, side, one, limits.get(name)) for name, one in values.items()]


def _range(
    tensor: str,
    side: str,
    values: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]",
    limits: tuple[float, float] | None,
) -> Range:
    wide = values.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    saturated = None
    if limits is not None:  # zeros of an unsigned tensor are at its low end, and none the worse for it
        saturated = float((((wide <= limits[0]) & (wide < 0)) | (wide >= limits[1])).mean())
    return Range(
        tensor=tensor,
        side=side,
        low=float(finite.min()) if finite.size else float("nan"),
        high=float(finite.max()) if finite.size else float("nan"),
        inf=float(np.isinf(wide).mean()),
        nan=float(np.isnan(wide).mean()),
        zeros=float((wide == 0).mean()),
        saturated=saturated,
    )


def _limits(model: "onnx.ModelProto") -> Iterator[tuple[str, tuple[float, float]]]:
    """Lowest and highest value that tensors of the layer can hold."""
    import onnx
    from onnx import numpy_helper

    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16:
            yield value.name, (-LARGEST_FP16, LARGEST_FP16)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and set(node.input[1:3]) <= set(constants):
            scale, zero = (numpy_helper.to_array(constants[name]).astype(np.float64) for name in node.input[1:3])
            held = np.iinfo(numpy_helper.to_array(constants[node.input[2]]).dtype)
            if scale.size == 1:
                yield node.input[0], (float((held.min - zero) * scale), float((held.max - zero) * scale))
