"""Takes a graph and images; gives what ONNX Runtime makes of them on the CPU: each step on the way is held to it."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness.engines.base import Images, import_fault
from harness.engines.onnxruntime import refusals
from harness.errors import GraphError, Missing

if TYPE_CHECKING:
    import onnx

GRAPH_CHECKS_REMEDY = "pip install -e '.[onnxruntime]'"


def require_graph_checks() -> None:
    """ONNX Runtime, which runs each graph when it is made, is here.

    Raises:
        Missing: it is not, and so no engine can be built from a graph.
    """
    fault = import_fault("onnxruntime")
    if fault is not None:
        raise Missing(f"{fault}: it checks every graph that engines are built from", GRAPH_CHECKS_REMEDY)


def run_graph(model: "onnx.ModelProto", images: Images) -> dict[str, npt.NDArray[np.float32]]:
    """Run an ONNX model on the CPU, for checks between steps; outputs in the graph's order.

    Raises:
        GraphError: ONNX Runtime refuses the graph, or the graph does not take these images.
        Missing: ONNX Runtime, which runs these checks, is not installed.
    """
    require_graph_checks()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))
    except refusals() as error:
        raise GraphError(
            f"onnxruntime does not run the graph on {len(images)} images: {str(error).splitlines()[0]}",
            "export it again with a dynamic batch and operators that ONNX Runtime has",
        ) from error
