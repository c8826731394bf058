"""Takes a graph and images; gives what ONNX Runtime makes of them on the CPU: each step on the way is held to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.engines.base import Images, Maps, import_fault
from harness.engines.onnxruntime import refusals
from harness.errors import GraphError, Missing
from harness.model.staged_norm import staged_norm

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


def run_graph(model: "onnx.ModelProto", images: Images) -> Maps:
    """Run an ONNX model on the CPU once, for checks between steps; outputs in the graph's order.

    Raises:
        GraphError, Missing: as `open_graph`.
    """
    return open_graph(model)(images)


def open_graph(model: "onnx.ModelProto") -> Callable[[Images], Maps]:
    """What runs an ONNX model on the CPU on one batch of images `[N, 3, H, W]` after another: its outputs by name.

    Group norms run in stages: ONNX Runtime's own kernel is further off at full size (1.2e-5, PAA) than a layer may be.

    Raises:
        GraphError: ONNX Runtime refuses the graph; when called, the graph does not take these images.
        Missing: ONNX Runtime, which runs these checks, is not installed.
    """
    require_graph_checks()
    import onnxruntime
    from onnx import shape_inference

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # A graph says nothing of its inner shapes as it is exported, and only a norm of known length is taken apart.
    exact = staged_norm(shape_inference.infer_shapes(model, data_prop=True)).SerializeToString()
    with _refused("the graph"):
        session = onnxruntime.InferenceSession(exact, options, providers=["CPUExecutionProvider"])
    names, image = [output.name for output in session.get_outputs()], session.get_inputs()[0].name

    def run(images: Images) -> Maps:
        with _refused(f"the graph on {len(images)} images"):
            return dict(zip(names, session.run(names, {image: images}), strict=True))

    return run


@contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except refusals() as error:
        raise GraphError(
            f"onnxruntime does not run {what}: {str(error).splitlines()[0]}",
            "export it again with a dynamic batch and operators that ONNX Runtime has",
        ) from error
