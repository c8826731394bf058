"""The fast evaluator gives the referee's numbers: pycocotools', all 12 and every class, within 1e-12."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.detect.dataset import Dataset, load_coco
from harness.detect.detections import Detections
from harness.errors import EvaluationError
from harness.measure.evaluate import NUMBERS, CocoMetrics, evaluate, evaluate_reference

pytestmark = pytest.mark.selftest

CATEGORY_IDS = (2, 3, 7, 90)
EMPTY_CATEGORY = 90
IMAGES = 24
IMAGE_IDS = 2**25 + 1 + 2 * np.arange(IMAGES)
"""Odd ids above 2**24: float32 would round each onto its neighbour's."""


def truths(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Boxes of all three sizes, a tenth of them crowds, none on every sixth image, ids from 0."""
    rows: list[dict[str, Any]] = []
    for image_id in IMAGE_IDS[np.arange(IMAGES) % 6 > 0]:
        for _ in range(rng.integers(1, 9)):
            side = rng.choice([12, 60, 180])
            x, y, w, h = (*rng.uniform(0, 300, 2), *rng.uniform(0.7 * side, 1.3 * side, 2))
            place = {"image_id": int(image_id), "bbox": [x, y, w, h], "area": 0.8 * w * h}
            category = int(rng.choice(CATEGORY_IDS[:-1]))
            rows.append({"id": len(rows), "category_id": category, "iscrowd": int(rng.random() < 0.1), **place})
    return rows


def make_dataset(root: Path, annotations: list[dict[str, Any]]) -> Dataset:
    content = {
        "images": [{"id": int(i), "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in IMAGE_IDS],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORY_IDS],
    }
    (root / "annotations").mkdir()
    (root / "val2017").mkdir()
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    for row in content["images"]:
        (root / "val2017" / row["file_name"]).write_bytes(b"pixels")
    return load_coco(root, "synthetic")


def make_detections(rng: np.random.Generator, annotations: list[dict[str, Any]]) -> Detections:
    """Four jittered boxes per true one, a tenth of them of another class; scores of one decimal, so most are tied."""
    rows = [row for row in annotations for _ in range(4)]
    n = len(rows)
    swapped = rng.random(n) < 0.1
    categories = np.where(swapped, rng.choice(CATEGORY_IDS, n), [row["category_id"] for row in rows])
    jitter = 1 + rng.normal(0, 0.08, (n, 4))
    return Detections(
        image_id=np.array([row["image_id"] for row in rows], np.int64),
        xywh=(np.array([row["bbox"] for row in rows]) * jitter).astype(np.float32),
        score=rng.uniform(0, 1, n).round(1).astype(np.float32),
        category_id=categories.astype(np.int64),
        images=rng.permutation(IMAGE_IDS).astype(np.int64),
    )


def no_detections(images: int = IMAGES) -> Detections:
    none = np.zeros(0, np.int64)
    return Detections(
        none, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), none, IMAGE_IDS[:images].astype(np.int64)
    )


def perfect(annotations: list[dict[str, Any]]) -> Detections:
    return Detections(
        image_id=np.array([row["image_id"] for row in annotations], np.int64),
        xywh=np.array([row["bbox"] for row in annotations], np.float32),
        score=np.linspace(1, 0.5, len(annotations), dtype=np.float32),
        category_id=np.array([row["category_id"] for row in annotations], np.int64),
        images=IMAGE_IDS.astype(np.int64),
    )


def numbers(metrics: CocoMetrics) -> dict[str, float]:
    return {name: getattr(metrics, name) for name in NUMBERS} | metrics.per_class


@pytest.fixture(scope="module")
def annotations() -> list[dict[str, Any]]:
    return truths(np.random.default_rng(0))


@pytest.fixture(scope="module")
def dataset(annotations: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("coco"), annotations)


@pytest.fixture(scope="module")
def detections(annotations: list[dict[str, Any]]) -> Detections:
    return make_detections(np.random.default_rng(1), annotations)


@pytest.mark.parametrize("seed", range(6))
def test_both_evaluators_agree_on_all_12_numbers_and_every_class(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = truths(rng)
    dataset, detections = make_dataset(tmp_path, rows), make_detections(rng, rows)
    assert numbers(evaluate(dataset, detections)) == pytest.approx(
        numbers(evaluate_reference(dataset, detections)), rel=0, abs=1e-12
    )


def test_both_evaluators_agree_on_a_limited_set(dataset: Dataset, detections: Detections) -> None:
    few = dataset.limit(7)
    assert numbers(evaluate(few, detections)) == pytest.approx(
        numbers(evaluate_reference(few, detections)), rel=0, abs=1e-12
    )


def test_both_evaluators_agree_that_nothing_was_found(dataset: Dataset) -> None:
    assert evaluate(dataset, no_detections()) == evaluate_reference(dataset, no_detections())


def test_the_synthetic_set_is_neither_trivial_nor_hopeless(dataset: Dataset, detections: Detections) -> None:
    assert 0.1 < evaluate(dataset, detections).map_50_95 < 0.9


def test_perfect_boxes_score_one(dataset: Dataset, annotations: list[dict[str, Any]]) -> None:
    assert evaluate(dataset, perfect(annotations)).map_50_95 == pytest.approx(1)


def test_no_boxes_score_zero(dataset: Dataset) -> None:
    assert evaluate(dataset, no_detections()).map_50_95 == 0


def test_a_limit_leaves_the_other_images_out(dataset: Dataset, annotations: list[dict[str, Any]]) -> None:
    assert evaluate(dataset.limit(7), perfect(annotations)).map_50_95 == pytest.approx(1)


def test_boxes_on_other_images_are_not_counted(dataset: Dataset, detections: Detections) -> None:
    on_the_first_seven = int(np.isin(detections.image_id, IMAGE_IDS[:7]).sum())
    assert evaluate(dataset.limit(7), detections).detections == on_the_first_seven


def test_images_that_were_not_processed_are_not_counted(dataset: Dataset) -> None:
    assert evaluate(dataset, no_detections(images=20)).images == 20


def test_an_image_that_was_not_processed_counts_as_one_without_boxes(
    dataset: Dataset, annotations: list[dict[str, Any]]
) -> None:
    processed = perfect([row for row in annotations if row["image_id"] != IMAGE_IDS[1]])
    assert evaluate(dataset, processed).mar_100 < 1


def test_classes_are_named_in_the_order_of_their_ids(dataset: Dataset, detections: Detections) -> None:
    assert list(evaluate(dataset, detections).per_class) == [f"class {i}" for i in CATEGORY_IDS]


def test_a_class_without_ground_truth_stays_minus_one(dataset: Dataset, detections: Detections) -> None:
    assert evaluate(dataset, detections).per_class[f"class {EMPTY_CATEGORY}"] == -1


def test_ap_is_the_mean_of_the_classes_with_ground_truth(dataset: Dataset, detections: Detections) -> None:
    metrics = evaluate(dataset, detections)
    present = [ap for ap in metrics.per_class.values() if ap >= 0]
    assert metrics.map_50_95 == pytest.approx(np.mean(present), abs=1e-12)


def test_a_size_without_ground_truth_stays_minus_one(tmp_path: Path, annotations: list[dict[str, Any]]) -> None:
    rows = [row for row in annotations if row["area"] < 32**2]
    assert evaluate(make_dataset(tmp_path, rows), perfect(rows)).map_large == -1


@pytest.mark.parametrize("evaluator", [evaluate, evaluate_reference])
def test_no_ground_truth_at_all_is_refused(tmp_path: Path, evaluator: Any) -> None:
    with pytest.raises(EvaluationError, match="hold no ground truth, so AP is -1"):
        evaluator(make_dataset(tmp_path, []), no_detections())


def test_crowds_alone_are_no_ground_truth(tmp_path: Path, annotations: list[dict[str, Any]]) -> None:
    crowds = [row | {"iscrowd": 1} for row in annotations]
    with pytest.raises(EvaluationError, match="AP is -1"):
        evaluate(make_dataset(tmp_path, crowds), perfect(crowds))


def test_detections_of_another_data_set_are_refused(dataset: Dataset) -> None:
    strangers = Detections(**{**vars(no_detections()), "images": np.array([5], np.int64)})
    with pytest.raises(EvaluationError, match="none of the 24 images of synthetic was processed"):
        evaluate(dataset, strangers)


def test_unknown_categories_are_refused(dataset: Dataset, detections: Detections) -> None:
    relabelled = Detections(**{**vars(detections), "category_id": np.full(len(detections), 4, np.int64)})
    with pytest.raises(EvaluationError, match="categories that synthetic does not: 4"):
        evaluate(dataset, relabelled)


@pytest.mark.parametrize("evaluator", [evaluate, evaluate_reference])
def test_evaluation_is_silent(
    dataset: Dataset, detections: Detections, evaluator: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluator(dataset, detections)
    assert capfd.readouterr() == ("", "")
