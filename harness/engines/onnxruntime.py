"""Takes an ONNX graph; gives ONNX Runtime: the optimised graph as engine file, run on the CPU or through CUDA."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.engines.base import (
    Capabilities,
    Engine,
    Images,
    Inspection,
    Maps,
    Session,
    Source,
    first_line,
    import_fault,
)
from harness.errors import EngineError, Missing
from harness.model.staged_norm import staged_norm

if TYPE_CHECKING:
    import onnx
    import onnxruntime

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Without these, float32 convolutions compute in TF32, and what CUDA has no kernel for moves to the CPU unseen.
PROVIDER_OPTIONS = {"cpu": {}, "cuda": {"use_tf32": "0"}}
NO_CPU_FALLBACK = "session.disable_cpu_ep_fallback"
INSTALL_CUDA = "install the provider's libraries (CUDA, cuDNN), or ask for onnxruntime.provider=cpu"
DEVICES = {provider: device for device, provider in PROVIDERS.items()}


def refusals() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a graph or inputs that it does not take; these share no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
        ValueError,
    )


class OnnxRuntime(Engine):
    """ONNX Runtime. The provider is asked for by name and checked after opening: no silent fallback to the CPU."""

    name = "onnxruntime"
    file_suffix = ".onnx"
    verified = "CPU; CUDA: no"

    @property
    def capabilities(self) -> Capabilities:
        cuda = self.provider == "cuda"
        return Capabilities(
            computes={"fp32": "fp32", "fp16": "fp16" if cuda else "fp32", "int8": "int8"},
            source="graph",
            device="accelerator" if cuda else "cpu",
            int8_scheme="u8s8",
            options={"provider": "cpu (default) or cuda", "threads": "intra-op threads, default: all cores"},
        )

    @property
    def provider(self) -> str:
        return self.choice("provider", tuple(PROVIDERS))

    def available(self) -> str | None:
        wanted = PROVIDERS[self.provider]
        fault = import_fault("onnxruntime")
        if fault is not None:
            return fault
        import onnxruntime

        present = onnxruntime.get_available_providers()
        return None if wanted in present else f"onnxruntime has no {wanted} (it has {', '.join(present)})"

    @property
    def remedy(self) -> str:
        return (
            "pip uninstall -y onnxruntime && pip install onnxruntime-gpu" if self.provider == "cuda" else super().remedy
        )

    def version(self) -> str:
        # Asked of the module itself: it is published under many names (onnxruntime-gpu, onnxruntime-openvino, ...).
        fault = import_fault("onnxruntime")
        if fault is not None:
            raise Missing(fault, self.remedy)
        import onnxruntime

        return str(onnxruntime.__version__)

    def _options(self) -> "onnxruntime.SessionOptions":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.whole_number("threads", "0 means all cores") or 0
        if self.provider == "cuda":
            options.add_session_config_entry(NO_CPU_FALLBACK, "1")
        return options

    def _session(
        self, file: Path, options: "onnxruntime.SessionOptions", graph: bytes | None = None
    ) -> "onnxruntime.InferenceSession":
        """A session of `file`, or of what was made of it."""
        import onnxruntime

        wanted = PROVIDERS[self.provider]
        providers = [(wanted, PROVIDER_OPTIONS[self.provider])]
        try:
            session = onnxruntime.InferenceSession(graph or str(file), options, providers=providers)
        except refusals() as error:
            raise self._refused(file, error) from error
        if session.get_providers()[0] != wanted:
            raise EngineError(
                f"asked for {wanted}, onnxruntime fell back to {', '.join(session.get_providers())}",
                INSTALL_CUDA,
            )
        return session

    def build(self, source: Source, target: Path) -> None:
        import onnxruntime

        assert source.graph is not None
        options = self._options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(target)
        exact = self._exact(source.graph) if self.provider == "cpu" else None
        self._session(source.graph, options, exact)

    def _exact(self, graph: Path) -> bytes:
        """The graph with group norms that the CPU sums in stages.

        Its own adds squares one by one: PAA's scores are then off by 1.3e-5 to 2.2e-5, at the same speed.
        """
        import onnx
        from google.protobuf.message import DecodeError

        try:
            exact: bytes = staged_norm(onnx.load(graph)).SerializeToString()
            return exact
        except DecodeError as error:
            raise self._refused(graph, error) from error

    def _refused(self, file: Path, error: Exception) -> EngineError:
        alternative = f"; or {INSTALL_CUDA}" if self.provider == "cuda" else ""
        return EngineError(
            f"onnxruntime {self.version()} refused {file}: {first_line(error)}",
            f"build it again from a checked graph (remove the file, or leave --engine-file out){alternative}",
        )

    def flags(self) -> dict[str, str]:
        return {**super().flags(), **({"group_norm": "staged"} if self.provider == "cpu" else {})}

    def open(self, source: Source, file: Path) -> Session:
        import onnxruntime

        options = self._options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return _OnnxRuntimeSession(source, self._session(file, options), file, self.provider)


class _OnnxRuntimeSession(Session):
    def __init__(self, source: Source, session: "onnxruntime.InferenceSession", file: Path, device: str) -> None:
        super().__init__(source)
        self._session: onnxruntime.InferenceSession | None = session
        self._file = file
        self._device = device

    @property
    def session(self) -> "onnxruntime.InferenceSession":
        if self._session is None:
            raise EngineError("the session is closed", "open the engine again")
        return self._session

    def _infer(self, images: Images) -> Maps:
        names = list(self.source.shapes)
        missing = set(names) - {value.name for value in self.session.get_outputs()}
        if missing:
            raise EngineError(
                f"{self._file} lacks the outputs {', '.join(sorted(missing))}", "build it from this model's graph"
            )
        try:
            return dict(zip(names, self.session.run(names, {self.source.spec.input.name: images}), strict=True))
        except refusals() as error:
            raise EngineError(
                f"{self._file} does not take images {images.shape}: {first_line(error)}",
                "build it for this batch and input size",
            ) from error

    def prepare(self, images: Images) -> Callable[[], None]:
        import onnxruntime

        binding = self.session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy(images, self._device, 0)
        binding.bind_ortvalue_input(self.source.spec.input.name, value)
        for name, shape in self.source.shapes.items():
            out = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, self._device, 0)
            binding.bind_ortvalue_output(name, out)
        session = self.session

        def call() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return call

    def inspect(self) -> Inspection:
        import onnx

        providers = self.session.get_providers()
        graph = onnx.load(str(self._file)).graph
        return Inspection(DEVICES[providers[0]], self.source.layers(_convolution_types(graph)))

    def close(self) -> None:
        self._session = None


def _convolution_types(graph: "onnx.GraphProto") -> list[tuple[str, str]]:
    """Names of the convolutions of an optimised graph, without what the optimiser added to them, and their types."""
    import onnx

    names = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16"}
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    produced: dict[str, Any] = {output: node for node in graph.node for output in node.output}
    found: list[tuple[str, str]] = []
    for node in graph.node:
        if node.op_type == "QLinearConv":
            found.append((_original(node.name), "int8"))
        elif node.op_type in ("Conv", "FusedConv"):
            weight = node.input[1]
            found.append((_original(node.name), names.get(weights.get(weight, 0)) or _made_type(produced.get(weight))))
    return found


def _original(name: str) -> str:
    """The name of a node or output of the graph that the optimiser began with."""
    return re.sub(r"^(InsertedPrecisionFreeCast_)*(.*?)(_nchwc|_token_\d+)?$", r"\2", name)


def _made_type(node: Any) -> str:
    """Type of a weight that another node makes: dequantised or cast weights compute in fp32 unless cast to fp16."""
    import onnx

    if node is not None and node.op_type == "Cast":
        to = next(a.i for a in node.attribute if a.name == "to")
        return "fp16" if to == onnx.TensorProto.FLOAT16 else "fp32"
    return "fp32"
