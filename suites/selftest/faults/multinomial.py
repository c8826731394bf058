"""Takes two runs' detections on a data set; gives the change of AP under multinomial resamples of its images.

The plain bootstrap that the fast evaluator's own is held to: images drawn with replacement, each as often as it was
drawn, matched once by pycocotools.
"""

import contextlib
import io
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.detect.dataset import Dataset
from harness.detect.detections import Detections
from harness.measure.evaluate import reference_evaluator

Array = npt.NDArray[Any]

RECALLS = np.linspace(0, 1, 101)


class Matches:
    """Which of a run's boxes match, by class, with the image that each is on."""

    def __init__(self, dataset: Dataset, detections: Detections) -> None:
        evaluator = _evaluated(dataset, detections)
        images, classes, areas = evaluator.params.imgIds, evaluator.params.catIds, len(evaluator.params.areaRng)
        self._classes = [
            _OfClass(evaluator.evalImgs[k * areas * len(images) :][: len(images)]) for k in range(len(classes))
        ]

    def average_precision(self, weights: Array) -> float:
        """mAP@[.5:.95] where image i counts `weights[i]` times."""
        of_classes = [one.average_precision(weights) for one in self._classes]
        return float(np.mean([value for value in of_classes if value is not None]))


class _OfClass:
    def __init__(self, found: list[Any]) -> None:
        here = [(place, one) for place, one in enumerate(found) if one is not None]
        self._objects = np.zeros(len(found))
        for place, one in here:
            self._objects[place] = np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
        scores = np.concatenate([one["dtScores"] for _, one in here] or [np.empty(0)])
        order = np.argsort(-scores, kind="mergesort")
        image = np.concatenate([np.full(len(one["dtScores"]), place) for place, one in here] or [np.empty(0, int)])
        self._image = image[order].astype(np.int64)
        matched = np.concatenate([one["dtMatches"] for _, one in here] or [np.empty((10, 0))], axis=1)[:, order] > 0
        counts = ~np.concatenate([one["dtIgnore"] for _, one in here] or [np.empty((10, 0))], axis=1)[:, order].astype(
            bool
        )
        self._right, self._wrong = matched & counts, ~matched & counts

    def average_precision(self, weights: Array) -> float | None:
        objects = float(weights @ self._objects)
        if objects == 0:
            return None
        each = weights[self._image]
        right, wrong = (np.cumsum(flags * each, axis=1) for flags in (self._right, self._wrong))
        precision = right / np.maximum(right + wrong, np.finfo(float).eps)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = right / objects
        total = 0.0
        for of_threshold, reached in zip(precision, recall, strict=True):
            at = np.searchsorted(reached, RECALLS, side="left")
            total += of_threshold[at[at < len(of_threshold)]].sum() / len(RECALLS)
        return total / len(precision)


def _evaluated(dataset: Dataset, detections: Detections) -> Any:
    evaluator, _ = reference_evaluator(dataset, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
    return evaluator


def changes(before: Matches, after: Matches, images: int, resamples: int, seed: int = 0) -> Array:
    """AP after - AP before `[resamples]`, each on images drawn with replacement."""
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(images, np.full(images, 1 / images), resamples).astype(float)
    return np.array([after.average_precision(draw) - before.average_precision(draw) for draw in draws])
