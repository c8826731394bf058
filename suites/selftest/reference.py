"""Takes mmdet's own head and raw maps; gives the boxes mmdet makes of them, and the comparison with ours."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np

from harness.detect.decode import Boxes
from harness.detect.preprocess import Geometry
from harness.model.mmdet import HeadSpec
from suites.selftest.matching import unmatched


@contextlib.contextmanager
def stable_torch() -> Iterator[None]:
    """torch leaves the order of equal values open in `sort` and `topk`, and with it mmdet's result; this closes it."""
    import torch

    unstable = torch.Tensor.sort

    def sort(self: Any, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
        return unstable(self, dim=dim, descending=descending, stable=stable)

    def topk(self: Any, k: int) -> Any:
        values, indices = sort(self, descending=True)
        return values[:k], indices[:k]

    with mock.patch.object(torch.Tensor, "sort", sort), mock.patch.object(torch.Tensor, "topk", topk):
        yield


def mmdet_boxes(
    bbox_head: Any, head: HeadSpec, maps: Mapping[str, np.ndarray], geometries: Sequence[Geometry]
) -> list[Boxes]:
    """mmdet's `predict_by_feat` with rescaling, on maps widened to float32."""
    import torch

    kinds = ("cls", "box", "iou") if head.family == "paa" else ("cls", "box")
    images = len(geometries)
    tensors = [
        [torch.from_numpy(maps[f"{kind}_{s}"][:images].astype(np.float32)) for s in head.strides] for kind in kinds
    ]
    metas = [
        {"img_shape": (g.content_height, g.content_width), "scale_factor": (g.scale_x, g.scale_y)} for g in geometries
    ]
    with torch.no_grad(), stable_torch():
        results = bbox_head.predict_by_feat(*tensors, batch_img_metas=metas, rescale=True)
    return [Boxes(r.bboxes.numpy(), r.scores.numpy(), r.labels.numpy()) for r in results]


def assert_same(ours: Sequence[Boxes], theirs: Sequence[Boxes]) -> None:
    """Same number, labels and order; scores within 1e-6; boxes within 1e-3 pixels."""
    assert [len(image.labels) for image in ours] == [len(image.labels) for image in theirs]
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(our.labels, their.labels)
        np.testing.assert_allclose(our.scores, their.scores, rtol=0, atol=1e-6)
        # mmdet's score voting turns a box without area into NaN; ours stays where it was.
        defined = ~np.isnan(their.boxes).any(axis=1)
        np.testing.assert_allclose(our.boxes[defined], their.boxes[defined], rtol=0, atol=1e-3)
        np.testing.assert_allclose(np.prod(our.boxes[~defined, 2:] - our.boxes[~defined, :2], axis=1), 0, atol=1e-8)


def assert_same_sets(ours: Sequence[Boxes], theirs: Sequence[Boxes]) -> None:
    """As `assert_same`, in any order: scores a rounding apart come in another order on another processor."""
    assert [len(image.labels) for image in ours] == [len(image.labels) for image in theirs]
    pairs = zip(map(_without_empty_boxes, ours), map(_without_empty_boxes, theirs), strict=True)
    assert sum(unmatched(our, their, score=1e-6, pixels=1e-3) for our, their in pairs) == 0


def _without_empty_boxes(image: Boxes) -> Boxes:
    """Boxes that overlap nothing, not even themselves, at the origin: mmdet's score voting turns them into NaN."""
    areas = np.prod(image.boxes[:, 2:] - image.boxes[:, :2], axis=1)
    return Boxes(np.where(areas[:, None] > 1e-8, image.boxes, 0), image.scores, image.labels)
