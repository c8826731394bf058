"""Takes decoded boxes of processed images; gives `Detections`: checked columns that are stored and compared bitwise."""

import io
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from harness.errors import EvaluationError
from harness.files import write_atomically

_RUN_AGAIN = "run the detector again"


class Boxes(Protocol):
    """What a decoder gives for one image: boxes `[K, 4]` xyxy, pixels of the original image; scores, labels `[K]`."""

    @property
    def boxes(self) -> npt.NDArray[Any]: ...
    @property
    def scores(self) -> npt.NDArray[Any]: ...
    @property
    def labels(self) -> npt.NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class Detections:
    """All detections of one run as columns, N boxes on M images.

    image_id: `[N]` int64. xywh: `[N, 4]` float32, left, top, width, height in pixels of the original image.
    score: `[N]` float32. category_id: `[N]` int64, the data set's ids (not labels).
    images: `[M]` int64, every processed image once, in order of processing, also those without boxes.

    Raises:
        EvaluationError: a column of another length, shape or type, NaN or Inf, an image processed twice, or a box
            on an image that was not processed.
    """

    image_id: npt.NDArray[np.int64]
    xywh: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    category_id: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        self._check_columns()
        self._check_finite()
        self._check_images()

    def __len__(self) -> int:
        return len(self.score)

    @classmethod
    def from_boxes(cls, found: Iterable[tuple[int, Boxes]], category_ids: Sequence[int]) -> "Detections":
        """Columns from (image id, boxes) pairs in order of processing; label i becomes `category_ids[i]`.

        Raises:
            EvaluationError: a label outside `category_ids`, boxes and scores of different number, or what the
                class itself refuses.
        """
        pairs = list(found)
        counts = [_count(image_id, boxes) for image_id, boxes in pairs]
        images = np.array([image_id for image_id, _ in pairs], dtype=np.int64)
        xyxy = _stacked([np.asarray(boxes.boxes, np.float32).reshape(-1, 4) for _, boxes in pairs], (0, 4), np.float32)
        labels = _stacked([np.asarray(boxes.labels) for _, boxes in pairs], (0,), np.int64)
        return cls(
            image_id=np.repeat(images, counts),
            xywh=np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1),
            score=_stacked([np.asarray(boxes.scores) for _, boxes in pairs], (0,), np.float32),
            category_id=_categories(labels, category_ids),
            images=images,
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Detections"]) -> "Detections":
        """The parts of one run as one, in their order.

        Raises:
            EvaluationError: an image is in more than one part.
        """
        none = cls.from_boxes([], [])
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in (none, *parts)]) for f in fields(cls)})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Detections":
        """The inverse of `to_bytes`; pickled content is refused.

        Raises:
            EvaluationError: damaged, or not such content.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as columns:
                arrays = {field.name: columns[field.name] for field in fields(cls)}
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise EvaluationError(f"not detections: {error}", _RUN_AGAIN) from error
        return cls(**arrays)

    def to_bytes(self) -> bytes:
        """A compressed .npz of the columns."""
        content = io.BytesIO()
        np.savez_compressed(content, **{field.name: getattr(self, field.name) for field in fields(self)})
        return content.getvalue()

    @classmethod
    def load(cls, path: Path) -> "Detections":
        """The detections that `save` wrote; pickled content is refused.

        Raises:
            EvaluationError: unreadable, damaged, or not such a file.
        """
        try:
            return cls.from_bytes(path.read_bytes())
        except (OSError, EvaluationError) as error:
            cause = error.cause if isinstance(error, EvaluationError) else error.strerror
            raise EvaluationError(f"cannot read detections from {path}: {cause}", _RUN_AGAIN) from error

    def save(self, path: Path) -> None:
        """Writes a compressed .npz to `path`, which holds either its old content or all of the new one."""
        write_atomically(path, self.to_bytes())

    def identical(self, other: "Detections") -> bool:
        """Whether every column has the same bits in the same order."""
        return all(
            getattr(self, field.name).tobytes() == getattr(other, field.name).tobytes() for field in fields(self)
        )

    def above(self, score: float) -> "Detections":
        """The boxes with a higher score, on the same images."""
        kept = self.score > score
        return replace(
            self,
            image_id=self.image_id[kept],
            xywh=self.xywh[kept],
            score=self.score[kept],
            category_id=self.category_id[kept],
        )

    def _check_columns(self) -> None:
        n = len(self.score)
        wanted = {
            "image_id": ((n,), np.int64),
            "xywh": ((n, 4), np.float32),
            "score": ((n,), np.float32),
            "category_id": ((n,), np.int64),
            "images": ((len(self.images),), np.int64),
        }
        for name, (shape, dtype) in wanted.items():
            column = getattr(self, name)
            if column.shape != shape or column.dtype != dtype:
                raise EvaluationError(
                    f"detections: column {name} should be {np.dtype(dtype)} {list(shape)}, "
                    f"found {column.dtype} {list(column.shape)}",
                    _RUN_AGAIN,
                )

    def _check_finite(self) -> None:
        finite = np.isfinite(self.xywh).all(axis=1) & np.isfinite(self.score)
        if not finite.all():
            raise EvaluationError(
                f"{np.count_nonzero(~finite)} of {len(self)} detections hold NaN or Inf, "
                f"first on image {self.image_id[~finite][0]}",
                "look for overflow in the engine's raw outputs",
            )

    def _check_images(self) -> None:
        ids, counts = np.unique(self.images, return_counts=True)
        if (counts > 1).any():
            raise EvaluationError(
                f"{np.count_nonzero(counts > 1)} images were processed more than once, first {ids[counts > 1][0]}",
                _RUN_AGAIN,
            )
        strangers = self.image_id[~np.isin(self.image_id, ids)]
        if strangers.size:
            raise EvaluationError(
                f"{strangers.size} detections lie on images that were not processed, first {strangers[0]}", _RUN_AGAIN
            )


def _count(image_id: int, boxes: Boxes) -> int:
    counts = len(boxes.boxes), len(boxes.scores), len(boxes.labels)
    if len(set(counts)) > 1:
        raise EvaluationError(
            f"image {image_id} has {counts[0]} boxes, {counts[1]} scores and {counts[2]} labels", "mend the decoder"
        )
    return counts[0]


def _stacked(parts: list[npt.NDArray[Any]], empty: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(empty, dtype), *parts]).astype(dtype, copy=False)


def _categories(labels: npt.NDArray[np.int64], category_ids: Sequence[int]) -> npt.NDArray[np.int64]:
    outside = labels[(labels < 0) | (labels >= len(category_ids))]
    if outside.size:
        raise EvaluationError(
            f"{outside.size} detections have a label outside 0 to {len(category_ids) - 1}, first {outside[0]}",
            "use a data set with the model's categories, or mend the decoder",
        )
    categories: npt.NDArray[np.int64] = np.asarray(category_ids, dtype=np.int64)[labels]
    return categories
