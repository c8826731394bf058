"""The pure-Python `mmcv._ext` computes `nms` as the compiled one does, and names any other op that a model calls."""

from typing import Any

import numpy as np
import pytest

from harness.errors import ModelBuildError
from harness.model.mmcv_ext import ensure_ops, nms_indices

pytestmark = pytest.mark.selftest


@pytest.fixture(scope="module")
def ext() -> Any:
    """`mmcv._ext` as mmcv itself loads it."""
    if ensure_ops():
        pytest.skip("compiled mmcv is installed: its own ops stay in place")
    from mmcv.utils import ext_loader

    return ext_loader.load_ext("_ext", ["nms", "roi_align_forward", "deform_conv_forward"])


def suppress_literally(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float, offset: int) -> list[int]:
    """mmcv's `nms_cpu`, one float32 operation after the other."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    zero, one_more = np.float32(0), np.float32(offset)
    areas = [(x2 - x1 + one_more) * (y2 - y1 + one_more) for x1, y1, x2, y2 in boxes]
    gone: set[int] = set()
    for rank, i in enumerate(order):
        if i in gone:
            continue
        for j in order[rank + 1 :]:
            width = max(zero, min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0]) + one_more)
            height = max(zero, min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1]) + one_more)
            intersection = width * height
            with np.errstate(divide="ignore", invalid="ignore"):
                iou = intersection / (areas[i] + areas[j] - intersection)
            if iou > np.float32(iou_threshold):
                gone.add(j)
    return [i for i in order if i not in gone]


def random_boxes(seed: int, coarse: bool, count: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores; coarse ones have borderline overlaps, identical and empty boxes and equal scores among them."""
    rng = np.random.default_rng(seed)
    corners, sizes, scores = rng.uniform(0, 60, (count, 2)), rng.uniform(1, 40, (count, 2)), rng.uniform(size=count)
    if coarse:
        corners, sizes, scores = corners // 10 * 10, sizes // 10 * 10, np.round(scores, 1)
    return np.concatenate([corners, corners + sizes], axis=1).astype(np.float32), scores.astype(np.float32)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("coarse", [False, True], ids=["random", "borderline"])
def test_nms_keeps_what_the_literal_double_loop_keeps(coarse: bool, iou_threshold: float, offset: int) -> None:
    for seed in range(20):
        boxes, scores = random_boxes(seed, coarse, count=1 + 2 * seed)
        kept = nms_indices(boxes, scores, iou_threshold, offset)
        assert kept.tolist() == suppress_literally(boxes, scores, iou_threshold, offset)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    ("size", "kept"), [((10, 10), {0: [1], 1: [1]}), ((0, 0), {0: [1, 0, 2], 1: [1]}), ((0, 9), {0: [1, 0, 2], 1: [1]})]
)
def test_of_identical_boxes_nms_keeps_the_best_unless_they_are_empty(
    size: tuple[int, int], kept: dict[int, list[int]], offset: int
) -> None:
    boxes = np.array([[5, 5, 5 + size[0], 5 + size[1]]] * 3, np.float32)
    assert nms_indices(boxes, np.array([0.5, 0.9, 0.5], np.float32), 0.5, offset).tolist() == kept[offset]


@pytest.mark.parametrize("offset", [0, 1])
def test_of_equal_scores_nms_keeps_the_first(offset: int) -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 1, 10, 11]], np.float32)
    assert nms_indices(boxes, np.ones(3, np.float32), 0.5, offset).tolist() == [0]


def test_nms_of_nothing_keeps_nothing() -> None:
    assert nms_indices(np.empty((0, 4), np.float32), np.empty(0, np.float32), 0.5).tolist() == []


def test_nms_of_one_box_keeps_it() -> None:
    assert nms_indices(np.array([[0, 0, 1, 1]], np.float32), np.ones(1, np.float32), 0.5).tolist() == [0]


def test_nms_keeps_both_boxes_whose_overlap_equals_the_threshold() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)
    assert nms_indices(boxes, np.array([0.9, 0.8], np.float32), 0.5).tolist() == [0, 1]


def test_mmcv_reaches_our_nms_with_tensors(ext: Any) -> None:
    import torch

    boxes, scores = random_boxes(seed=0, coarse=False)
    kept = ext.nms(torch.from_numpy(boxes), torch.from_numpy(scores), iou_threshold=0.5, offset=0)
    assert kept.tolist() == nms_indices(boxes, scores, 0.5).tolist()


@pytest.mark.parametrize("op", ["roi_align_forward", "deform_conv_forward"])
def test_any_other_op_exists_by_name_and_raises_when_called(ext: Any, op: str) -> None:
    with pytest.raises(ModelBuildError, match=f"'{op}'"):
        getattr(ext, op)(1, two=2)


def test_special_names_are_not_ops(ext: Any) -> None:
    assert not hasattr(ext, "__wrapped__")
