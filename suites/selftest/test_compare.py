"""Two runs on the same images: AP before and after with its noise, boxes that match, boxes that are lost or won."""

from dataclasses import replace
from typing import Any

import hotcoco
import numpy as np
import pytest

from harness.detect.dataset import Dataset
from harness.detect.detections import Detections
from harness.judge import record as records
from harness.measure import compare
from harness.measure.compare import RESAMPLED_ONCE, Comparison, Difference, pairwise_iou
from harness.measure.evaluate import evaluate, evaluator
from harness.pipeline import load_dataset
from suites.selftest.conftest import RECORDS

pytestmark = pytest.mark.selftest

FP32, INT8 = "pisa-mini-fp32-onnxruntime", "pisa-mini-int8-onnxruntime"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset("mini", tmp_path_factory.getbasetemp()).limit(96)


@pytest.fixture(scope="module")
def fp32() -> Detections:
    return records.load(RECORDS / FP32).detections


@pytest.fixture(scope="module")
def int8() -> Detections:
    return records.load(RECORDS / INT8).detections


@pytest.fixture(scope="module")
def compared(dataset: Dataset, fp32: Detections, int8: Detections) -> Comparison:
    return Comparison(dataset, fp32, int8)


# --- AP


@pytest.mark.parametrize("metric", ["map_50_95", "map_50"])
def test_the_bootstraps_change_is_that_of_evaluate(compared: Comparison, metric: str) -> None:
    before, after = (getattr(evaluate(compared.dataset, one), metric) for one in (compared.before, compared.after))
    found = compared.differences[metric]
    assert (found.before, found.after) == (pytest.approx(before, abs=1e-12), pytest.approx(after, abs=1e-12))
    assert found.change == pytest.approx(compared.change(metric), abs=1e-9)


def test_the_bootstrap_leaves_out_what_ap_does_not_need(compared: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "BOOTSTRAPS", 50)
    again = Comparison(compared.dataset, compared.before, compared.after)
    monkeypatch.setattr(compare, "evaluator", with_every_number)
    whole = Comparison(compared.dataset, compared.before, compared.after)
    assert again.differences == whole.differences
    assert again.class_difference("arrow") == whole.class_difference("arrow")


def with_every_number(*of: Any) -> Any:
    """An evaluator of all of COCO's areas and numbers of boxes."""
    made = evaluator(*of)
    coco = hotcoco.COCO({"images": [], "annotations": [], "categories": []})
    default = hotcoco.COCOeval(coco, coco, "bbox").params
    assert (made.params.areaRngLbl, made.params.maxDets) == (["all"], [100])
    for name in ("areaRng", "areaRngLbl", "maxDets"):
        setattr(made.params, name, getattr(default, name))
    return made


def test_a_class_is_compared_by_its_own_ap(compared: Comparison) -> None:
    before, after = compared.classes["arrow"]
    found = compared.class_difference("arrow")
    assert (found.before, found.after) == (pytest.approx(before, abs=1e-12), pytest.approx(after, abs=1e-12))


def test_intervals_are_those_of_another_run_of_the_same_comparison(
    compared: Comparison, dataset: Dataset, fp32: Detections, int8: Detections
) -> None:
    assert Comparison(dataset, fp32, int8).differences == compared.differences


@pytest.mark.slow
def test_the_standard_error_is_that_of_resamples_with_repeats(compared: Comparison) -> None:
    """hotcoco's resamples hold each image once at most; against 150 that repeat images, by `np.random`."""
    rng, changes = np.random.default_rng(0), []
    for _ in range(150):
        chosen = rng.choice([record.id for record in compared.dataset.images], len(compared.dataset.images))
        before, after = (resampled_ap(compared.dataset, one, chosen) for one in (compared.before, compared.after))
        changes.append(after - before)
    assert compared.differences["map_50_95"].standard_error == pytest.approx(np.std(changes), rel=0.2)


def resampled_ap(dataset: Dataset, detections: Detections, chosen: np.ndarray) -> float:
    """AP on the `chosen` images, each as often as it is there."""
    truth = hotcoco.COCO(dataset.annotation_file)
    rows, annotations = [], []
    for place, image_id in enumerate(chosen.tolist(), 1):
        for one in truth.load_anns(truth.get_ann_ids([image_id])):
            annotations.append({**one, "id": len(annotations) + 1, "image_id": place})
        own = detections.image_id == image_id
        columns = [detections.xywh[own], detections.score[own, None], detections.category_id[own, None]]
        rows.append(np.concatenate([np.full((own.sum(), 1), place), *columns], axis=1, dtype=np.float64))
    images = [{"id": place, "width": 640, "height": 640} for place in range(1, len(chosen) + 1)]
    categories = [{"id": i, "name": str(i)} for i in dataset.category_ids]
    repeated = hotcoco.COCO({"images": images, "annotations": annotations, "categories": categories})
    evaluator = hotcoco.COCOeval(repeated, repeated.load_res(np.concatenate(rows)), "bbox")
    evaluator.run()
    return float(evaluator.stats[0])


def test_a_change_of_two_standard_errors_has_their_p() -> None:
    assert Difference(0.5, 0.48, 0.01).p_worse == pytest.approx(0.02275, abs=1e-5)


def test_an_interval_lies_around_the_change() -> None:
    assert Difference(0.5, 0.48, 0.01).interval() == (
        pytest.approx(-0.0396, abs=1e-4),
        pytest.approx(-0.0004, abs=1e-4),
    )


@pytest.mark.parametrize(("after", "p"), [(0.4, 0.0), (0.5, 0.5), (0.6, 1.0)])
def test_a_change_without_noise_is_certain(after: float, p: float) -> None:
    assert Difference(0.5, after, 0.0).p_worse == p


def test_each_image_once_is_63_of_100() -> None:
    assert pytest.approx(1.31, abs=0.001) == RESAMPLED_ONCE


# --- boxes


def test_boxes_agree_with_themselves(dataset: Dataset, fp32: Detections) -> None:
    assert Comparison(dataset, fp32, fp32).agreement == 1.0


def test_a_box_that_is_missing_lowers_the_agreement(dataset: Dataset, fp32: Detections) -> None:
    assert (Comparison(dataset, fp32, fp32.above(0.5)).agreement or 0) < 0.9


def test_without_a_confident_box_there_is_nothing_to_agree_with(dataset: Dataset, fp32: Detections) -> None:
    unsure = replace(fp32, score=fp32.score * np.float32(0.1))
    assert Comparison(dataset, unsure, fp32).agreement is None


def test_every_confident_box_matches_itself(dataset: Dataset, fp32: Detections) -> None:
    found = Comparison(dataset, fp32, fp32).matches
    assert np.array_equal(np.sort(found.before), np.flatnonzero(fp32.score > 0.3))
    assert np.array_equal(found.before, found.after)


def boxes(*rows: tuple[int, float, float, float, float, float, int], images: int = 2) -> Detections:
    """(image, x, y, w, h, score, category) rows."""
    columns = np.array(rows, np.float64).reshape(-1, 7)
    return Detections(
        columns[:, 0].astype(np.int64),
        columns[:, 1:5].astype(np.float32),
        columns[:, 5].astype(np.float32),
        columns[:, 6].astype(np.int64),
        np.arange(1, images + 1, dtype=np.int64),
    )


BOX = (1, 10.0, 10.0, 20.0, 20.0, 0.9, 1)


@pytest.mark.parametrize(
    "other",
    [(2, *BOX[1:]), (*BOX[:6], 2), (1, 25.0, *BOX[2:])],
    ids=["another image", "another class", "an IoU under one half"],
)
def test_boxes_do_not_match(dataset: Dataset, other: tuple[int, float, float, float, float, float, int]) -> None:
    assert len(Comparison(dataset, boxes(BOX), boxes(other)).matches.before) == 0


def test_each_box_matches_once_and_the_closest_first(dataset: Dataset) -> None:
    near, nearer = (1, 12.0, *BOX[2:]), (1, 11.0, *BOX[2:])
    found = Comparison(dataset, boxes(near, BOX), boxes(nearer, BOX)).matches
    assert sorted(zip(found.before.tolist(), found.after.tolist(), strict=True)) == [(0, 0), (1, 1)]


def test_the_bias_is_of_the_side_and_in_pixels(dataset: Dataset) -> None:
    wider = (1, 10.0, 9.0, 21.0, 20.0, 0.9, 1)
    bias = Comparison(dataset, boxes(BOX), boxes(wider)).bias
    assert bias is not None
    assert [side.tolist() for side in bias] == [[0, -0.05, 0.05, 0], [0, -1, 1, 0]]


def test_boxes_are_counted_by_score(dataset: Dataset) -> None:
    before, after = boxes(BOX, (*BOX[:5], 0.2, 1)), boxes(BOX, (*BOX[:5], 0.05, 1), (*BOX[:5], 0.06, 1))
    found = Comparison(dataset, before, after).bands
    assert [(band.before, band.after) for band in found] == [(0, 2), (1, 0), (1, 1)]


def test_images_that_lost_every_box_are_named(dataset: Dataset) -> None:
    before = boxes(BOX, (2, *BOX[1:]))
    assert Comparison(dataset, before, boxes(BOX)).emptied.tolist() == [2]


def test_a_box_that_became_unsure_does_not_empty_its_image(dataset: Dataset) -> None:
    assert Comparison(dataset, boxes(BOX), boxes((*BOX[:5], 0.1, 1))).emptied.size == 0


def test_images_are_listed_by_boxes_lost_and_won_then_by_the_worst_pair(dataset: Dataset) -> None:
    moved = (1, 11.0, *BOX[2:])
    before = boxes(BOX, (2, *BOX[1:]), (3, *BOX[1:]), images=3)
    after = boxes(moved, (2, *BOX[1:]), (3, *BOX[1:6], 2), images=3)
    found = [
        (one.image_id, one.boxes, one.lost, one.won, round(one.iou, 3))
        for one in (Comparison(dataset, before, after).images)
    ]
    assert found == [(3, 1, 1, 1, 1.0), (1, 1, 0, 0, 0.905)]


@pytest.mark.parametrize(
    ("other", "iou"), [((0, 0, 2, 2), 1.0), ((1, 0, 2, 2), 1 / 3), ((2, 0, 2, 2), 0.0), ((0, 0, 0, 0), 0.0)]
)
def test_iou(other: tuple[float, ...], iou: float) -> None:
    assert pairwise_iou(np.array([0, 0, 2, 2]), np.array(other)) == pytest.approx(iou)
