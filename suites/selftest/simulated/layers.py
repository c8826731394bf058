"""Takes an ONNX graph; gives what TensorRT's inspector would say of its layers, in the words of version 10 or 11."""

from typing import Any

import onnx
from onnx import TensorProto, shape_inference

SEPARATOR = "\x1f"
TYPES = {TensorProto.FLOAT: "Float", TensorProto.FLOAT16: "Half", TensorProto.INT8: "Int8"}
SENTENCES = {
    "Float": "Row major linear FP32 format",
    "Half": "Channel major FP16 format where channel % 8 == 0",
    "Int8": "Thirty-two wide channel vectorized row major Int8 format",
}
FUSED = ("Relu", "Add")


def layer_information(model: onnx.ModelProto, major: int, tf32: bool, detailed: bool) -> dict[str, Any]:
    """`{"Layers": [...], ...}`; a convolution and the pointwise node behind it are one layer, others are their own."""
    types = _types(model)
    producers = {name: node for node in model.graph.node for name in node.output}
    consumers = {name: node for node in model.graph.node for name in node.input}
    layers: list[dict[str, Any]] = []
    fused: set[str] = set()
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or node.name in fused:
            continue
        names = [node.name]
        if node.op_type == "Conv":
            behind = consumers.get(node.output[0])
            if behind is not None and behind.op_type in FUSED and behind.name not in fused:
                names.append(behind.name)
                fused.add(behind.name)
        kind = _computes(node, types, producers)
        if node.op_type == "Conv" and not any(layer["LayerType"] == "Reformat" for layer in layers):
            layers.append(
                _layer(f"Reformatting CopyNode for Input Tensor 0 to {node.name}", "Reformat", names, "Float")
            )
        layer = _layer(" + ".join(names), "CaskConvolution" if node.op_type == "Conv" else node.op_type, names, kind)
        if node.op_type == "Conv":
            layer |= {"ParameterType": "Convolution", "Weights": {"Type": kind, "Count": 1}}
            layer["TacticName"] = _tactic(kind, tf32)
        layers.append(layer)
    told: list[Any] = [_in_words_of(major, layer) for layer in layers] if detailed else [one["Name"] for one in layers]
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    return {"Layers": told, **({"Bindings": names} if major < 11 else {"I/O Tensors": [{"Name": n} for n in names]})}


def _types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = shape_inference.infer_shapes(model).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in inferred.initializer}


def _computes(node: onnx.NodeProto, types: dict[str, int], producers: dict[str, onnx.NodeProto]) -> str:
    """The type of the values that a node reads; int8 where both sides of a convolution come from dequantised int8."""
    read = [name for name in node.input[:2] if name]
    sources = [producers.get(name) for name in read]
    if node.op_type == "Conv" and all(s is not None and s.op_type == "DequantizeLinear" for s in sources):
        return "Int8"
    return TYPES.get(types.get(read[0], 0), "Float") if read else "Float"


def _tactic(kind: str, tf32: bool) -> str:
    operands = {"Float": "tf32f32" if tf32 else "f32f32", "Half": "f16f32", "Int8": "i8i32"}[kind]
    stored = {"Float": "f32f32", "Half": "f16f16", "Int8": "i8f32"}[kind]
    return f"sm80_xmma_fprop_implicit_gemm_{stored}_{operands}_f32_nhwckrsc_nhwc_tilesize64x32x64"


def _layer(name: str, kind: str, names: list[str], reads: str) -> dict[str, Any]:
    metadata = SEPARATOR.join(f"[ONNX Layer: {one}]" for one in names)
    return {"Name": name, "LayerType": kind, "Inputs": [{"Name": "x", "Type": reads}], "Metadata": metadata}


def _in_words_of(major: int, layer: dict[str, Any]) -> dict[str, Any]:
    """Version 10 describes a tensor's format and type in one sentence, 11 in two fields and names few kernels."""
    reads = layer["Inputs"][0]["Type"]
    fields = {"Format/Datatype": SENTENCES[reads]} if major < 11 else {"Format": "kLINEAR", "DataType": reads}
    kept = {k: v for k, v in layer.items() if k != "TacticName" or major < 11 or "tf32" in v}
    return {**kept, "Inputs": [{"Name": "x", **fields}]}
