"""Takes a `Dataset` and `Detections`; gives `CocoMetrics`: COCO's 12 box numbers, the AP of every class, the curves."""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.detect.dataset import Dataset
from harness.detect.detections import Detections
from harness.errors import EvaluationError
from harness.measure.curves import ABSENT, Curves

_PRECISIONS = ("map_50_95", "map_50", "map_75", "map_small", "map_medium", "map_large")
_RECALLS = ("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large")
NUMBERS = (*_PRECISIONS, *_RECALLS)
"""COCO's 12 numbers in the order of its summary."""


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's 12 box numbers (fractions, in COCO's order), and what they were computed from.

    map_*: average precision, at most 100 boxes an image; over IoU .50:.95 unless the name says otherwise. Small is
    under 32^2 pixels of area, large over 96^2. mar_*: average recall with at most 1, 10 or 100 boxes, and by area.
    per_class: class name -> its map_50_95. A size or class without ground truth is -1.
    images: the data set's images that were processed; those that were not count as images without detections.
    detections: boxes on the data set's images.
    curves: precision and recall by class, area and IoU, which all of the above but mar_1 and mar_10 are means of;
        not compared by ==, and kept beside the results file, not in it.
    """

    map_50_95: float
    map_50: float
    map_75: float
    map_small: float
    map_medium: float
    map_large: float
    mar_1: float
    mar_10: float
    mar_100: float
    mar_small: float
    mar_medium: float
    mar_large: float
    per_class: dict[str, float]
    images: int
    detections: int
    curves: Curves = field(compare=False, repr=False)


def evaluate(dataset: Dataset, detections: Detections) -> CocoMetrics:
    """Scores `detections` on the images of `dataset` with hotcoco; boxes on other images are left out.

    Raises:
        EvaluationError: none of the images was processed, a category is unknown, or no ground truth is there.
    """
    rows = _rows(dataset, detections)
    return _run(_hotcoco(dataset.annotation_file, rows), dataset, detections, len(rows))


def evaluator(dataset: Dataset, detections: Detections, categories: Sequence[int]) -> Any:
    """A hotcoco COCOeval of some of the categories, not yet evaluated; of AP over objects of any size alone.

    Raises:
        EvaluationError: as `evaluate`.
    """
    made = _chosen(_hotcoco(dataset.annotation_file, _rows(dataset, detections)), _image_ids(dataset), categories)
    # Of the 4 areas and 3 numbers of boxes by which COCO has its 12 numbers, AP needs one each: a fifth of the time.
    made.params.areaRng, made.params.areaRngLbl = made.params.areaRng[:1], made.params.areaRngLbl[:1]
    made.params.maxDets = made.params.maxDets[-1:]
    return made


def evaluate_against(dataset: Dataset, truth: Detections, detections: Detections) -> float:
    """AP over IoU .50:.95 of `detections` where the boxes of `truth` are the ground truth of the data set's images.

    Raises:
        EvaluationError: as `evaluate`.
    """
    rows = _rows(dataset, truth)
    content = {
        "images": [{"id": one.id, "width": one.width, "height": one.height} for one in dataset.images],
        "annotations": _found(rows),
        "categories": [{"id": i, "name": n} for i, n in zip(dataset.category_ids, dataset.category_names, strict=True)],
    }
    found = _rows(dataset, detections)
    return _run(_hotcoco(content, found), dataset, detections, len(found)).map_50_95


def evaluate_reference(dataset: Dataset, detections: Detections) -> CocoMetrics:
    """The same with pycocotools, the referee that `evaluate` is held to; about fifty times slower.

    Raises:
        EvaluationError: as `evaluate`.
    """
    evaluator, boxes = reference_evaluator(dataset, detections)
    return _run(evaluator, dataset, detections, boxes)


def reference_evaluator(dataset: Dataset, detections: Detections) -> tuple[Any, int]:
    """A `COCOeval` of pycocotools for boxes, not yet run; and how many boxes are on the data set's images.

    Raises:
        EvaluationError: as `evaluate`, but for missing ground truth.
    """
    from pycocotools.cocoeval import COCOeval

    rows = _rows(dataset, detections)
    content = json.loads(dataset.annotation_file.read_bytes())
    evaluator = COCOeval(_reference_coco(content, _truths(content)), _reference_coco(content, _found(rows)), "bbox")
    return _chosen(evaluator, _image_ids(dataset), dataset.category_ids), len(rows)


def _rows(dataset: Dataset, detections: Detections) -> npt.NDArray[np.float64]:
    """`[N, 7]` image id, x, y, w, h, score, category id; float64, for float32 rounds ids above 2**24."""
    image_ids = _image_ids(dataset)
    if not np.isin(detections.images, image_ids).any():
        raise EvaluationError(
            f"none of the {len(image_ids)} images of {dataset.name} was processed",
            f"run the detector on {dataset.name}",
        )
    unknown = np.setdiff1d(detections.category_id, dataset.category_ids)
    if unknown.size:
        raise EvaluationError(
            f"detections have categories that {dataset.name} does not: {', '.join(map(str, unknown[:5]))}",
            "use the data set that the model was trained for",
        )
    columns = (detections.image_id, detections.xywh, detections.score, detections.category_id)
    rows = np.column_stack([column.astype(np.float64) for column in columns])
    return rows[np.isin(detections.image_id, image_ids)]


def _image_ids(dataset: Dataset) -> list[int]:
    return [record.id for record in dataset.images]


def _truths(content: dict[str, Any]) -> list[dict[str, Any]]:
    # Renumbered from 1: pycocotools notes a match as the annotation's id and reads 0 as "not matched".
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    return [{"id": i, **{key: row[key] for key in keys}} for i, row in enumerate(content["annotations"], 1)]


def _hotcoco(ground_truth: Path | dict[str, Any], rows: npt.NDArray[np.float64]) -> Any:
    import hotcoco

    truth = hotcoco.COCO(ground_truth)
    return hotcoco.COCOeval(truth, truth.load_res(rows), "bbox")


def _chosen(evaluator: Any, image_ids: list[int], categories: Sequence[int]) -> Any:
    # Both evaluators have these names in COCO's own spelling.
    evaluator.params.imgIds = image_ids
    evaluator.params.catIds = list(categories)
    return evaluator


def _found(rows: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    return [
        {
            "id": i,
            "image_id": int(row[0]),
            "category_id": int(row[6]),
            "bbox": row[1:5].tolist(),
            "area": float(row[3] * row[4]),
            "score": float(row[5]),
            "iscrowd": 0,
        }
        for i, row in enumerate(rows, 1)
    ]


def _reference_coco(content: dict[str, Any], annotations: list[dict[str, Any]]) -> Any:
    # Filled by hand: pycocotools' own loader of results fails when there are none.
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {**content, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _run(evaluator: Any, dataset: Dataset, detections: Detections, boxes: int) -> CocoMetrics:
    image_ids = _image_ids(dataset)
    _chosen(evaluator, image_ids, dataset.category_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    numbers: dict[str, Any] = dict(zip(NUMBERS, map(float, evaluator.stats), strict=True))
    if numbers["map_50_95"] == ABSENT:
        raise EvaluationError(
            f"the {len(image_ids)} images of {dataset.name} hold no ground truth, so AP is -1", "raise --limit"
        )
    curves = Curves.of(evaluator, dataset.category_names)
    per_class = dict(zip(curves.class_names, map(float, curves.average_precision[:, 0]), strict=True))
    processed = int(np.isin(image_ids, detections.images).sum())
    return CocoMetrics(**numbers, per_class=per_class, images=processed, detections=boxes, curves=curves)
