"""The fast evaluator gives the referee's numbers: pycocotools', all 12 and every entry of the curves, within 1e-12."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fixtures.val2017 import BOXES_FOUND, disturbed, of_the_size_of_val2017
from harness.detect.dataset import Dataset, ImageRecord, load_coco
from harness.detect.detections import Detections
from harness.errors import EvaluationError
from harness.measure.curves import Curves
from harness.measure.evaluate import NUMBERS, CocoMetrics, evaluate, evaluate_reference
from harness.pipeline import EMBEDDED

pytestmark = pytest.mark.selftest

REFERENCE = "COCO_REFERENCE_DIR"

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
    pixels = cv2.imencode(".jpg", np.zeros((480, 640, 3), np.uint8))[1].tobytes()
    for row in content["images"]:
        (root / "val2017" / row["file_name"]).write_bytes(pixels)
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


def furthest(one: CocoMetrics, other: CocoMetrics) -> float:
    """The largest difference of any number, class, and entry of the curves."""
    pairs = [(value, numbers(other)[name]) for name, value in numbers(one).items()]
    pairs += [(getattr(one.curves, name), getattr(other.curves, name)) for name in ("precision", "recall")]
    return max(float(np.abs(mine - theirs).max()) for mine, theirs in pairs)


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
def test_both_evaluators_agree_on_every_number_and_entry(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = truths(rng)
    dataset, detections = make_dataset(tmp_path, rows), make_detections(rng, rows)
    assert furthest(evaluate(dataset, detections), evaluate_reference(dataset, detections)) < 1e-12


def test_both_evaluators_agree_on_a_limited_set(dataset: Dataset, detections: Detections) -> None:
    few = dataset.limit(7)
    assert furthest(evaluate(few, detections), evaluate_reference(few, detections)) < 1e-12


def test_both_evaluators_agree_on_the_embedded_set() -> None:
    embedded = load_coco(EMBEDDED / "data", "mini")
    detections = disturbed(embedded, boxes=8_000)
    metrics = evaluate(embedded, detections)
    assert 0.1 < metrics.map_50_95 < 0.9
    assert furthest(metrics, evaluate_reference(embedded, detections)) < 1e-12


def test_another_result_is_not_taken_for_the_same(dataset: Dataset, detections: Detections) -> None:
    one_less = Detections(
        **{name: column if name == "images" else column[:-1] for name, column in vars(detections).items()}
    )
    assert furthest(evaluate(dataset, detections), evaluate_reference(dataset, one_less)) > 1e-12


@dataclass(frozen=True)
class Float64Boxes:
    """Detections that are not rounded to float32, which would make the reference case's AP .5041 of .5046."""

    image_id: np.ndarray
    xywh: np.ndarray
    score: np.ndarray
    category_id: np.ndarray
    images: np.ndarray


@pytest.fixture(scope="module")
def reference_case() -> tuple[Dataset, Any]:
    """COCO API's own test: 100 images of val2014 and 734 made-up boxes."""
    folder = Path(os.environ[REFERENCE])
    file = folder / "instances_val2014_100.json"
    content = json.loads(file.read_bytes())
    images = sorted((ImageRecord(r["id"], folder, r["width"], r["height"]) for r in content["images"]), key=by_id)
    categories = {row["id"]: row["name"] for row in sorted(content["categories"], key=lambda row: row["id"])}
    dataset = Dataset("val2014", file, tuple(images), tuple(categories), tuple(categories.values()), "", False)
    rows = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_bytes())
    columns = {name: np.array([row[name] for row in rows]) for name in ("image_id", "bbox", "score", "category_id")}
    columns["xywh"] = columns.pop("bbox")
    return dataset, Float64Boxes(**columns, images=np.array([record.id for record in images]))


def by_id(record: ImageRecord) -> int:
    return record.id


with_reference = pytest.mark.skipif(REFERENCE not in os.environ, reason=f"{REFERENCE} names no folder of COCO API")


@pytest.mark.slow
@with_reference
@pytest.mark.parametrize("evaluator", [evaluate, evaluate_reference])
def test_the_reference_case_has_its_published_numbers(reference_case: tuple[Dataset, Any], evaluator: Any) -> None:
    metrics = evaluator(*reference_case)
    published = (0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564)
    assert [round(getattr(metrics, name), 3) for name in NUMBERS] == list(published)


@pytest.mark.slow
@with_reference
def test_both_evaluators_agree_on_the_reference_case(reference_case: tuple[Dataset, Any]) -> None:
    assert furthest(evaluate(*reference_case), evaluate_reference(*reference_case)) < 1e-12


@pytest.mark.slow
def test_both_evaluators_agree_on_a_set_of_the_size_of_val2017(tmp_path: Path) -> None:
    dataset = of_the_size_of_val2017(tmp_path)
    detections = disturbed(dataset, BOXES_FOUND)
    assert furthest(evaluate(dataset, detections), evaluate_reference(dataset, detections)) < 1e-12


def test_both_evaluators_agree_that_nothing_was_found(dataset: Dataset) -> None:
    assert furthest(evaluate(dataset, no_detections()), evaluate_reference(dataset, no_detections())) == 0


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


MEANS = {
    "map_50_95": ("average_precision", "all"),
    "map_small": ("average_precision", "small"),
    "map_medium": ("average_precision", "medium"),
    "map_large": ("average_precision", "large"),
    "mar_100": ("average_recall", "all"),
    "mar_small": ("average_recall", "small"),
    "mar_medium": ("average_recall", "medium"),
    "mar_large": ("average_recall", "large"),
}


@pytest.mark.parametrize("name", MEANS)
def test_each_number_is_the_mean_of_its_area_over_the_classes_with_ground_truth(
    dataset: Dataset, detections: Detections, name: str
) -> None:
    column, area = MEANS[name]
    metrics = evaluate(dataset, detections)
    values = getattr(metrics.curves, column)[:, metrics.curves.areas.index(area)]
    assert getattr(metrics, name) == pytest.approx(values[values >= 0].mean(), abs=1e-12)


def test_the_curves_are_cocos(dataset: Dataset, detections: Detections) -> None:
    curves = evaluate(dataset, detections).curves
    assert curves.precision.shape == (10, 101, len(CATEGORY_IDS), 4)
    assert curves.class_names == dataset.category_names
    assert curves.areas == ("all", "small", "medium", "large")


def test_the_curves_come_back_from_their_file(dataset: Dataset, detections: Detections, tmp_path: Path) -> None:
    curves = evaluate(dataset, detections).curves
    curves.save(tmp_path / "curves.npz")
    assert Curves.load(tmp_path / "curves.npz").precision.tobytes() == curves.precision.tobytes()


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
