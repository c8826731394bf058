"""One exception per stage; each carries a cause (wanted and found) and the remedy (what to do next)."""


class DetgateError(Exception):
    """Base of every expected failure: one line of cause, one line of remedy."""

    stage = "detgate"

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause, remedy)
        self.cause = " ".join(cause.split())
        self.remedy = " ".join(remedy.split())

    def __str__(self) -> str:
        return f"{self.stage}: {self.cause}\n  mend it: {self.remedy}"


class UsageError(DetgateError):
    """A command line that cannot be carried out."""

    stage = "usage"


class SpecError(DetgateError):
    """A model JSON or recorded baseline that breaks its schema."""

    stage = "model file"


class CheckpointError(DetgateError):
    """Weights that are damaged, of another hash, unsafe, or do not fit the module."""

    stage = "checkpoint"


class ModelBuildError(DetgateError):
    """mmdet could not build the module from the config."""

    stage = "model"


class ExportError(DetgateError):
    """The exported ONNX is not what torch computes."""

    stage = "export"


class GraphError(DetgateError):
    """A graph step (simplify, batch, precision) failed or changed the result beyond its bound."""

    stage = "graph"


class EngineError(DetgateError):
    """An engine failed to build, open or run, or is not what it claims to be."""

    stage = "engine"


class DatasetError(DetgateError):
    """Images or annotations that are missing, unreadable or contradict each other."""

    stage = "data set"


class DecodeError(DetgateError):
    """Raw head maps that do not fit the model's head."""

    stage = "decode"


class NotFinite(DecodeError):
    """NaN or Inf in a raw map; `output` names it."""

    def __init__(self, output: str) -> None:
        super().__init__(
            f"NaN or Inf in raw output '{output}'",
            "the engine overflows or is broken: compare it with fp32, and see which layer exceeds 65504 in fp16",
        )
        self.output = output


class EvaluationError(DetgateError):
    """Detections that cannot be scored."""

    stage = "evaluation"


class BaselineError(DetgateError):
    """A baseline that is missing, ambiguous or cannot be accepted."""

    stage = "baseline"


class CacheError(DetgateError):
    """The cache directory cannot be used."""

    stage = "cache"


class ResultsError(DetgateError):
    """A results file or a history that cannot be read, merged or written."""

    stage = "results"


class RecordError(DetgateError):
    """A run's record that is not there, damaged, or of other data or another device than it is compared with."""

    stage = "record"


class FetchError(DetgateError):
    """A published file that cannot be fetched, or is not the one that was wanted."""

    stage = "fetch"


class Missing(DetgateError):
    """Not an error of the input: an engine, weights or data that this machine does not have."""

    stage = "missing"


class InvalidRun(DetgateError):
    """A run whose figures mean nothing: NaN, images lost, another precision or provider than claimed."""

    stage = "integrity"


# Mistakes in what the user handed in: exit code 4. The other errors are findings about an engine: exit code 1.
WRONG_INPUT = (
    UsageError,
    SpecError,
    CheckpointError,
    ModelBuildError,
    DatasetError,
    BaselineError,
    CacheError,
    ResultsError,
    RecordError,
    FetchError,
)
