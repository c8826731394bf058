"""A run against an earlier one: each fault is caught by the check named for it, and harmless changes pass them all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.accuracy_run import measure_accuracy
from harness.detect.dataset import Dataset
from harness.detect.detections import Detections
from harness.errors import RecordError
from harness.judge import previous
from harness.judge import record as records
from harness.judge.previous import CHECKS, Family, Pair, holm, judge, judge_all, relation
from harness.judge.record import Record, Recorded
from harness.judge.verdict import Status, Verdict
from harness.measure.compare import Comparison, Difference
from harness.pipeline import Cell, Pipeline, Settings, load_dataset
from suites.selftest.conftest import RECORDS

pytestmark = pytest.mark.selftest

IMAGES = 96
FP32, INT8 = "pisa-mini-fp32-onnxruntime", "pisa-mini-int8-onnxruntime"


@dataclass
class Runs:
    """Real runs on the first embedded images, each made when it is first asked for."""

    cache: Path
    made: dict[tuple[str, int | None], Recorded] = field(default_factory=dict)

    def __call__(self, cell: str, batch: int | None = None) -> Recorded:
        """The run of `paa-mini-fp16-onnxruntime`; of `shipped pisa-mini-fp32-onnxruntime`, its shipped record."""
        if cell.startswith("shipped "):
            return records.load(RECORDS / cell.removeprefix("shipped "))
        if (cell, batch) not in self.made:
            pipeline = Pipeline(Settings(cache_dir=self.cache, limit=IMAGES, batch_size=batch))
            model, precision, engine = cell.rsplit("-", 2)
            reason = pipeline.engine(engine).available()
            if reason is not None:
                pytest.skip(reason)
            self.made[cell, batch] = measure_accuracy(pipeline, Cell(model, precision, engine)).recorded  # type: ignore[arg-type]
        return self.made[cell, batch]


@pytest.fixture(scope="module")
def runs(session_cache: Path) -> Runs:
    return Runs(session_cache)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset("mini", tmp_path_factory.getbasetemp()).limit(IMAGES)


def shipped(cell: str = FP32) -> Recorded:
    return records.load(RECORDS / cell)


def changed(run: Recorded, detections: Detections, **facts: Any) -> Recorded:
    """The run with other detections and facts."""
    return Recorded(run.record.model_copy(update=facts), detections)


def by_check(verdicts: list[Verdict]) -> dict[str, Verdict]:
    return {verdict.check: verdict for verdict in verdicts}


def failing(verdicts: list[Verdict]) -> set[str]:
    return {verdict.check for verdict in verdicts if verdict.fails(required=True)}


# --- faults


def only(detections: Detections, kept: np.ndarray) -> Detections:
    """The boxes that are kept, of the same images."""
    columns = ("image_id", "xywh", "score", "category_id")
    return replace(detections, **{name: getattr(detections, name)[kept] for name in columns})


def moved(detections: Detections, xywh: np.ndarray) -> Detections:
    return replace(detections, xywh=xywh.astype(np.float32))


def lost_images(detections: Detections) -> Detections:
    """Three images that never reached the engine."""
    rest = detections.images[:-3]
    return replace(only(detections, np.isin(detections.image_id, rest)), images=rest)


def emptied_image(detections: Detections) -> Detections:
    """The image with the fewest confident boxes finds nothing, as a black picture does."""
    ids, counts = np.unique(detections.image_id[detections.score > 0.3], return_counts=True)
    return only(detections, detections.image_id != ids[counts.argmin()])


def scaled(detections: Detections) -> Detections:
    """1 % larger around their centres."""
    x, y, w, h = detections.xywh.T
    return moved(detections, np.column_stack([x - w * 0.005, y - h * 0.005, w * 1.01, h * 1.01]))


def shifted(detections: Detections) -> Detections:
    return moved(detections, detections.xywh + np.array([0.25, 0, 0, 0]))


def rounded(detections: Detections) -> Detections:
    return moved(detections, detections.xywh.round())


def jittered(detections: Detections) -> Detections:
    noise = np.random.default_rng(0).normal(1, 0.03, detections.xywh.shape)
    return moved(detections, detections.xywh * noise)


def swapped_classes(detections: Detections) -> Detections:
    one, other = np.unique(detections.category_id)[:2]
    new = detections.category_id.copy()
    new[detections.category_id == one], new[detections.category_id == other] = other, one
    return replace(detections, category_id=new)


def lost_class(detections: Detections) -> Detections:
    return only(detections, detections.category_id != np.unique(detections.category_id)[2])


def half_the_boxes(detections: Detections) -> Detections:
    """At most 20 boxes an image."""
    counts = [np.arange((detections.image_id == image).sum()) for image in detections.images]
    return only(detections, np.concatenate(counts) < 20)


FAULTS: Mapping[str, tuple[Callable[[Detections], Detections], set[str]]] = {
    "a raised score threshold": (lambda found: found.above(0.2), {"count"}),
    "at most 20 boxes an image": (half_the_boxes, {"count"}),
    "scores squared": (lambda found: replace(found, score=found.score**2), {"count"}),
    "three images lost": (lost_images, {"integrity"}),
    "one image without boxes": (emptied_image, {"count"}),
    "no boxes at all": (lambda found: found.above(1.0), {"integrity"}),
    "boxes scaled by 1 %": (scaled, {"box_bias"}),
    "boxes shifted by a quarter of a pixel": (shifted, {"box_bias"}),
    "boxes rounded to pixels": (rounded, {"detections"}),
    "boxes jittered by 3 %": (jittered, {"detections", "map_50_95"}),
    "two classes swapped": (swapped_classes, {"detections", "map_50_95", "map_50", "worst_class"}),
    "a class lost": (lost_class, {"detections", "worst_class", "count"}),
}


@pytest.mark.parametrize("model", ["pisa-mini", pytest.param("paa-mini", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_by_its_check(runs: Runs, dataset: Dataset, model: str, fault: str) -> None:
    good = shipped() if model == "pisa-mini" else runs("paa-mini-fp32-onnxruntime")
    damage, checks = FAULTS[fault]
    (verdicts,) = judge_all([Pair(dataset, good, changed(good, damage(good.detections)), "look")])
    assert checks <= failing(verdicts)


def test_every_check_has_a_fault_that_it_catches() -> None:
    assert set().union(*(checks for _, checks in FAULTS.values())) == set(CHECKS)


@pytest.mark.parametrize("fault", ["one image without boxes", "boxes scaled by 1 %"])
def test_a_rule_of_two_tenths_of_a_point_of_ap_would_miss(dataset: Dataset, fault: str) -> None:
    good = shipped().detections
    assert abs(Comparison(dataset, good, FAULTS[fault][0](good)).change("map_50_95")) < 0.002


def test_a_rule_of_two_tenths_of_a_point_of_ap_would_miss_a_threshold_of_one_tenth(dataset: Dataset) -> None:
    good = shipped()
    pair = Pair(dataset, good, changed(good, good.detections.above(0.1)), "look")
    assert abs(pair.comparison.change("map_50_95")) < 0.002
    assert judge(pair, "count").status is Status.REGRESSED


def test_what_was_mended_is_improved(dataset: Dataset) -> None:
    good = shipped()
    pair = Pair(dataset, changed(good, swapped_classes(good.detections)), good, "look")
    assert judge(pair, "map_50_95").status is Status.IMPROVED


# --- harmless


HARMLESS: Mapping[str, tuple[tuple[str, int | None], tuple[str, int | None]]] = {
    "run again, here": ((f"shipped {FP32}", None), (FP32, None)),
    "int8 run again, here": ((f"shipped {INT8}", None), (INT8, None)),
    "pisa-mini in another batch": ((FP32, None), (FP32, 5)),
    "paa-mini in another batch": (("paa-mini-fp32-onnxruntime", None), ("paa-mini-fp32-onnxruntime", 5)),
    "pisa-mini in fp16": ((FP32, None), ("pisa-mini-fp16-onnxruntime", None)),
    "paa-mini in fp16": (("paa-mini-fp32-onnxruntime", None), ("paa-mini-fp16-onnxruntime", None)),
    "pisa-mini by openvino": ((FP32, None), ("pisa-mini-fp32-openvino", None)),
    "paa-mini by openvino": (("paa-mini-fp32-onnxruntime", None), ("paa-mini-fp32-openvino", None)),
    "pisa-mini in int8 by openvino": ((INT8, None), ("pisa-mini-int8-openvino", None)),
    "paa-mini in int8 by openvino": (("paa-mini-int8-onnxruntime", None), ("paa-mini-int8-openvino", None)),
    "pisa-mini from fp32 to int8": ((FP32, None), (INT8, None)),
    "paa-mini from fp32 to int8": (("paa-mini-fp32-onnxruntime", None), ("paa-mini-int8-onnxruntime", None)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "paa-mini" in name else []) for name in HARMLESS]
)
def test_a_harmless_change_passes_every_check(runs: Runs, dataset: Dataset, name: str) -> None:
    before, after = (runs(*arguments) for arguments in HARMLESS[name])
    (verdicts,) = judge_all([Pair(dataset, before, after, "look")])
    assert {verdict.check: verdict.reason for verdict in verdicts if verdict.check in failing(verdicts)} == {}


def test_the_same_bits_pass_at_once(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(*_: object) -> None:
        raise AssertionError("nothing else should be computed")

    monkeypatch.setattr("harness.measure.compare.evaluate", computed)
    (verdicts,) = judge_all([Pair(dataset, shipped(), shipped(), "look")])
    assert [(verdict.check, verdict.status) for verdict in verdicts] == [("identical", Status.PASS)]


@pytest.mark.parametrize("check", CHECKS)
def test_the_same_bits_pass_each_check_alone(dataset: Dataset, check: str) -> None:
    assert judge(Pair(dataset, shipped(), shipped(), "look"), check).check == "identical"


# --- what may differ depends on what was changed


def record(**facts: Any) -> Record:
    return shipped().record.model_copy(update=facts)


def artifacts(**hashes: str | None) -> dict[str, Any]:
    return {"artifacts": shipped().record.artifacts.model_copy(update=hashes)}


RELATIONS: Mapping[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "same file"),
    "the batch's name only": ({"batch": 4}, "same file"),
    "the engine file": (artifacts(engine="another"), "rebuilt"),
    "the runtime's version": ({"engine_version": "99"}, "rebuilt"),
    "the device": ({"device": "cuda"}, "rebuilt"),
    "an option": ({"options": {"threads": "1"}}, "rebuilt"),
    "the engine": ({"engine": "openvino", **artifacts(engine="another")}, "rebuilt"),
    "the precision": ({"precision": "fp16", **artifacts(engine="another")}, "other precision"),
    "the weights": (artifacts(weights="another"), "other weights"),
    "the model": ({"model": "paa-mini"}, "other weights"),
    "weights that nobody saw": (artifacts(weights=None, engine="another"), "rebuilt"),
}


@pytest.mark.parametrize(("facts", "wanted"), RELATIONS.values(), ids=list(RELATIONS))
def test_a_relation_is_what_changed(facts: dict[str, Any], wanted: str) -> None:
    assert relation(record(), record(**facts)) == wanted


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("facts", [{}, {"engine_version": "99"}, artifacts(weights="another")])
def test_every_pair_of_one_precision_has_margins(dataset: Dataset, facts: dict[str, Any], precision: str) -> None:
    run = shipped()
    before = changed(run, run.detections, precision=precision)
    after = changed(run, run.detections, precision=precision, **facts)
    assert Pair(dataset, before, after, "look").margins.map_50_95 >= 0.0005


def test_margins_are_those_of_the_coarser_precision(dataset: Dataset) -> None:
    there, back = Pair(dataset, shipped(), shipped(INT8), ""), Pair(dataset, shipped(INT8), shipped(), "")
    assert there.margins == back.margins == previous.MARGINS["other precision", "int8"]


def test_a_rebuilt_fp16_engine_may_lose_four_times_as_much() -> None:
    same, rebuilt = (previous.MARGINS[relation, "fp16"] for relation in ("same file", "rebuilt"))
    assert (rebuilt.map_50_95, rebuilt.map_50) == (4 * same.map_50_95, 4 * same.map_50)


def test_boxes_of_other_weights_are_not_judged(dataset: Dataset) -> None:
    run = shipped()
    after = changed(run, lost_class(run.detections), **artifacts(weights="another"))
    (verdicts,) = judge_all([Pair(dataset, run, after, "look")])
    recorded = {verdict.check for verdict in verdicts if verdict.status is Status.RECORDED}
    assert recorded == {"detections", "box_bias", "count"}
    assert by_check(verdicts)["map_50_95"].status is Status.REGRESSED


# --- the data


def test_runs_on_different_data_are_refused(dataset: Dataset) -> None:
    other = shipped().record.dataset.model_copy(update={"sha256": "0" * 64, "images": 12})
    with pytest.raises(RecordError, match=r"first run, .*, was on mini, 96 images, .*; the second, .*, on mini, 12 im"):
        Pair(dataset, shipped(), changed(shipped(), shipped().detections, dataset=other), "look")


def test_another_data_set_than_the_runs_is_refused(dataset: Dataset) -> None:
    with pytest.raises(RecordError, match=r"was run on mini, 96 images, 768515679a51…; found mini, 8 images"):
        Pair(dataset.limit(8), shipped(), shipped(), "look")


def test_categories_that_the_data_set_lacks_are_invalid(dataset: Dataset) -> None:
    run = shipped()
    strange = replace(run.detections, category_id=run.detections.category_id + 100)
    assert judge(Pair(dataset, run, changed(run, strange), "look"), "count").check == "integrity"


@pytest.mark.parametrize("check", ["detections", "box_bias"])
def test_without_a_confident_box_before_nothing_can_be_judged(dataset: Dataset, check: str) -> None:
    run = shipped()
    unsure = changed(run, replace(run.detections, score=run.detections.score * np.float32(0.1)))
    assert judge(Pair(dataset, unsure, run, "look"), check).status is Status.INVALID


def test_boxes_that_all_lost_their_partner_have_no_bias_to_judge(dataset: Dataset) -> None:
    run = shipped()
    far = changed(run, moved(run.detections, run.detections.xywh + np.array([5000, 0, 0, 0])))
    assert judge(Pair(dataset, run, far, "look"), "box_bias").status is Status.INVALID


# --- chance


def test_holm_is_that_of_the_paper() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005], 4) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_of_one_p_is_bonferronis() -> None:
    assert holm([0.004], 5) == [pytest.approx(0.02)]


def test_holm_stays_a_chance() -> None:
    assert holm([0.5, 0.9], 2) == [1.0, 1.0]


def lower_by(pair: Pair, change: float, standard_error: float) -> Pair:
    """A pair whose AP changed so."""
    found = {name: Difference(0.5, 0.5 + change, standard_error) for name in ("map_50_95", "map_50")}
    numbers = [replace(pair.comparison.metrics[0], map_50_95=ap, map_50=ap) for ap in (0.5, 0.5 + change)]
    vars(pair.comparison).update(differences=found, metrics=tuple(numbers))
    return pair


@pytest.fixture
def pair(dataset: Dataset) -> Pair:
    run = shipped()
    return Pair(dataset, run, changed(run, rounded(run.detections)), "look")


@pytest.mark.parametrize(
    ("change", "standard_error", "status"),
    [
        (-0.01, 0.004, Status.REGRESSED),
        (-0.01, 0.005, Status.PASS),
        (-0.0004, 0.0, Status.PASS),
        (-0.0005, 0.0001, Status.REGRESSED),
        (0.0005, 0.0001, Status.IMPROVED),
        (0.01, 0.005, Status.PASS),
    ],
)
def test_ap_is_worse_beyond_its_margin_and_beyond_chance(
    pair: Pair, change: float, standard_error: float, status: Status
) -> None:
    assert judge(lower_by(pair, change, standard_error), "map_50_95").status is status


def test_a_fall_that_one_cell_cannot_explain_may_be_chance_among_many(pair: Pair) -> None:
    fallen = lower_by(pair, -0.01, 0.004)
    assert [judge(fallen, "map_50_95", tests).status for tests in (1, 2)] == [Status.REGRESSED, Status.PASS]


def test_the_worst_of_many_cells_is_corrected_most(dataset: Dataset) -> None:
    run = shipped()
    pairs = [
        lower_by(Pair(dataset, run, changed(run, rounded(run.detections)), ""), -0.01, error)
        for error in (0.0035, 0.004)
    ]
    chances = [Family(pairs, 2).chances(pair, "map_50_95")[0] for pair in pairs]
    assert chances == [pytest.approx(2 * 0.00214, rel=0.01), pytest.approx(0.00621, rel=0.01)]


def test_a_verdict_names_figure_expectation_margin_and_what_to_do(pair: Pair) -> None:
    verdict = judge(lower_by(pair, -0.01, 0.003), "map_50_95")
    facts = "0.5000 -> 0.4900 (-0.0100), margin 0.0005, 95 % interval -0.0159 to -0.0041, p 0.00043"
    assert verdict.message() == f"REGRESSED {FP32} map_50_95: {facts}\n  next: look"
    assert (verdict.figure, verdict.expected, verdict.tolerance) == (0.49, 0.5, 0.0005)
