"""Takes an ONNX graph; gives OpenVINO: its compiled blob as engine file, and each node's type. GPU and NPU: untried."""

import importlib.metadata
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

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
from harness.errors import EngineError
from harness.model.registry import Precision

if TYPE_CHECKING:
    import openvino

WITHOUT_BIAS = "/WithoutBiases"
"""What OpenVINO adds to the name of a convolution whose bias it split off."""
DEVICES = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
HINTS: dict[Precision, str] = {"fp32": "f32", "fp16": "f16", "int8": "f32"}
# OpenVINO's names of execution types -> ours; u8 and i8 are both 8-bit integer arithmetic.
DTYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8"}


class OpenVino(Engine):
    """OpenVINO. float32 graphs are held to float32: its own default is bfloat16 where the CPU has it."""

    name = "openvino"
    file_suffix = ".blob"
    verified = "CPU; GPU and NPU: no"
    known_options: ClassVar = {
        "device": Option("where it runs", "cpu", tuple(DEVICES)),
        "threads": Option("inference threads on the CPU; 0 means all cores", "0"),
    }

    @property
    def capabilities(self) -> Capabilities:
        cpu = self.device == "cpu"
        return Capabilities(
            computes={"fp32": "fp32", "fp16": "fp32" if cpu else "fp16", "int8": "int8"},
            source="graph",
            device="cpu" if cpu else "accelerator",
            int8_scheme="u8s8",
            repeatable=cpu,
        )

    @property
    def device(self) -> str:
        """Where it runs."""
        return self.option("device")

    def available(self) -> str | None:
        fault = import_fault("openvino")
        if fault is not None:
            return fault
        import openvino

        present = openvino.Core().available_devices
        wanted = DEVICES[self.device]
        # Several GPUs are named GPU.0, GPU.1.
        if any(found.partition(".")[0] == wanted for found in present):
            return None
        return f"openvino finds no {wanted} (it finds {', '.join(present) or 'nothing'})"

    def version(self) -> str:
        return importlib.metadata.version("openvino")

    @property
    def remedy(self) -> str:
        return "install the device's driver for OpenVINO" if self.device != "cpu" else super().remedy

    def _config(self, precision: Precision) -> dict[str, str]:
        threads = self.number("threads")
        cpu = self.device == "cpu"
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32" if cpu else HINTS[precision]}
        return config | ({"INFERENCE_NUM_THREADS": str(threads)} if cpu and threads else {})

    def build(self, source: Source, target: Path) -> None:
        import openvino

        assert source.graph is not None
        core = openvino.Core()
        try:
            compiled = core.compile_model(
                core.read_model(str(source.graph)), DEVICES[self.device], self._config(source.precision)
            )
        except RuntimeError as error:
            raise EngineError(
                f"openvino {self.version()} refused {source.graph}: {first_line(error)}",
                "check the graph with onnx.checker; see which operator the message names",
            ) from error
        blob = compiled.export_model()
        target.write_bytes(blob.getvalue() if isinstance(blob, io.BytesIO) else blob)

    def open(self, source: Source, file: Path) -> Session:
        import openvino

        try:
            compiled = openvino.Core().import_model(
                io.BytesIO(file.read_bytes()), DEVICES[self.device], self._config(source.precision)
            )
        except (RuntimeError, OSError) as error:
            raise EngineError(
                f"openvino {self.version()} cannot open {file}: {first_line(error)}",
                "build it again: the file is damaged or of another version (remove it, or leave --engine-file out)",
            ) from error
        return _OpenVinoSession(source, compiled)


class _OpenVinoSession(Session):
    def __init__(self, source: Source, compiled: "openvino.CompiledModel") -> None:
        super().__init__(source)
        self._compiled: openvino.CompiledModel | None = compiled
        self._resident: openvino.InferRequest | None = None

    @property
    def compiled(self) -> "openvino.CompiledModel":
        return opened(self._compiled)

    def _request(self, images: Images) -> "openvino.InferRequest":
        import openvino

        request = self.compiled.create_infer_request()
        try:
            request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
        except RuntimeError as error:
            raise EngineError(
                f"the engine does not take images {images.shape}: {first_line(error)}",
                "build it for this batch and input size",
            ) from error
        return request

    def _infer(self, images: Images) -> Maps:
        request = self._request(images)
        try:
            request.infer()
        except RuntimeError as error:
            raise EngineError(
                f"openvino failed on images {images.shape}: {first_line(error)}",
                "see which operator the message names; leave more memory, or set a smaller --batch-size",
            ) from error
        return self._maps(request)

    def _maps(self, request: "openvino.InferRequest") -> Maps:
        """Views of the request's own memory, by output name.

        Raises:
            EngineError: an output of the model is not there.
        """
        outputs = {name: port for port in self.compiled.outputs for name in port.get_names()}
        missing = [name for name in self.source.shapes if name not in outputs]
        if missing:
            raise EngineError(f"the engine lacks the outputs {', '.join(missing)}", "build it from this model's graph")
        # Each call has a request of its own, whose memory lives as long as these views of it do.
        return {name: request.get_tensor(outputs[name]).data for name in self.source.shapes}

    def prepare(self, images: Images) -> Callable[[], None]:
        self._resident = request = self._request(images)

        def call(_kept: Images = images) -> None:
            request.infer(share_outputs=True)  # which only points to the images: they live as long as this call

        return call

    def read_back(self) -> Maps | None:
        if self._resident is None:
            return None
        return {name: maps.copy() for name, maps in self._maps(self._resident).items()}

    def inspect(self) -> Inspection:
        found: list[tuple[str, str]] = []
        for node in self.compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            if "Convolution" in str(info["layerType"].astype(str)):
                precision = str(info["runtimePrecision"].astype(str)).lower()
                names = str(info["originalLayersNames"].astype(str)).split(",")
                found += [(name.removesuffix(WITHOUT_BIAS), DTYPES.get(precision, precision)) for name in names]
        return Inspection(self.compiled.get_property("EXECUTION_DEVICES")[0].lower(), self.source.layers(found))

    def close(self) -> None:
        self._compiled = self._resident = None
