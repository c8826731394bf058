"""Takes an ONNX graph; gives ONNX Runtime: on the CPU and CUDA the optimised graph as engine file, on TensorRT itself.

TensorRT's provider compiles the graph each time a session is opened. ONNX Runtime cannot write down what it compiled
(microsoft/onnxruntime#5840), and its engine cache is not rebuilt when a model or a library changes, so that is off.
Without its flags for fp16 and int8 it builds strongly typed networks of TensorRT 10 and newer: the graph's types hold.
"""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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
    opened,
)
from harness.engines.option import Option
from harness.errors import EngineError, Missing
from harness.model.graph import Int8Scheme
from harness.model.staged_norm import staged_norm

if TYPE_CHECKING:
    import onnx
    import onnxruntime

NO_CPU_FALLBACK = "session.disable_cpu_ep_fallback"
INSTALL_GPU = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
# TensorRT computes float32 in TF32 unless this is 0, and its provider has no option of its own
# (microsoft/onnxruntime#26029). Libraries read it once, so it has to be set before Python starts.
TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
SWITCH_OFF_TF32 = f"export {TF32_OVERRIDE}=0"

# Given though off is the default, for variables of the environment (ORT_TENSORRT_FP16_ENABLE) would switch them on.
# Every release takes "False", only some take "0".
TENSORRT_OFF = ("trt_fp16_enable", "trt_int8_enable", "trt_engine_cache_enable", "trt_timing_cache_enable")


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's execution providers.

    name: ONNX Runtime's. device: where its tensors live, as ONNX Runtime calls it. libraries: what it loads besides.
    fp16: the type that the convolutions of an fp16 graph compute in. options: what it is opened with.
    compiles: it replaces the graph's nodes by kernels of its own, of which ONNX Runtime knows nothing.
    """

    name: str
    device: Literal["cpu", "cuda"]
    fp16: str
    int8_scheme: Int8Scheme
    libraries: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    compiles: bool = False


PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider", "cpu", "fp32", "u8s8"),
    # float32 convolutions compute in TF32 unless told otherwise.
    "cuda": Provider("CUDAExecutionProvider", "cuda", "fp16", "u8s8", "CUDA, cuDNN", {"use_tf32": "0"}),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        "cuda",
        "fp16",
        "s8",
        "CUDA, cuDNN, the TensorRT that onnxruntime-gpu was built for",
        dict.fromkeys(TENSORRT_OFF, "False"),
        compiles=True,
    ),
}


def refusals() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a graph or inputs that it does not take; these share no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.EPFail,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
        RuntimeError,  # a provider whose libraries do not load, or that does not know an option
        ValueError,
    )


class OnnxRuntime(Engine):
    """ONNX Runtime. The provider is asked for by name and checked after opening: no silent fallback to another."""

    name = "onnxruntime"
    file_suffix = ".onnx"
    verified = "CPU; CUDA and TensorRT: no"
    known_options: ClassVar = {
        "provider": Option("the execution provider, that one alone", "cpu", tuple(PROVIDERS)),
        "threads": Option("intra-op threads; 0 means all cores", "0"),
    }

    @property
    def capabilities(self) -> Capabilities:
        provider = self.provider
        return Capabilities(
            computes={"fp32": "fp32", "fp16": provider.fp16, "int8": "int8"},
            source="graph",
            device="cpu" if provider.device == "cpu" else "accelerator",
            int8_scheme=provider.int8_scheme,
            inspection=not provider.compiles,
            repeatable=provider.device == "cpu",
        )

    @property
    def provider(self) -> Provider:
        """What the option `provider` names."""
        return PROVIDERS[self.option("provider")]

    def available(self) -> str | None:
        fault = self._fault()
        return fault[0] if fault else None

    @property
    def remedy(self) -> str:
        fault = self._fault()
        return fault[1] if fault else self._install

    @property
    def _install(self) -> str:
        return super().remedy if self.provider.device == "cpu" else INSTALL_GPU

    def _fault(self) -> tuple[str, str] | None:
        """What is missing here and the command that mends it."""
        wanted = self.provider.name
        fault = import_fault("onnxruntime")
        if fault is not None:
            return fault, self._install
        import onnxruntime

        present = onnxruntime.get_available_providers()
        if wanted not in present:
            return f"onnxruntime has no {wanted} (it has {', '.join(present)})", self._install
        tf32 = os.environ.get(TF32_OVERRIDE, "")
        if self.provider.compiles and tf32 != "0":
            return f"{wanted} computes float32 in TF32: wanted {TF32_OVERRIDE}=0, found '{tf32}'", SWITCH_OFF_TF32
        return None

    def version(self) -> str:
        # Asked of the module itself: it is published under many names (onnxruntime-gpu, onnxruntime-openvino, ...).
        fault = import_fault("onnxruntime")
        if fault is not None:
            raise Missing(fault, self._install)
        import onnxruntime

        return str(onnxruntime.__version__)

    def _options(self) -> "onnxruntime.SessionOptions":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.number("threads") or 0
        if self.provider.device != "cpu":
            options.add_session_config_entry(NO_CPU_FALLBACK, "1")
        if self.takes_turns:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def _session(
        self, file: Path, options: "onnxruntime.SessionOptions", graph: bytes | None = None
    ) -> "onnxruntime.InferenceSession":
        """A session of `file`, or of what was made of it."""
        import onnxruntime

        provider = self.provider
        try:
            # Its own fallback, which opens another session on the CPU, hides the reason that it fell back for.
            session = onnxruntime.InferenceSession(
                graph or str(file), options, providers=[(provider.name, dict(provider.options))], enable_fallback=0
            )
        except refusals() as error:
            raise self._refused(file, error) from error
        if session.get_providers()[0] != provider.name:
            raise EngineError(
                f"asked for {provider.name}, onnxruntime fell back to {', '.join(session.get_providers())}",
                self._install_libraries,
            )
        return session

    def build(self, source: Source, target: Path) -> None:
        import onnxruntime

        assert source.graph is not None
        if self.provider.compiles:
            shutil.copyfile(source.graph, target)
            return
        options = self._options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(target)
        exact = self._exact(source.graph) if self._sums_in_stages else None
        self._session(source.graph, options, exact)

    @property
    def _sums_in_stages(self) -> bool:
        return self.provider.device == "cpu"

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
        alternative = f"; or {self._install_libraries}" if self.provider.libraries else ""
        return EngineError(
            f"onnxruntime {self.version()} refused {file}: {first_line(error)}",
            f"build it again from a checked graph (remove the file, or leave --engine-file out){alternative}",
        )

    @property
    def _install_libraries(self) -> str:
        return f"install the provider's libraries ({self.provider.libraries}), or ask for onnxruntime.provider=cpu"

    def flags(self) -> dict[str, str]:
        return {**super().flags(), **({"group_norm": "staged"} if self._sums_in_stages else {})}

    def open(self, source: Source, file: Path) -> Session:
        import onnxruntime

        options = self._options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return _OnnxRuntimeSession(source, self._session(file, options), file, self.provider)


class _OnnxRuntimeSession(Session):
    def __init__(self, source: Source, session: "onnxruntime.InferenceSession", file: Path, provider: Provider) -> None:
        super().__init__(source)
        self._session: onnxruntime.InferenceSession | None = session
        self._file = file
        self._provider = provider
        self._binding: onnxruntime.IOBinding | None = None

    @property
    def session(self) -> "onnxruntime.InferenceSession":
        return opened(self._session)

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
        value = onnxruntime.OrtValue.ortvalue_from_numpy(images, self._provider.device, 0)
        binding.bind_ortvalue_input(self.source.spec.input.name, value)
        for name, shape in self.source.shapes.items():
            out = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, self._provider.device, 0)
            binding.bind_ortvalue_output(name, out)
        session, self._binding = self.session, binding

        def call() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return call

    def read_back(self) -> Maps | None:
        if self._binding is None:
            return None
        return dict(zip(self.source.shapes, self._binding.copy_outputs_to_cpu(), strict=True))

    def inspect(self) -> Inspection:
        """The device of the provider, which was checked when the session was opened, and what the file says of types.

        Where the provider compiled the graph, its types are what was asked for: nothing is known of what ran.
        """
        import onnx

        opened(self._session)
        if self._provider.compiles:
            return Inspection(self._provider.device, None)
        graph = onnx.load(str(self._file)).graph
        return Inspection(self._provider.device, self.source.layers(_convolution_types(graph)))

    def close(self) -> None:
        self._session = self._binding = None


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
