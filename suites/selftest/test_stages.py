"""Stage by stage: what a hop costs, which one breaks first, and the conformance test that says so."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import chain
from harness.detect.dataset import Dataset
from harness.detect.detections import Detections
from harness.engines.onnxruntime import OnnxRuntime
from harness.judge import stages
from harness.judge.verdict import Status
from harness.measure.hops import Hop, Stage, hop
from harness.model.parity import Deviation
from harness.pipeline import Cell, Pipeline, Settings, load_dataset
from harness.tolerances import TOLERANCES, Step
from suites.selftest.blames.prove import damaged_build, with_a_wrong_scale
from suites.selftest.conftest import Command
from suites.selftest.faults.graphs import scaled_boxes

pytestmark = pytest.mark.selftest

CELL = Cell("pisa-mini", "fp32", "onnxruntime")
SAME = Deviation("box_8", 0.0, 0.0, 0.0, 1.0)
HEALTHY = Hop("torch", "onnx", "export", (SAME,), "", (0.4, 0.4), 1.0)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("mini", Path("unused")).limit(2)


def detections(dataset: Dataset, shift: float = 0.0, score: float = 0.9) -> Detections:
    """One box an image, 100 pixels a side, moved to the right by `shift`."""
    images = np.array([record.id for record in dataset.images], np.int64)
    boxes = np.tile(np.array([[10 + shift, 10, 100, 100]], np.float32), (len(images), 1))
    scores, categories = (
        np.full(len(images), score, np.float32),
        np.full(len(images), dataset.category_ids[0], np.int64),
    )
    return Detections(images, boxes, scores, categories, images)


def stage(found: Detections | None, value: float = 1.0, step: Step = "fp32") -> Stage:
    return Stage(step, step, {"cls_8": np.full((2, 1, 2, 2), value, np.float32)}, found)


# --- what a hop costs


def test_a_hop_that_changes_nothing_costs_nothing(dataset: Dataset) -> None:
    found = hop(dataset, stage(detections(dataset)), stage(detections(dataset)))
    assert found.worst == Deviation("cls_8", 0.0, 0.0, 0.0, pytest.approx(1.0))
    assert (found.change, found.matched, found.broken) == (0.0, 1.0, "")


@pytest.mark.parametrize(("shift", "kept"), [(4, 1.0), (8, 0.0)], ids=["IoU 0.92", "IoU 0.85"])
def test_a_box_that_is_moved_by_more_than_a_tenth_is_not_kept(dataset: Dataset, shift: float, kept: float) -> None:
    assert hop(dataset, stage(detections(dataset)), stage(detections(dataset, shift))).matched == kept


def test_without_confident_boxes_none_can_be_kept_or_lost(dataset: Dataset) -> None:
    unsure = detections(dataset, score=0.2)
    assert hop(dataset, stage(unsure), stage(unsure)).matched is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_hop_to_a_value_that_is_not_finite_is_broken(dataset: Dataset, value: float) -> None:
    found = hop(dataset, stage(detections(dataset)), stage(None, value))
    assert "output 'cls_8': wanted finite values, found NaN or Inf" in found.broken
    assert found.outputs[0].relative == np.inf


@pytest.mark.parametrize(
    ("rows", "image"),
    [([1, 1], 0), ([1, 1.1], 1), ([2, 1.1], 0), ([9, np.nan], 1), ([np.inf, np.nan], 0), ([1, np.inf], 1)],
)
def test_the_image_is_told_at_which_a_hop_is_furthest_off(dataset: Dataset, rows: list[float], image: int) -> None:
    maps = np.array(rows, np.float32).reshape(2, 1, 1, 1) * np.ones((2, 1, 2, 2), np.float32)
    assert hop(dataset, stage(None), Stage("fp32", "fp32", {"cls_8": maps}, None)).image == image


def test_outputs_of_another_shape_are_not_compared(dataset: Dataset) -> None:
    other = replace(stage(None), maps={"cls_8": np.ones((2, 1, 2, 3), np.float32)})
    found = hop(dataset, stage(None), other)
    assert (found.outputs, found.broken) == ((), "output 'cls_8': wanted shape (2, 1, 2, 2), found shape (2, 1, 2, 3)")


# --- the first that breaks

BROKEN: dict[str, Callable[[Hop], Hop]] = {
    "error": lambda one: replace(one, outputs=(replace(SAME, relative=1.1 * TOLERANCES[one.step].relative),)),
    "NaN": lambda one: replace(one, broken="output 'cls_8': wanted finite values, found NaN or Inf"),
    "AP": lambda one: replace(one, map_50_95=(0.4, 0.399 - TOLERANCES[one.step].map_50_95)),
    "boxes": lambda one: replace(one, matched=TOLERANCES[one.step].matched - 0.001),
}
ALLOWED: dict[str, Callable[[Hop], Hop]] = {
    "error": lambda one: replace(one, outputs=(replace(SAME, relative=0.9 * TOLERANCES[one.step].relative),)),
    "AP": lambda one: replace(one, map_50_95=(0.4, 0.401 - TOLERANCES[one.step].map_50_95)),
    "boxes": lambda one: replace(one, matched=TOLERANCES[one.step].matched),
    "no boxes": lambda one: replace(one, matched=None, map_50_95=None),
}


@pytest.mark.parametrize("step", TOLERANCES)
@pytest.mark.parametrize("costs", BROKEN)
def test_a_hop_that_costs_more_than_its_step_explains_breaks(step: Step, costs: str) -> None:
    bad = BROKEN[costs](replace(HEALTHY, step=step))
    found = stages.first_break([HEALTHY, bad, bad])
    assert found is not None
    assert found.hop is bad


@pytest.mark.parametrize("step", TOLERANCES)
@pytest.mark.parametrize("costs", ALLOWED)
def test_a_hop_that_costs_what_its_step_explains_does_not(step: Step, costs: str) -> None:
    assert stages.first_break([ALLOWED[costs](replace(HEALTHY, step=step))]) is None


def test_the_verdict_names_the_hop_its_figure_the_tolerance_and_the_command() -> None:
    bad = replace(HEALTHY, before="int8 graph", after="openvino", outputs=(replace(SAME, relative=0.5),))
    assert stages.judge("a-cell", [HEALTHY, bad], "python -m harness blame a-cell").message() == (
        "INVALID a-cell stages: int8 graph -> openvino is the first of 2 hops that breaks: "
        "output 'box_8' is 0.5 off (relative L2), tolerance 0.0001\n  next: python -m harness blame a-cell"
    )


def test_where_no_hop_breaks_the_verdict_is_green() -> None:
    assert stages.judge("a-cell", [HEALTHY], "").status is Status.PASS


# --- a cell's way


@pytest.fixture(scope="module")
def pipeline(session_cache: Path) -> Pipeline:
    return Pipeline(Settings(cache_dir=session_cache, batch_size=2))


@pytest.fixture
def boxes_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose builder makes all boxes five per cent larger."""
    monkeypatch.setattr(OnnxRuntime, "build", damaged_build(OnnxRuntime.build, scaled_boxes(1.05)))
    monkeypatch.setattr(OnnxRuntime, "version", lambda self: "boxes too large")  # is not taken for the true one


@pytest.mark.parametrize(
    ("which", "names"),
    [
        (CELL, ["torch", "onnx", "simplified", "fp32 graph", "onnxruntime"]),
        (Cell("pisa-mini", "int8", "openvino"), ["torch", "onnx", "simplified", "int8 graph", "openvino"]),
        (Cell("pisa-mini", "fp32", "torch"), ["torch", "torch"]),
    ],
    ids=lambda value: value.id if isinstance(value, Cell) else "",
)
def test_a_cell_goes_all_the_way_from_torch_to_its_engine(pipeline: Pipeline, which: Cell, names: list[str]) -> None:
    found = list(chain.measure(pipeline, which))
    assert [found[0].before, *(one.after for one in found)] == names
    assert stages.first_break(found) is None


WAYS = [CELL, Cell("pisa-mini", "fp32", "openvino"), Cell("pisa-mini", "fp16", "onnxruntime"), CELL]


@pytest.mark.parametrize("held", [chain.HELD_BYTES, 0], ids=["all held", "two held"])
def test_cells_that_share_stages_cost_what_each_costs_alone(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    monkeypatch.setattr(chain, "HELD_BYTES", held)
    shared = chain.Shared()
    for cell in WAYS:
        assert list(chain.measure(pipeline, cell, shared=shared)) == list(chain.measure(pipeline, cell))


PAA = Cell("paa-mini", "fp32", "onnxruntime")


@pytest.mark.parametrize(
    ("cells", "held", "runs"),
    [
        (WAYS, chain.HELD_BYTES, [4, 0, 1, 0]),
        (WAYS, 0, [4, 0, 1, 1]),  # the last two stages are held
        ([CELL, PAA, CELL], chain.HELD_BYTES, [4, 4, 1]),  # those of another model are not
    ],
    ids=["all held", "two held", "another model"],
)
def test_what_cells_have_in_common_is_made_once(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, cells: list[Cell], held: int, runs: list[int]
) -> None:
    made: list[str] = []
    stage_of = chain.Stage

    def counted(name: str, *rest: Any) -> Stage:
        made.append(name)
        return stage_of(name, *rest)

    monkeypatch.setattr(chain, "HELD_BYTES", held)
    monkeypatch.setattr(chain, "Stage", counted)
    shared, counts = chain.Shared(), []
    for cell in cells:
        made.clear()
        list(chain.measure(pipeline, cell, shared=shared))
        assert made.pop() == cell.engine
        counts.append(len(made))
    assert counts == runs


def test_an_engine_that_breaks_is_the_last_hop(session_cache: Path, boxes_too_large: None) -> None:
    found = stages.first_break(list(chain.measure(Pipeline(Settings(cache_dir=session_cache, batch_size=2)), CELL)))
    assert found is not None
    assert found.hop.name == "fp32 graph -> onnxruntime"
    assert found.figure == pytest.approx(0.05, rel=0.01)


def test_a_graph_that_breaks_is_the_hop_to_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(chain, "typed", with_a_wrong_scale(tmp_path / "wrong.onnx"))
    found = stages.first_break(list(chain.measure(pipeline, Cell("pisa-mini", "int8", "onnxruntime"))))
    assert found is not None
    assert found.hop.name == "simplified -> int8 graph"


@pytest.mark.slow
def test_the_suite_is_green_on_a_healthy_cell(python_command: Command, session_cache: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    outcome = python_command(
        *("-m", "pytest", "suites/conformance/test_stages.py", "-m", "conformance", "-p", "no:cacheprovider"),
        *("--model", CELL.model, "--precision", CELL.precision, "--engine", CELL.engine),
        *("--cache-dir", session_cache, "--results", results),
    )
    assert outcome.returncode == 0, outcome.stdout
    (cell,) = json.loads(results.read_text(encoding="utf-8"))["cells"]
    assert cell["conformance"]["checks"]["stages"]["status"] == "PASS"
