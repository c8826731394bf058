"""Takes the model files of a baselines directory (one JSON a model); gives checked `ModelSpec`s."""

import fnmatch
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.errors import SpecError, UsageError

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
DatasetName = Literal["mini", "coco2017"]
DatasetChoice = Literal["auto", DatasetName]
"""`auto`: the model's own."""
DATASETS: tuple[DatasetChoice, ...] = get_args(DatasetChoice)

SHIPPED_BASELINES = Path(__file__).resolve().parents[2] / "baselines"
SCHEMA_FILE = "model.schema.json"

# The loosest tolerance that a model file may ask for, in absolute AP. A raised score threshold costs 0.0014 and 25 lost
# images 0.0020: a gate that is much wider than the default sees neither.
MAXIMUM_TOLERANCE: dict[Precision, float] = {"fp32": 0.005, "fp16": 0.005, "int8": 0.02}

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Checkpoint(_Strict):
    """Where the weights come from and how they are known again."""

    url: str | None = Field(description="where the file is published; null when it ships with detgate or is your own")
    file: str = Field(min_length=1, description="file name looked for in --checkpoints and the cache")
    sha256: str = Field(pattern=r"^[0-9a-f]{8,64}$", description="SHA-256 of the file, at least its first 8 hex digits")


class ModelInput(_Strict):
    """The network's input and the resize rule that fills it."""

    name: str = Field(default="input", min_length=1, description="name of the ONNX input")
    height: int = Field(ge=32, le=8192, multiple_of=32, description="pixels")
    width: int = Field(ge=32, le=8192, multiple_of=32, description="pixels")
    keep_ratio: bool = Field(
        description="true: longest fit, padded right and bottom with 0; false: stretched to the input"
    )


class Batch(_Strict):
    """Images per engine call when --batch-size is not given."""

    cpu: int = Field(ge=1, le=1024)
    accelerator: int = Field(ge=1, le=1024)


class PublishedRow(_Strict):
    """One row of a published results table; accuracy is judged against it on the full val2017."""

    engine: str = Field(min_length=1)
    device: str = Field(min_length=1)
    sdk: str = Field(min_length=1)
    release: str = Field(min_length=1)
    batch: int = Field(ge=1)
    precision: Precision
    fps: float = Field(gt=0.0, description="images per second")
    map_50: Fraction
    map_50_95: Fraction
    source: str = Field(min_length=1, description="where the row is published")


class Tolerance(_Strict):
    """How far AP and AP50 may fall under the expected figure, in absolute AP (0.002 = 0.2 points)."""

    fp32: float = Field(default=0.002, ge=0.0, le=MAXIMUM_TOLERANCE["fp32"])
    fp16: float = Field(default=0.002, ge=0.0, le=MAXIMUM_TOLERANCE["fp16"])
    int8: float = Field(default=0.005, ge=0.0, le=MAXIMUM_TOLERANCE["int8"])


class ModelSpec(_Strict):
    """One model under test, as `baselines/models/<name>.json` describes it."""

    schema_: Literal[1] = Field(alias="schema")
    name: Name
    title: str = Field(min_length=1)
    config: str = Field(
        min_length=1, description="mmdet config: a path below mmdet's configs/, or a file beside this JSON"
    )
    overrides: dict[str, Any] = Field(default_factory=dict, description="dotted config keys and their new values")
    checkpoint: Checkpoint
    dataset: DatasetName
    input: ModelInput
    batch: Batch
    tolerance: Tolerance = Field(default_factory=Tolerance)
    published: tuple[PublishedRow, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _published_once_per_precision(self) -> "ModelSpec":
        seen = [row.precision for row in self.published]
        if len(seen) != len(set(seen)):
            raise ValueError("published: one row per precision, found " + ", ".join(seen))
        return self

    def published_row(self, precision: Precision) -> PublishedRow | None:
        """The published row that holds for `precision`; the fp16 row also bounds fp32, which can only be better."""
        rows = {row.precision: row for row in self.published}
        return rows.get(precision) or (rows.get("fp16") if precision == "fp32" else None)


def model_schema() -> dict[str, Any]:
    """JSON schema of a model file, generated from the types."""
    schema = ModelSpec.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "detgate model"}


def read_json(path: Path) -> Any:
    """Parsed JSON of `path`.

    Raises:
        SpecError: unreadable, or not JSON (names line and column).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}", f"put a readable JSON file at {path}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpecError(
            f"{path} is not valid JSON: {error}", f"mend it; `python -m json.tool {path}` shows where"
        ) from error


def first_fault(error: ValidationError) -> str:
    """The first fault of a pydantic error in one phrase: key, what was wanted, what was found."""
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"]) or "(whole file)"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if fault["type"] == "extra_forbidden":
        return f"key '{key}': unknown key{more}"
    found = (
        "" if fault["type"] in ("missing", "value_error") else f", found {json.dumps(fault['input'], default=str)[:80]}"
    )
    return f"key '{key}': {fault['msg']}{found}{more}"


def load_spec(path: Path) -> ModelSpec:
    """One model file, checked.

    Raises:
        SpecError: names the file, the key, what was wanted and what was found.
    """
    data = read_json(path)
    try:
        spec = ModelSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(
            f"{path}: {first_fault(error)}",
            f"who edited it: correct {path}; baselines/{SCHEMA_FILE} describes every key",
        ) from error
    if spec.name != path.stem:
        raise SpecError(
            f"{path}: key 'name': wanted '{path.stem}' as the file is called, found '{spec.name}'",
            f"rename the file to {spec.name}.json or change its 'name'",
        )
    return spec


def load_models(baselines: Path = SHIPPED_BASELINES) -> dict[str, ModelSpec]:
    """All models of a baselines directory by name, in file-name order.

    Raises:
        SpecError: the directory has no `models/*.json`, or one of them is wrong.
    """
    files = sorted((baselines / "models").glob("*.json"))
    if not files:
        raise SpecError(
            f"no model files: wanted {baselines / 'models'}/*.json, found none",
            "give --baselines a directory that has models/NAME.json, or leave the option out",
        )
    return {spec.name: spec for spec in map(load_spec, files)}


def split_patterns(values: Iterable[str]) -> list[str]:
    """Flatten repeated options and comma lists: `["a,b", "c*"]` -> `["a", "b", "c*"]`."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def select(kind: str, known: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that any shell pattern matches, in the order of `known`; all when there is no pattern.

    Raises:
        UsageError: a pattern matches nothing.
    """
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise UsageError(
                f"--{kind} '{pattern}' matches nothing; known: {', '.join(known)}",
                "choose from that list (shell patterns work), or see `python -m harness list`",
            )
    return [name for name in known if not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns)]
