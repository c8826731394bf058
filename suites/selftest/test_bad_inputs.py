"""Whatever a user hands in wrongly ends in exit code 4, one line of cause, one line of remedy, and a clean cache."""

import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.cache import ENTRY_FILE, sha256_of
from harness.detect.dataset import ANNOTATION_FILE
from harness.errors import CheckpointError
from harness.model.checkpoint import load_state_dict
from harness.model.registry import SHIPPED_BASELINES, load_models
from harness.pipeline import EMBEDDED, Cell, Pipeline, Settings
from suites.selftest.conftest import CHECKOUT, Command, Outcome

if TYPE_CHECKING:
    import onnx

pytestmark = pytest.mark.selftest

MODEL = "pisa-mini"
CELL = ("--model", MODEL, "--precision", "fp32", "--engine", "onnxruntime")
# Of the two tests of a cell one will do: both would meet the fault.
WORKS = ("-m", "accuracy", "--limit", "8", "-k", "map_50_95 or test_fps")
REMEDY = ("  mend it: ", "  next: ")


# --- what every wrong input ends in


def unfinished(cache: Path) -> list[Path]:
    """What lies in a cache and is neither a finished entry nor a lock."""
    return [
        path
        for path in cache.glob("*/*")
        if path.suffix != ".lock" and (path.name.startswith(".") or not (path / ENTRY_FILE).is_file())
    ]


def refused(outcome: Outcome, cause: str, remedy: str) -> bool:
    """Whether a command ended as wrong input, with this cause in one line and this remedy in the next."""
    text = outcome.stdout + outcome.stderr
    assert outcome.returncode == 4, text
    assert "Traceback" not in text
    lines = text.splitlines()
    found = [after for line, after in pairwise(lines) if cause in line]
    assert found, f"wanted the cause {cause!r} in:\n{text}"
    assert any(after.startswith(REMEDY) and remedy in after for after in found), f"wanted {remedy!r} after:\n{text}"
    return True


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, "usage: wrong\n  mend it: so"),
        (4, "usage: wrong\n  mend it: so\nTraceback (most recent call last)"),
        (4, "usage: other\n  mend it: so"),
        (4, "usage: wrong\n  mend it: thus"),
        (4, "usage: wrong\n\n  mend it: so"),
        (4, "usage: wrong"),
    ],
    ids=["exit code", "traceback", "cause", "remedy", "a line between", "no remedy"],
)
def test_a_refusal_without_its_form_is_none(code: int, text: str) -> None:
    with pytest.raises(AssertionError):
        refused(Outcome([], code, text, ""), "wrong", "so")


@pytest.mark.parametrize("left", ["onnx/.0123-abc/entry.json", "onnx/0123/a.onnx", "onnx/a.tmp"])
def test_what_is_half_written_is_seen(tmp_path: Path, left: str) -> None:
    (tmp_path / left).parent.mkdir(parents=True)
    (tmp_path / left).touch()
    assert unfinished(tmp_path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, session_cache: Path) -> Path:
    """A cache that holds the graphs and the engine of `CELL`, so that faults further on are reached at once."""
    pipeline, folder = Pipeline(Settings(cache_dir=session_cache)), tmp_path_factory.mktemp("warm")
    prepared, weights = pipeline.prepare(Cell(MODEL, "fp32", "onnxruntime")), pipeline.checkpoint(MODEL)
    graph = prepared.source.graph
    assert graph is not None
    made = (pipeline.exported(MODEL, weights).path, pipeline.simplified(MODEL, weights).path, graph, prepared.file.path)
    for path in made:
        shutil.copytree(path.parent, folder / path.parent.relative_to(session_cache))
    return folder


@pytest.fixture(autouse=True)
def nothing_half_written(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test the cache holds finished entries and locks only."""
    yield
    for name in ("cache", "damaged_models"):
        if name in request.fixturenames:
            value = request.getfixturevalue(name)
            assert unfinished(value if isinstance(value, Path) else value.cache) == []


@pytest.fixture
def run(tmp_path: Path, cache: Path, suites_command: Command) -> Command:
    """The accuracy of `CELL` on 8 images, with further options; later ones of a kind hold."""
    return lambda *words: suites_command(*WORKS, "--cache-dir", cache, "--results", tmp_path / "results.json", *words)


# --- the command line

COMMAND_LINES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "unknown model": (("--model", "nope"), "--model 'nope' matches nothing; known: paa-mini", "python -m harness list"),
    "unknown engine": (("--engine", "caffe*"), "--engine 'caffe*' matches nothing; known: torch", "harness list"),
    "unknown precision": (("--precision", "fp64"), "--precision 'fp64' matches nothing; known: fp32", "harness list"),
    "engine without the precision": (("--engine", "torch", "--precision", "int8"), "no cell: none", "harness list"),
    "require without a match": ((*CELL, "--require", "paa-*"), "--require 'paa-*' matches none of the 1", "--require"),
    "limit of 0": ((*CELL, "--limit", "0"), "--limit 0: wanted at least 1", "positive number"),
    "batch of 0": ((*CELL, "--batch-size", "0"), "--batch-size 0: wanted at least 1", "positive number"),
    "engine option without its engine": (
        (*CELL, "--engine-option", "provider=cpu"),
        "engine option 'provider=cpu': wanted ENGINE.KEY=VALUE",
        "for example --engine-option",
    ),
    "engine option of no engine": ((*CELL, "--engine-option", "a.b=c"), "with ENGINE one of torch", "for example"),
    "unknown engine option": (
        (*CELL, "--engine-option", "onnxruntime.speed=11"),
        "engine option onnxruntime.speed: wanted one of provider, threads",
        "python -m harness list options",
    ),
    "engine option with a wrong value": (
        (*CELL, "--engine-option", "onnxruntime.provider=tpu"),
        "onnxruntime.provider: wanted cpu, cuda or tensorrt, found 'tpu'",
        "python -m harness list options",
    ),
    "engine option that is no number": (
        (*CELL, "--engine-option", "onnxruntime.threads=all"),
        "onnxruntime.threads: wanted a whole number, found 'all'",
        "python -m harness list options",
    ),
    "option of an engine that is not chosen": (
        (*CELL, "--engine-option", "tensorrt.cuda_graph=yes"),
        "tensorrt.cuda_graph: wanted auto, on or off, found 'yes'",
        "python -m harness list options",
    ),
    "page of no kind": (
        ("--report", "page.pdf"),
        "--report page.pdf: wanted a file that ends in .html",
        "--report page.html",
    ),
    "page without a name": (("--report", ""), "--report .: wanted a file that ends in .html", "--report report.html"),
    "conformance report without a name": (
        ("--conformance-report", "."),
        "--conformance-report .: wanted a file that ends in .md or .html",
        "--conformance-report report.html",
    ),
    "ONNX file that is not there": ((*CELL, "--onnx", "nowhere.onnx"), "no file nowhere.onnx", "--onnx"),
    "engine file that is not there": ((*CELL, "--engine-file", "gone.blob"), "no file gone.blob", "--engine-file"),
    "one ONNX for two models": (
        ("--model", "*-mini", "--onnx", "pytest.ini"),
        "--onnx is one model's graph, but 2 models are chosen: paa-mini, pisa-mini",
        "--model NAME",
    ),
    "one engine file for many cells": (
        ("--model", MODEL, "--engine-file", "pytest.ini"),
        "--engine-file is one cell's engine, but 16 cells are chosen",
        "--model NAME --precision PRECISION --engine ENGINE",
    ),
    "baselines without models": (
        (*CELL, "--baselines", "suites"),
        "no model files: wanted suites/models",
        "--baselines",
    ),
    "another model's data set": (
        ("--model", "pisa", "--engine", "onnxruntime", "--precision", "fp32", "--dataset", "mini"),
        "'pisa' has 80 classes, data set mini has 10 categories",
        "--dataset coco2017",
    ),
    "benchmarks disabled": ((*CELL, "-m", "performance", "--benchmark-disable"), "in one process", "leave the option"),
    "benchmarks skipped": ((*CELL, "-m", "performance", "--benchmark-skip"), "in one process", "leave the option"),
    "performance under xdist": (
        (*CELL, "-m", "performance", "-n", "1"),
        "performance tests or --rebuilds under xdist",
        "leave -n out",
    ),
}


@pytest.mark.parametrize("fault", COMMAND_LINES)
def test_a_wrong_command_line_is_refused(run: Command, fault: str) -> None:
    words, cause, remedy = COMMAND_LINES[fault]
    assert refused(run(*words), cause, remedy)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--limit"], "argument --limit: expected one argument"),
        (["--modell=x"], "unrecognized arguments: --modell=x"),
        (["--limit", "1.5"], "argument --limit: wanted a whole number, found '1.5'"),
        (["--batch-size", "many"], "argument --batch-size: wanted a whole number, found 'many'"),
        (["--dataset", "voc"], "argument --dataset: wanted auto, mini or coco2017, found 'voc'"),
    ],
)
def test_what_pytest_itself_refuses_has_a_remedy_too(run: Command, words: list[str], cause: str) -> None:
    outcome = run(*words)
    assert outcome.returncode == 4
    assert re.search(rf"{cause}\n(  \w+: .*\n)*  mend it: pytest --help", outcome.stderr), outcome.stderr


HARNESS_COMMANDS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "unknown command": (("gate",), "invalid choice: 'gate'", "python -m harness --help"),
    "accepting without a reason": (("baseline", "accept", "x"), "required: --reason", "baseline accept --help"),
    "accepting an unknown cell": (
        ("baseline", "accept", "pisa-fp64-tensorrt", "--reason", "tried"),
        "no proposal for cell 'pisa-fp64-tensorrt'",
        "pytest -m accuracy",
    ),
    "accepting speed that was never measured": (
        ("baseline", "accept", "pisa-fp32-torch", "--speed", "--reason", "tried", "--results", "nowhere.json"),
        "cannot read nowhere.json",
        "run pytest first",
    ),
    "accepting speed from a file that is no results file": (
        ("baseline", "accept", "pisa-fp32-torch", "--speed", "--reason", "tried", "--results", "pytest.ini"),
        "pytest.ini is not valid JSON",
        "rm pytest.ini",
    ),
    "age that is no number": (
        ("cache", "clear", "--unused-for", "long"),
        "wanted a number of at least 0, found 'long'",
        "--help",
    ),
    "age below nothing": (("cache", "clear", "--unused-for", "-1"), "of at least 0, found '-1'", "--help"),
    "turns of no time": (("compare", "--speed", "a", "b", "--seconds", "0"), "above 0, found '0'", "--help"),
    "turns without end": (("compare", "--speed", "a", "b", "--seconds", "inf"), "above 0, found 'inf'", "--help"),
    "schemas into no directory": (("schema", "--baselines", "nowhere"), "cannot write nowhere", "--baselines DIR"),
}


@pytest.mark.parametrize("fault", HARNESS_COMMANDS)
def test_a_wrong_harness_command_is_refused(harness_command: Command, fault: str) -> None:
    words, cause, remedy = HARNESS_COMMANDS[fault]
    assert refused(harness_command(*words), cause, remedy)


# --- model files, through the command that reads them all

Change = Callable[[dict[str, Any]], object]

MODEL_FILES: dict[str, tuple[Change, str]] = {
    "unknown key": (lambda spec: spec.update(colour="red"), "key 'colour': unknown key"),
    "unknown nested key": (lambda spec: spec["input"].update(widht=3), "key 'input.widht': unknown key"),
    "missing key": (lambda spec: spec.pop("checkpoint"), "key 'checkpoint': Field required"),
    "wrong type": (
        lambda spec: spec["input"].update(width="320"),
        "key 'input.width': Input should be a valid integer",
    ),
    "size off the grid": (lambda spec: spec["input"].update(height=100), "should be a multiple of 32, found 100"),
    "figure out of range": (
        lambda spec: spec.update(tolerance={"fp32": 0.5}),
        "less than or equal to 0.005, found 0.5",
    ),
    "batch of 0": (lambda spec: spec["batch"].update(cpu=0), "key 'batch.cpu': Input should be greater than or equal"),
    "hash that is none": (
        lambda spec: spec["checkpoint"].update(sha256="xyz"),
        "key 'checkpoint.sha256': String should",
    ),
    "another data set": (
        lambda spec: spec.update(dataset="voc"),
        "Input should be 'mini' or 'coco2017', found \"voc\"",
    ),
    "another schema": (lambda spec: spec.update(schema=2), "key 'schema': Input should be 1, found 2"),
}


@pytest.mark.parametrize("fault", MODEL_FILES)
def test_a_wrong_model_file_is_refused(harness_command: Command, baselines: Path, fault: str) -> None:
    change, cause = MODEL_FILES[fault]
    path = baselines / "models" / f"{MODEL}.json"
    spec = json.loads(path.read_text())
    change(spec)
    path.write_text(json.dumps(spec))
    outcome = harness_command("list", "--baselines", baselines)
    assert refused(outcome, f"{path}: key", f"correct {path}")
    assert refused(outcome, cause, "model.schema.json describes every key")


def test_a_model_file_that_is_not_json_is_refused_with_its_line(harness_command: Command, baselines: Path) -> None:
    (baselines / "models" / "broken.json").write_text('{"schema": 1,\n "name" "broken"}')
    assert refused(harness_command("list", "--baselines", baselines), "line 2 column 9", "python -m json.tool")


def test_a_model_file_called_otherwise_than_its_model_is_refused(harness_command: Command, baselines: Path) -> None:
    (baselines / "models" / f"{MODEL}.json").rename(baselines / "models" / "mine.json")
    cause = "key 'name': wanted 'mine' as the file is called, found 'pisa-mini'"
    assert refused(harness_command("list", "--baselines", baselines), cause, "rename the file to pisa-mini.json")


def test_pytest_refuses_a_wrong_model_file_before_anything_runs(run: Command, baselines: Path) -> None:
    (baselines / "models" / "broken.json").write_text("{")
    outcome = run(*CELL, "--baselines", baselines)
    assert refused(outcome, "broken.json is not valid JSON", "python -m json.tool")
    assert "collected" not in outcome.stdout


# --- checkpoints and configs: many models with one fault each, in one run


@dataclass(frozen=True)
class Damaged:
    """One run over all damaged models."""

    outcome: Outcome
    cache: Path
    sentinel: Path
    training: Path


class RunsCode:
    """Pickles to a call that makes a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sentinel),)


@dataclass
class Workshop:
    """Makes models that differ from the shipped one in one fault."""

    folder: Path
    state: dict[str, Any]

    @property
    def weights(self) -> Path:
        return EMBEDDED / "weights" / load_models()[MODEL].checkpoint.file

    def file(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.pth"

    def model(self, name: str, sha256: str | None = None, **changes: Any) -> None:
        """A model file; its checkpoint is the one of that name, or the shipped one."""
        spec = json.loads((SHIPPED_BASELINES / "models" / f"{MODEL}.json").read_text())
        if not self.file(name).exists():
            shutil.copy(self.weights, self.file(name))
        digest = sha256 or sha256_of(self.file(name))
        checkpoint = {"url": None, "file": self.file(name).name, "sha256": digest}
        overrides = spec["overrides"] | changes.pop("overrides", {})
        spec |= {"name": name, "checkpoint": checkpoint, "overrides": overrides} | changes
        (self.folder / "baselines" / "models" / f"{name}.json").write_text(json.dumps(spec))

    def saved(self, name: str, content: object) -> None:
        import torch

        torch.save(content, self.file(name))
        self.model(name)

    def written(self, name: str, content: bytes, sha256: str | None = None) -> None:
        self.file(name).write_bytes(content)
        self.model(name, sha256)


@pytest.fixture(scope="module")
def damaged_models(tmp_path_factory: pytest.TempPathFactory, suites_command: Command) -> Damaged:
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "checkpoints").mkdir()
    (folder / "baselines" / "models").mkdir(parents=True)
    shop = Workshop(folder, load_state_dict(Workshop(folder, {}).weights))
    sentinel = folder / "ran"
    _damage_files(shop, sentinel)
    _damage_tensors(shop)
    _damage_configs(shop)
    options = ("--baselines", folder / "baselines", "--checkpoints", folder / "checkpoints")
    places = ("--cache-dir", folder / "cache", "--results", folder / "results.json")
    choice = ("--engine", "onnxruntime", "--precision", "fp32")
    outcome = suites_command(*WORKS, *options, *places, *choice)
    return Damaged(outcome, folder / "cache", sentinel, shop.file("training"))


def _damage_files(shop: Workshop, sentinel: Path) -> None:
    from mmengine.logging import HistoryBuffer

    whole = shop.weights.read_bytes()
    shop.written("cut-short", whole[: len(whole) // 2], load_models()[MODEL].checkpoint.sha256)
    shop.written("cut-short-as-published", whole[: len(whole) // 2])
    shop.written("empty", b"")
    shop.written("text", b"<html>404 Not Found</html>")
    shop.model("another-hash", sha256="0123456789abcdef")
    shop.written("bare-pickle", pickle.dumps({"state_dict": RunsCode(sentinel)}))
    shop.saved("runs-code", {"state_dict": shop.state, "meta": RunsCode(sentinel)})
    shop.saved("training", {"state_dict": shop.state, "message_hub": HistoryBuffer([1.0], [1])})
    shop.saved("no-state-dict", {"epoch": 12})
    shop.saved("not-a-mapping", [1, 2, 3])


def _damage_tensors(shop: Workshop) -> None:
    import torch

    first = next(key for key in shop.state if key.endswith("conv1.weight"))
    shop.saved("missing-key", {key: value for key, value in shop.state.items() if key != first})
    shop.saved("unexpected-key", shop.state | {"bbox_head.extra.weight": torch.zeros(3)})
    shop.saved("wrong-shape", shop.state | {first: torch.zeros(1, 2, 3)})
    shop.saved("not-finite", shop.state | {first: torch.full_like(shop.state[first], float("nan"))})


def _damage_configs(shop: Workshop) -> None:
    (shop.folder / "baselines" / "models" / "broken_config.py").write_text("model = dict(\n")
    shop.model("unknown-config", config="pisa/pisa_r50_1x_coco.py")
    shop.model("broken-config", config="broken_config.py")
    shop.model("two-stages", config="faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", overrides={})
    shop.model("unknown-head", config="fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py")
    shop.model("override-of-no-argument", overrides={"model.backbone.detph": 18})
    shop.model("override-of-a-wrong-type", overrides={"model.bbox_head.num_classes": "ten"})
    shop.model("override-below-a-figure", overrides={"model.bbox_head.num_classes.extra": 1})


FETCH, STRIP, FIT = "fetch it again", "strip it: python -c", "the checkpoint that belongs to the model file's config"
DAMAGED_MODELS: dict[str, tuple[str, str]] = {
    "cut-short": ("truncated, or another file", "cut-short.pth"),
    "cut-short-as-published": ("is not a readable checkpoint", FETCH),
    "empty": ("is not a readable checkpoint", FETCH),
    "text": ("holds objects that are not tensors, or a damaged pickle", STRIP),
    "another-hash": ("wanted SHA-256 0123456789abcdef…, found", "another-hash.pth"),
    "bare-pickle": ("only tensors and plain data are loaded", STRIP),
    "runs-code": ("holds an object of type 'posix.mkdir'", STRIP),
    "training": ("holds an object of type 'mmengine.logging.history_buffer.HistoryBuffer'", STRIP),
    "no-state-dict": ("wanted 'state_dict' with tensors (OpenMMLab form)", "torch.save({'meta': {}"),
    "not-a-mapping": ("wanted 'state_dict' with tensors (OpenMMLab form), found list", "torch.save({'meta': {}"),
    "missing-key": ("does not fit 'missing-key': 1 missing keys, first backbone.conv1.weight", FIT),
    "unexpected-key": ("1 unexpected keys, first bbox_head.extra.weight", FIT),
    "wrong-shape": ("1 wrongly shaped keys, first backbone.conv1.weight", FIT),
    "not-finite": ("NaN or Inf in backbone.conv1.weight", FETCH),
    "unknown-config": ("config 'pisa/pisa_r50_1x_coco.py' is not among mmdet's configs", "for example 'retinanet/"),
    "broken-config": ("mmengine cannot read config", "mend the config"),
    "two-stages": ("wanted a one-stage detector with a head of anchors", "for example 'retinanet/"),
    "unknown-head": ("no decoder for head 'FCOSHead'; known: PISARetinaHead", "harness/detect/decode/"),
    "override-of-no-argument": ("mmdet cannot build 'RetinaNet' from the config", "'overrides'"),
    "override-of-a-wrong-type": ("invalid literal for int() with base 10: 'ten'", "mend 'overrides'"),
    "override-below-a-figure": ("key 'overrides' does not fit", "dotted keys that exist in the config"),
}


@pytest.mark.parametrize("fault", DAMAGED_MODELS)
def test_a_damaged_model_is_refused(damaged_models: Damaged, fault: str) -> None:
    cause, remedy = DAMAGED_MODELS[fault]
    lines = damaged_models.outcome.stdout.split(f"INVALID {fault}-fp32-onnxruntime")[1].splitlines()
    own = Outcome([], damaged_models.outcome.returncode, "\n".join(lines[:2]), damaged_models.outcome.stderr)
    assert refused(own, cause, remedy)


def test_every_damaged_model_is_in_the_table(damaged_models: Damaged) -> None:
    assert f"{len(DAMAGED_MODELS)} errors" in damaged_models.outcome.stdout


def test_no_damaged_model_shows_a_traceback(damaged_models: Damaged) -> None:
    assert "Traceback" not in damaged_models.outcome.stdout


def test_no_code_in_a_checkpoint_runs(damaged_models: Damaged) -> None:
    assert not damaged_models.sentinel.exists()


def test_the_sentinel_would_appear_if_the_code_ran(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(RunsCode(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_the_strip_command_makes_a_training_checkpoint_loadable(
    damaged_models: Damaged, tmp_path: Path, python_command: Command
) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_state_dict(damaged_models.training)
    _, option, program = shlex.split(caught.value.remedy.split("strip it: ")[1])
    stripped = program.replace("IN.pth", str(damaged_models.training)).replace("OUT.pth", str(tmp_path / "out.pth"))
    assert python_command(option, stripped).returncode == 0
    assert load_state_dict(tmp_path / "out.pth").keys()


# --- data sets


@pytest.fixture(scope="module")
def eight_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's layout with the first 8 embedded images."""
    source, root = EMBEDDED / "data", tmp_path_factory.mktemp("data") / "coco"
    content = json.loads((source / ANNOTATION_FILE).read_text())
    content["images"] = sorted(content["images"], key=lambda row: row["id"])[:8]
    ids = {row["id"] for row in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in ids]
    (root / "images" / "val2017").mkdir(parents=True)
    (root / ANNOTATION_FILE).parent.mkdir()
    (root / ANNOTATION_FILE).write_text(json.dumps(content))
    for row in content["images"]:
        shutil.copy(source / "images" / "val2017" / row["file_name"], root / "images" / "val2017")
    return root


@pytest.fixture
def coco(tmp_path: Path, eight_images: Path) -> Path:
    return Path(shutil.copytree(eight_images, tmp_path / "coco"))


def _image(root: Path) -> Path:
    return sorted((root / "images" / "val2017").iterdir())[3]


def _edit(root: Path, change: Change) -> None:
    content = json.loads((root / ANNOTATION_FILE).read_text())
    change(content)
    (root / ANNOTATION_FILE).write_text(json.dumps(content))


def _emptied(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def _other_size(root: Path) -> None:
    _edit(root, lambda content: content["images"][3].update(width=content["images"][3]["width"] + 1))


FETCH = "python -m harness fetch coco2017-val --data-dir"

DATA_SETS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "empty folder": (_emptied, "is an empty folder", FETCH),
    "no annotation file": (lambda root: (root / ANNOTATION_FILE).unlink(), "no annotation file", FETCH),
    "annotations cut short": (
        lambda root: (root / ANNOTATION_FILE).write_text((root / ANNOTATION_FILE).read_text()[:1000]),
        "instances_val2017.json is broken",
        f"mend the file, or bring the original back: {FETCH}",
    ),
    "annotation for an unknown image": (
        lambda root: _edit(root, lambda content: content["annotations"][0].update(image_id=99)),
        "annotation for an unknown image: 1",
        "mend",
    ),
    "no image folder": (lambda root: shutil.rmtree(root / "images"), "no image folder", FETCH),
    "image that is not there": (
        lambda root: _image(root).unlink(),
        "missing image: 1",
        f"fetch all of it again: {FETCH}",
    ),
    "image cut short": (
        lambda root: _image(root).write_bytes(_image(root).read_bytes()[:-200]),
        "image file cut short: 1",
        "put the images that it names into",
    ),
    "image that is text": (
        lambda root: _image(root).write_text("404"),
        "image file without a readable header: 1",
        "put the images that it names into",
    ),
    "image of another size": (
        _other_size,
        "image of another size than annotated: 1",
        "put the images that it names into",
    ),
    "other categories": (
        lambda root: _edit(root, lambda content: content["categories"].append({"id": 99, "name": "eleventh"})),
        "'pisa-mini' has 10 classes, data set coco2017 has 11 categories",
        "--dataset mini",
    ),
}


@pytest.mark.parametrize("fault", DATA_SETS)
def test_a_damaged_data_set_is_refused(run: Command, coco: Path, fault: str) -> None:
    damage, cause, remedy = DATA_SETS[fault]
    damage(coco)
    assert refused(run(*CELL, "--dataset", "coco2017", "--data-dir", coco), cause, remedy)


def test_the_same_data_set_undamaged_is_measured(run: Command, coco: Path) -> None:
    assert "8 images" in run(*CELL, "--dataset", "coco2017", "--data-dir", coco).stdout


# --- graphs and engine files that users hand in


@pytest.fixture
def graph(cache: Path) -> "onnx.ModelProto":
    """The graph that detgate itself exports for `CELL`."""
    import onnx

    return onnx.load(str(next(cache.glob(f"onnx/*/{MODEL}.onnx"))))


def _without_output(graph: "onnx.ModelProto") -> None:
    del graph.graph.output[-1]


def _fixed_batch(graph: "onnx.ModelProto") -> None:
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _other_width(graph: "onnx.ModelProto") -> None:
    graph.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 640


def _other_classes(graph: "onnx.ModelProto") -> None:
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 720


def _constant_batch(graph: "onnx.ModelProto") -> None:
    """A reshape that an exporter traced with one image: says a dynamic batch, takes one image only."""
    import numpy as np
    from onnx import helper, numpy_helper

    shape = [1, *(dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim[1:])]
    graph.graph.initializer.append(numpy_helper.from_array(np.array(shape), "traced"))
    name = graph.graph.input[0].name
    for node in graph.graph.node:
        node.input[:] = ["reshaped" if entry == name else entry for entry in node.input]
    graph.graph.node.insert(0, helper.make_node("Reshape", [name, "traced"], ["reshaped"]))


GRAPHS: dict[str, tuple[Callable[["onnx.ModelProto"], None], str, str]] = {
    "an output is missing": (_without_output, "wanted input 'input' and outputs cls_8", "export the raw head maps"),
    "the batch is fixed": (_fixed_batch, "'input': wanted shape [?, 3, 192, 320], found [1, 3, 192, 320]", "dynamic"),
    "the input has another size": (_other_width, "wanted shape [?, 3, 192, 320], found [?, 3, 192, 640]", "input size"),
    "the classes are others": (
        _other_classes,
        "'cls_8': wanted shape [?, 90, 24, 40], found [?, 720, ?, ?]",
        "classes",
    ),
    "the batch was traced": (_constant_batch, "does not run the graph on 2 images", "export it again"),
}


@pytest.mark.parametrize("fault", GRAPHS)
def test_a_given_graph_is_refused_where(run: Command, tmp_path: Path, graph: "onnx.ModelProto", fault: str) -> None:
    damage, cause, remedy = GRAPHS[fault]
    damage(graph)
    (tmp_path / "mine.onnx").write_bytes(graph.SerializeToString())
    assert refused(run(*CELL, "--onnx", tmp_path / "mine.onnx"), cause, remedy)


def test_a_given_graph_that_is_not_onnx_is_refused(run: Command) -> None:
    assert refused(run(*CELL, "--onnx", "pytest.ini"), "--onnx pytest.ini cannot be used", "export it again")


def test_a_given_graph_without_fault_is_measured(run: Command, tmp_path: Path, graph: "onnx.ModelProto") -> None:
    (tmp_path / "mine.onnx").write_bytes(graph.SerializeToString())
    assert "8 images" in run(*CELL, "--onnx", tmp_path / "mine.onnx").stdout


@pytest.mark.parametrize(
    ("engine", "cause"),
    [
        ("onnxruntime", "--engine-file pytest.ini cannot be used: onnxruntime"),
        ("openvino", "--engine-file pytest.ini cannot be used: openvino"),
    ],
)
def test_a_given_engine_file_that_is_garbage_is_refused(run: Command, engine: str, cause: str) -> None:
    choice = ("--model", MODEL, "--precision", "fp32", "--engine", engine)
    assert refused(run(*choice, "--engine-file", "pytest.ini"), cause, "")


def test_a_given_engine_file_of_another_batch_is_refused(run: Command, cache: Path) -> None:
    file = next(cache.glob("engine/*/*.onnx"))
    assert refused(run(*CELL, "--engine-file", file, "--batch-size", "4"), "does not take images (4, 3, ", "this batch")


def test_a_given_engine_file_of_another_model_is_refused(run: Command, cache: Path) -> None:
    file = next(cache.glob("engine/*/*.onnx"))
    words = ("--model", "paa-mini", "--precision", "fp32", "--engine", "onnxruntime")
    assert refused(run(*words, "--engine-file", file), "lacks the outputs iou_128", "build it from this model's graph")


# --- places that cannot be written, figures that cannot be read


def test_a_cache_that_cannot_be_written_is_refused(run: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refused(
        run(*CELL, "--cache-dir", tmp_path / "file" / "cache"), "cannot write to the cache", "--cache-dir DIR"
    )


def test_results_that_cannot_be_written_are_refused_before_anything_runs(run: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = run(*CELL, "--results", tmp_path / "file" / "results.json")
    assert refused(outcome, "cannot write", "give a writable path: --results FILE")
    assert "collected" not in outcome.stdout


def test_a_directory_given_as_results_is_refused_and_stays(run: Command, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert refused(run(*CELL, "--results", tmp_path / "folder"), "Is a directory", "--results FILE")
    assert (tmp_path / "folder").is_dir()


RECORDED = {
    "not JSON": ("{", "is not valid JSON", "python -m json.tool"),
    "unknown key": ('{"schema": 1, "model": "pisa-mini", "fps": 3}', "key 'fps': unknown key", "version control"),
    "AP beyond 1": (
        '{"schema": 1, "model": "pisa-mini", "accuracy": [{"map_50_95": 40.1}]}',
        "key 'accuracy.0.",
        "version control",
    ),
}


@pytest.mark.parametrize("fault", RECORDED)
def test_a_damaged_recorded_baseline_is_refused_before_anything_runs(run: Command, baselines: Path, fault: str) -> None:
    content, cause, remedy = RECORDED[fault]
    (baselines / "recorded").mkdir()
    (baselines / "recorded" / f"{MODEL}.json").write_text(content)
    outcome = run(*CELL, "--baselines", baselines)
    assert refused(outcome, cause, remedy)
    assert "collected" not in outcome.stdout


FIGURES = {"precision": "fp32", "dataset": "a" * 64, "weights": "b" * 8, "dataset_name": "mini", "images": 8}
PROPOSED = FIGURES | {"map_50_95": 0.4, "map_50": 0.6}
PROPOSALS = {
    "empty reason": (
        {"schema": 1, "model": MODEL, "accuracy": {"cell": PROPOSED}},
        " ",
        "says nothing",
        "--reason",
    ),
    "no figures": ({"schema": 1, "model": MODEL, "accuracy": {"cell": FIGURES}}, "x", "is incomplete", "pytest -m"),
    "another version": ({"schema": 2}, "x", "is not a proposal of this version", "rm "),
}


@pytest.mark.parametrize("fault", PROPOSALS)
def test_a_proposal_is_not_accepted_with(harness_command: Command, tmp_path: Path, baselines: Path, fault: str) -> None:
    content, reason, cause, remedy = PROPOSALS[fault]
    (tmp_path / "proposed").mkdir()
    (tmp_path / "proposed" / f"{MODEL}.json").write_text(json.dumps(content))
    words = ("--reason", reason, "--results", tmp_path / "results.json", "--baselines", baselines)
    assert refused(harness_command("baseline", "accept", "cell", *words), cause, remedy)
    assert not (baselines / "recorded").exists()


@pytest.mark.parametrize("words", [WORKS, (*WORKS, "--data-dir", "/")], ids=["works", "a path among the options"])
def test_tests_of_one_checkout_are_not_run_with_the_code_of_another(tmp_path: Path, words: tuple[str, ...]) -> None:
    """As with an environment that was made in one and is active in the other."""
    (tmp_path / "fixtures").mkdir()
    for name in ("conftest.py", "pytest.ini", "fixtures/early.py"):
        shutil.copy(CHECKOUT / name, tmp_path / name)
    script = Path(sysconfig.get_path("scripts")) / "pytest"
    ours = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    outcome = subprocess.run([script, *words], cwd=tmp_path, env=ours, capture_output=True, text=True, check=False)
    assert refused(outcome, f"the code of {CHECKOUT}: wanted that of {tmp_path}", "make setup")
