"""Takes what an evaluator accumulated; gives `Curves`: precision over recall by class and area, stored as columns."""

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import EvaluationError
from harness.files import write_atomically

ABSENT = -1.0
"""COCO's value of a number that has no ground truth to be measured on."""

_RUN_AGAIN = "evaluate the detections again: python -m pytest -m accuracy"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curves:
    """Precision over recall of T IoU thresholds, K classes and A areas, with at most 100 boxes an image.

    precision: `[T, R, K, A]` float64, the best precision at each of R recall thresholds or beyond. recall:
    `[T, K, A]` float64, the highest reached. Both are fractions; -1 where a class has no ground truth of that area.
    iou_thresholds: `[T]` float64. recall_thresholds: `[R]` float64. class_names: K, ascending by category id.
    areas: A names, COCO's `all`, `small` (under 32^2 pixels), `medium` and `large` (over 96^2).

    Raises:
        EvaluationError: an array of another shape or type, or a value that is neither -1 nor from 0 to 1.

    Source: pycocotools `COCOeval.accumulate`, its `eval["precision"][..., -1]` and `eval["recall"][..., -1]`.
    """

    precision: Floats
    recall: Floats
    iou_thresholds: Floats
    recall_thresholds: Floats
    class_names: tuple[str, ...]
    areas: tuple[str, ...]

    def __post_init__(self) -> None:
        t, r, k, a = (len(axis) for axis in (self.iou_thresholds, self.recall_thresholds, self.class_names, self.areas))
        for name, shape in (("precision", (t, r, k, a)), ("recall", (t, k, a))):
            values = getattr(self, name)
            if values.shape != shape or values.dtype != np.float64:
                raise EvaluationError(
                    f"curves: {name} should be float64 {list(shape)}, found {values.dtype} {list(values.shape)}",
                    _RUN_AGAIN,
                )
            wrong = ~((values == ABSENT) | ((values >= 0) & (values <= 1)))
            if wrong.any():
                raise EvaluationError(
                    f"curves: {np.count_nonzero(wrong)} values of {name} are neither -1 nor from 0 to 1, "
                    f"first {values[wrong][0]}",
                    _RUN_AGAIN,
                )

    @cached_property
    def average_precision(self) -> Floats:
        """`[K, A]`: AP over IoU .50:.95 of each class and area; -1 where there is no ground truth."""
        return _mean_of_present(self.precision, axis=(0, 1))

    @cached_property
    def average_recall(self) -> Floats:
        """`[K, A]`: AR over IoU .50:.95 of each class and area; -1 where there is no ground truth."""
        return _mean_of_present(self.recall, axis=(0,))

    @classmethod
    def of(cls, evaluator: Any, class_names: Sequence[str]) -> "Curves":
        """The curves of a COCOeval (hotcoco's or pycocotools') that has accumulated."""
        # Both have COCO's own spelling.
        params, accumulated = evaluator.params, evaluator.eval
        return cls(
            precision=np.ascontiguousarray(accumulated["precision"][..., -1]),
            recall=np.ascontiguousarray(accumulated["recall"][..., -1]),
            iou_thresholds=np.array(params.iouThrs, np.float64),
            recall_thresholds=np.array(params.recThrs, np.float64),
            class_names=tuple(class_names),
            areas=tuple(params.areaRngLbl),
        )

    @classmethod
    def load(cls, path: Path) -> "Curves":
        """The curves that `save` wrote; pickled content is refused.

        Raises:
            EvaluationError: unreadable, damaged, or not such a file.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as columns:
                arrays = {field.name: columns[field.name] for field in fields(cls)}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise EvaluationError(f"cannot read curves from {path}: {error}", _RUN_AGAIN) from error
        names = {name: tuple(map(str, arrays[name])) for name in ("class_names", "areas")}
        return cls(**{**arrays, **names})

    def save(self, path: Path) -> None:
        """Writes a compressed .npz to `path`, which holds either its old content or all of the new one."""
        content = io.BytesIO()
        columns: dict[str, Any] = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        np.savez_compressed(content, **columns)
        write_atomically(path, content.getvalue())


def _mean_of_present(values: Floats, axis: tuple[int, ...]) -> Floats:
    present = values > ABSENT
    counts = present.sum(axis)
    means = np.where(present, values, 0).sum(axis) / np.maximum(counts, 1)
    return np.where(counts > 0, means, ABSENT)
