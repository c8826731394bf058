"""Takes an exported ONNX; gives it simplified, typed (fp32, fp16, int8) and with a fixed batch, each step checked."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from harness.errors import GraphError, Missing
from harness.model.export import GraphRunner
from harness.model.parity import Outputs, first_shift
from harness.tolerances import TOLERANCES, Step

if TYPE_CHECKING:
    import onnx

Int8Scheme = Literal["u8s8", "s8"]


def load(path: Path) -> "onnx.ModelProto":
    """An ONNX file, structurally checked.

    Raises:
        GraphError: not an ONNX model, or one that breaks ONNX's own rules.
    """
    import onnx
    from google.protobuf.message import DecodeError as ProtobufError

    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except (OSError, ProtobufError, onnx.checker.ValidationError, ValueError) as error:
        raise GraphError(
            f"{path} is not a usable ONNX model: {(str(error).strip() or repr(error)).splitlines()[0]}",
            "export it again; `python -c \"import onnx; onnx.checker.check_model('FILE')\"` shows the whole message",
        ) from error
    return model


def check_interface(
    model: "onnx.ModelProto", path: Path, input_name: str, size: tuple[int, ...], outputs: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a graph whose input and outputs are not the model's raw head maps, with a dynamic batch.

    Args:
        size: of one input, `(3, H, W)`. outputs: by name, the size of one image's map, `(C, h, w)`.

    Raises:
        GraphError: names what was wanted and what the file has.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in constants]
    inputs = [value.name for value in given]
    found = [value.name for value in model.graph.output]
    if inputs != [input_name] or sorted(found) != sorted(outputs):
        raise GraphError(
            f"{path}: wanted input '{input_name}' and outputs {', '.join(outputs)}; "
            f"found {', '.join(inputs)} and {', '.join(found[:20])}",
            "export the raw head maps (before decoding and NMS) under these names; "
            "a graph that detgate exports itself shows the form",
        )
    for value in (*given, *model.graph.output):
        _check_shape(value, path, {input_name: size, **outputs}[value.name])


def _check_shape(value: "onnx.ValueInfoProto", path: Path, size: tuple[int, ...]) -> None:
    found = [dim.dim_value or "?" for dim in value.type.tensor_type.shape.dim]
    if not found:  # outputs need not state a shape
        return
    if len(found) != 1 + len(size) or any(f not in (w, "?") for f, w in zip(found, ("?", *size), strict=True)):
        raise GraphError(
            f"{path}: '{value.name}': wanted shape [?, {', '.join(map(str, size))}], "
            f"found [{', '.join(map(str, found))}]",
            "export it for the model file's input size and classes, with dimension 0 dynamic (the batch)",
        )


def simplify(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """onnxsim: constants folded, batch norms fused, the batch still dynamic.

    Raises:
        GraphError: onnxsim failed, or its own check did.
    """
    try:
        import onnxsim
    except ImportError as error:
        raise Missing("onnxsim is not installed", "pip install onnxsim") from error
    try:
        simplified: onnx.ModelProto
        simplified, ok = onnxsim.simplify(model)
    except (RuntimeError, ValueError, TypeError) as error:
        raise GraphError(f"onnxsim failed: {error}", "check the graph with onnx.checker; update onnxsim") from error
    if not ok:
        raise GraphError("onnxsim's own check says that the graph changed", "report the graph to onnxsim")
    return simplified


def to_fp16(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Weights and arithmetic in float16, inputs and outputs in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = OnnxModel(convert_float_to_float16(_copy(model), keep_io_types=True))
    converted.topological_sort()  # the converter appends the casts of inputs behind their users
    typed: onnx.ModelProto = converted.model
    return typed


def to_int8(
    model: "onnx.ModelProto", calibration: Sequence[npt.NDArray[np.float32]], scheme: Int8Scheme
) -> "onnx.ModelProto":
    """Quantised statically as QDQ, per channel, in one of two schemes.

    Args:
        calibration: preprocessed photographs, each `[n, 3, H, W]`.
        scheme: `u8s8`: uint8 activations, int8 weights in reduced range, for CPUs, whose kernels else saturate; `s8`:
            int8 of both, symmetric (every zero point is 0), which is all that TensorRT takes.
    """
    import tempfile

    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    if not calibration:
        raise GraphError("int8 needs calibration images, found none", "restore fixtures/mini/data/images/calibration")
    input_name = model.graph.input[0].name

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[npt.NDArray[np.float32]] = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {input_name: batch}

    logging.getLogger().addFilter(_no_preprocessing_hint)
    try:
        with tempfile.TemporaryDirectory() as directory:
            target = Path(directory) / "int8.onnx"
            quantize_static(
                _copy(model),
                target,
                Images(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                reduce_range=scheme == "u8s8",
                activation_type=QuantType.QUInt8 if scheme == "u8s8" else QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                # TensorRT takes biases in float: ONNX Runtime would dequantise them from int32.
                extra_options={"ActivationSymmetric": scheme == "s8", "QuantizeBias": scheme == "u8s8"},
            )
            quantised = onnx.load(str(target))
    finally:
        logging.getLogger().removeFilter(_no_preprocessing_hint)
    return quantised


def _no_preprocessing_hint(record: logging.LogRecord) -> bool:
    # onnxruntime asks for its own shape-inference step, which onnxsim has already done
    return "pre-processing before quantization" not in record.getMessage()


def fix_batch(model: "onnx.ModelProto", batch: int) -> "onnx.ModelProto":
    """The same graph for exactly `batch` images per call; every other constant is independent of the batch."""
    from onnx import shape_inference

    fixed = _copy(model)
    constants = {tensor.name for tensor in fixed.graph.initializer}
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        if value.name not in constants:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    for value in fixed.graph.output:  # stated anew from the input by inference
        value.type.tensor_type.ClearField("shape")
    return shape_inference.infer_shapes(fixed, strict_mode=True)


def _copy(model: "onnx.ModelProto") -> "onnx.ModelProto":
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def checked(
    step: Step,
    before: "onnx.ModelProto",
    after: "onnx.ModelProto",
    images: npt.NDArray[np.float32],
    run_graph: GraphRunner,
) -> None:
    """Hold a step's result to the graph it came from, on real images `[N, 3, H, W]`.

    Raises:
        GraphError: names the step, the output and the figures.
    """
    _hold(step, run_graph(before, images), run_graph(after, images))


def check_batch(
    before: "onnx.ModelProto",
    after: "onnx.ModelProto",
    batch: int,
    images: npt.NDArray[np.float32],
    run_graph: GraphRunner,
) -> None:
    """Hold a graph for a fixed batch to the one for any batch, on `images` `[N, 3, H, W]` repeated to fill it.

    Raises:
        GraphError: a row of the batch differs from the same image alone.
    """
    rows = np.arange(batch) % len(images)
    reference: Outputs = {name: maps[rows] for name, maps in run_graph(before, images).items()}
    _hold("batch", reference, run_graph(after, np.ascontiguousarray(images[rows])))


def _hold(step: Step, reference: Outputs, outputs: Outputs) -> None:
    for name, values in reference.items():
        if not np.isfinite(values).all():
            raise GraphError(
                f"NaN or Inf in output '{name}' already before step '{step}': wanted finite values to compare with",
                "look at the weights, or at the ONNX given by --onnx: the step only shows it",
            )
    shift = first_shift(reference, outputs, TOLERANCES[step].relative)
    if shift is not None:
        raise GraphError(
            f"step '{step}' changed output '{shift.output}': wanted {shift.wanted}, found {shift.found}",
            "build no engine from this graph: report the step's library version, or exclude layers that overflow",
        )
