"""A model file is checked key by key, and each fault names file, key, wanted and found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.errors import SpecError, UsageError
from harness.model.registry import (
    PRECISIONS,
    SCHEMA_FILE,
    SHIPPED_BASELINES,
    ModelSpec,
    load_models,
    load_spec,
    model_schema,
    select,
    split_patterns,
)
from harness.report import results

pytestmark = pytest.mark.selftest

Content = dict[str, Any]
SHIPPED = sorted((SHIPPED_BASELINES / "models").glob("*.json"))
KNOWN = ["paa", "paa-mini", "pisa", "pisa-mini"]
SCHEMAS = {SCHEMA_FILE: model_schema, results.SCHEMA_FILE: results.results_schema}


def row(precision: str = "fp16", **changes: Any) -> Content:
    return {
        "engine": "tensorrt",
        "device": "H200",
        "sdk": "TensorRT 11",
        "release": "26.06",
        "batch": 32,
        "precision": precision,
        "fps": 100.0,
        "map_50": 0.5,
        "map_50_95": 0.3,
        "source": "made up",
    } | changes


def content() -> Content:
    """A model file with every key."""
    return {
        "schema": 1,
        "name": "own",
        "title": "Our own",
        "config": "retinanet/retinanet_r50_fpn_1x_coco.py",
        "overrides": {"model.bbox_head.num_classes": 3},
        "checkpoint": {"url": None, "file": "own.pth", "sha256": "0123abcd"},
        "dataset": "coco2017",
        "input": {"name": "input", "height": 320, "width": 640, "keep_ratio": True},
        "batch": {"cpu": 2, "accelerator": 32},
        "tolerance": {"fp32": 0.001, "fp16": 0.002, "int8": 0.01},
        "published": [row()],
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "own.json"


def spec_of(file: Path, data: Any) -> ModelSpec:
    file.write_text(json.dumps(data))
    return load_spec(file)


def refusal(file: Path, data: Any) -> SpecError:
    with pytest.raises(SpecError) as caught:
        spec_of(file, data)
    return caught.value


# --- the schema

# case: (change, key, what was wanted, what was found)
FAULTS: dict[str, tuple[Callable[[Content], object], str, str, str]] = {
    "unknown key": (lambda c: c.update(colour=1), "colour", "unknown key", ""),
    "unknown key inside": (lambda c: c["batch"].update(gpu=8), "batch.gpu", "unknown key", ""),
    "missing key": (lambda c: c.pop("title"), "title", "Field required", ""),
    "missing key inside": (lambda c: c["input"].pop("keep_ratio"), "input.keep_ratio", "Field required", ""),
    "missing schema": (lambda c: c.pop("schema"), "schema", "Field required", ""),
    "schema of another version": (lambda c: c.update(schema=2), "schema", "Input should be 1", "found 2"),
    "number as text": (lambda c: c["batch"].update(cpu="2"), "batch.cpu", "valid integer", 'found "2"'),
    "number as truth": (lambda c: c["batch"].update(cpu=True), "batch.cpu", "valid integer", "found true"),
    "truth as number": (lambda c: c["input"].update(keep_ratio=1), "input.keep_ratio", "valid boolean", "found 1"),
    "object as list": (lambda c: c.update(overrides=[]), "overrides", "valid dictionary", "found []"),
    "name with capitals": (lambda c: c.update(name="Own"), "name", "match pattern", 'found "Own"'),
    "empty title": (lambda c: c.update(title=""), "title", "at least 1 character", 'found ""'),
    "hash too short": (lambda c: c["checkpoint"].update(sha256="0123"), "checkpoint.sha256", "pattern", 'found "0123"'),
    "hash in capitals": (lambda c: c["checkpoint"].update(sha256="A" * 8), "checkpoint.sha256", "pattern", "AAAA"),
    "height off the grid": (lambda c: c["input"].update(height=33), "input.height", "multiple of 32", "found 33"),
    "width of 0": (lambda c: c["input"].update(width=0), "input.width", "greater than or equal to 32", "found 0"),
    "width beyond reason": (lambda c: c["input"].update(width=8224), "input.width", "less than or equal", "found 8224"),
    "batch of 0": (lambda c: c["batch"].update(accelerator=0), "batch.accelerator", "greater than", "found 0"),
    "int8 tolerance too wide": (
        lambda c: c["tolerance"].update(int8=0.021),
        "tolerance.int8",
        "or equal to 0.02",
        "0.021",
    ),
    "fp16 tolerance too wide": (
        lambda c: c["tolerance"].update(fp16=0.006),
        "tolerance.fp16",
        "or equal to 0.005",
        "0.006",
    ),
    "fp32 tolerance too wide": (
        lambda c: c["tolerance"].update(fp32=0.006),
        "tolerance.fp32",
        "or equal to 0.005",
        "0.006",
    ),
    "tolerance below 0": (lambda c: c["tolerance"].update(fp32=-0.1), "tolerance.fp32", "greater than", "found -0.1"),
    "unknown data set": (lambda c: c.update(dataset="voc"), "dataset", "'mini' or 'coco2017'", 'found "voc"'),
    "AP in percent": (lambda c: c["published"][0].update(map_50=51.3), "published.0.map_50", "less than", "found 51.3"),
    "FPS of 0": (lambda c: c["published"][0].update(fps=0.0), "published.0.fps", "greater than 0", "found 0.0"),
    "unknown precision": (
        lambda c: c["published"][0].update(precision="tf32"),
        "published.0.precision",
        "int8",
        "tf32",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_file_key_wanted_and_found(file: Path, fault: str) -> None:
    change, key, wanted, found = FAULTS[fault]
    data = content()
    change(data)
    cause = refusal(file, data).cause
    assert f"{file}: key '{key}'" in cause
    assert wanted in cause
    assert found in cause


def test_a_fault_is_mended_in_the_file_with_the_schema_at_hand(file: Path) -> None:
    assert refusal(file, {}).remedy == f"who edited it: correct {file}; baselines/{SCHEMA_FILE} describes every key"


def test_of_many_faults_the_rest_is_counted(file: Path) -> None:
    data = content() | {"colour": 1, "title": ""}
    assert refusal(file, data).cause.endswith("(and 1 more)")


@pytest.mark.parametrize("data", [[], "text", None, 3], ids=str)
def test_a_file_that_holds_no_object_is_refused(file: Path, data: Any) -> None:
    assert "key '(whole file)'" in refusal(file, data).cause


def test_two_published_rows_of_one_precision_are_refused(file: Path) -> None:
    data = content() | {"published": [row(), row(fps=2.0)]}
    assert "one row per precision, found fp16, fp16" in refusal(file, data).cause


def test_a_file_called_otherwise_is_refused(file: Path) -> None:
    assert (
        "key 'name': wanted 'own' as the file is called, found 'other'"
        in refusal(file, content() | {"name": "other"}).cause
    )


@pytest.mark.parametrize("raw", [b"{", b"", b"\xff\xfe{}"], ids=["cut short", "empty", "not UTF-8"])
def test_a_file_that_is_not_json_is_refused(file: Path, raw: bytes) -> None:
    file.write_bytes(raw)
    with pytest.raises(SpecError, match="is not valid JSON"):
        load_spec(file)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot read"):
        load_spec(tmp_path)


def test_a_directory_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no model files"):
        load_models(tmp_path)


def test_a_full_file_is_read_back_as_written(file: Path) -> None:
    assert spec_of(file, content()).model_dump(mode="json", by_alias=True) == content()


@pytest.mark.parametrize(("key", "default"), [("overrides", {}), ("published", ())])
def test_a_key_with_a_default_may_be_left_out(file: Path, key: str, default: object) -> None:
    data = content()
    del data[key]
    assert getattr(spec_of(file, data), key) == default


def test_a_spec_cannot_be_changed(file: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        spec_of(file, content()).title = "other"


# --- published rows


@pytest.mark.parametrize(
    ("model", "map_50", "map_50_95", "fps"), [("pisa", 0.513, 0.333, 74.109), ("paa", 0.555, 0.381, 133.597)]
)
def test_the_published_row_is_the_published_one(model: str, map_50: float, map_50_95: float, fps: float) -> None:
    published = load_models()[model].published_row("fp16")
    assert published is not None
    assert (published.map_50, published.map_50_95, published.fps, published.batch) == (map_50, map_50_95, fps, 32)


@pytest.mark.parametrize(
    ("rows", "asked", "found"),
    [
        (["fp16"], "fp16", "fp16"),
        (["fp16"], "fp32", "fp16"),
        (["fp16", "fp32"], "fp32", "fp32"),
        (["fp16"], "int8", None),
        (["fp32"], "fp16", None),
    ],
)
def test_a_row_holds_for_its_precision_and_fp16_for_fp32_too(
    file: Path, rows: list[str], asked: Any, found: str | None
) -> None:
    published = spec_of(file, content() | {"published": [row(name) for name in rows]}).published_row(asked)
    assert (published and published.precision) == found


# --- what ships


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_model_file_fits_the_published_schema(path: Path) -> None:
    schema = json.loads((SHIPPED_BASELINES / SCHEMA_FILE).read_text())
    jsonschema.validate(json.loads(path.read_text()), schema, jsonschema.Draft202012Validator)


def test_the_published_schema_refuses_what_the_registry_refuses() -> None:
    schema = json.loads((SHIPPED_BASELINES / SCHEMA_FILE).read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content() | {"colour": 1}, schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_shipped_schema_is_what_the_types_say(name: str) -> None:
    """Where it is not: `python -m harness schema` writes it again."""
    assert (SHIPPED_BASELINES / name).read_text(encoding="utf-8") == json.dumps(SCHEMAS[name](), indent=2) + "\n"


def test_the_models_come_in_the_order_of_their_files() -> None:
    assert list(load_models()) == [path.stem for path in SHIPPED]


def test_the_full_size_models_and_their_minis_ship() -> None:
    assert set(KNOWN) <= set(load_models())


# --- patterns


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([], []),
        (["pisa"], ["pisa"]),
        (["pisa,paa"], ["pisa", "paa"]),
        (["pisa", "paa*"], ["pisa", "paa*"]),
        ([" pisa , ,paa,"], ["pisa", "paa"]),
    ],
)
def test_patterns_come_from_repeated_options_and_comma_lists(values: list[str], parts: list[str]) -> None:
    assert split_patterns(values) == parts


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ([], KNOWN),
        (["pisa"], ["pisa"]),
        (["*-mini"], ["paa-mini", "pisa-mini"]),
        (["pisa", "paa"], ["paa", "pisa"]),
        (["p?a*", "paa"], ["paa", "paa-mini"]),
        (["p[ai]*-mini"], ["paa-mini", "pisa-mini"]),
    ],
)
def test_patterns_choose_names_in_the_order_known(patterns: list[str], chosen: list[str]) -> None:
    assert select("model", KNOWN, patterns) == chosen


@pytest.mark.parametrize("patterns", [["PISA"], ["pisa", "yolo"], ["pisa-"], ["?"]], ids=str)
def test_a_pattern_that_matches_nothing_is_refused(patterns: list[str]) -> None:
    with pytest.raises(UsageError, match=r"--model '.*' matches nothing; known: paa, paa-mini, pisa, pisa-mini"):
        select("model", KNOWN, patterns)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_can_be_chosen(precision: str) -> None:
    assert select("precision", PRECISIONS, [precision]) == [precision]
