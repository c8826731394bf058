"""Decoding, preprocessing, evaluation and the files of baselines agree with plain slow references on drawn input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness.detect.dataset import Dataset, load_coco
from harness.detect.decode.kernels import batched_nms
from harness.detect.detections import Detections
from harness.detect.preprocess import preprocess_batch
from harness.errors import DatasetError, SpecError
from harness.judge.baseline import MAXIMUM_SPREAD, Recorded, load_recorded, recorded_file
from harness.measure.evaluate import NUMBERS, evaluate, evaluate_reference
from harness.model.mmdet import InputSpec
from suites.selftest.reference import assert_same
from suites.selftest.test_decode import FAMILIES, Case

pytestmark = pytest.mark.selftest

# The same examples in every run; a few for `make test`, many for `make proof`.
EXAMPLES = pytest.mark.parametrize("share", [1, pytest.param(50, marks=pytest.mark.slow)])


def hold(check: Callable[..., None], examples: int, **drawn: SearchStrategy[Any]) -> None:
    """`check` passes on every example; a failure is told by the smallest."""
    settings = hypothesis.settings(max_examples=examples, derandomize=True, deadline=None, database=None)
    settings(hypothesis.given(**drawn)(check))()


# --- decoding

SIDES = st.integers(0, 12)
BOXES = st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2)), max_size=40)


def plain_nms(boxes: np.ndarray, labels: np.ndarray, threshold: np.float32, limit: int) -> list[int]:
    """Each box, best first, stays unless it overlaps one of its class that stays."""

    def iou(one: np.ndarray, other: np.ndarray) -> np.float32:
        width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
        common = np.float32(max(width, 0) * max(height, 0))
        areas = [np.float32((box[2] - box[0]) * (box[3] - box[1])) for box in (one, other)]
        return common / (sum(areas) - common) if common else np.float32(0)

    kept: list[int] = []
    for i in range(len(boxes)):
        if all(labels[i] != labels[j] or iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept[:limit] if limit > 0 else kept


@EXAMPLES
def test_suppression_keeps_what_the_plain_rule_keeps(share: int) -> None:
    def check(rows: list[tuple[int, ...]], threshold: float, limit: int) -> None:
        table = np.array(rows, np.float32).reshape(-1, 5)
        boxes = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], axis=1)
        labels, bound = table[:, 4].astype(np.int64), np.float32(threshold)
        assert batched_nms(boxes, labels, bound, limit).tolist() == plain_nms(boxes, labels, bound, limit)

    hold(check, 60 * share, rows=BOXES, threshold=st.sampled_from([0.25, 0.5, 0.6]), limit=st.integers(0, 8))


@EXAMPLES
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_gives_the_boxes_of_mmdet(family: str, share: int) -> None:
    def check(seed: int, mean: float, deviation: float, box_spread: float, size: tuple[int, int]) -> None:
        case = Case(family, num_classes=3, size=size)
        maps = case.maps((mean, deviation), seed, box_spread=box_spread)
        assert_same(case.ours(maps), case.theirs(maps))

    hold(
        check,
        6 * share,
        seed=st.integers(0, 2**32 - 1),
        mean=st.floats(-9, 0),
        deviation=st.floats(0, 3),
        box_spread=st.floats(0, 1),
        size=st.sampled_from([(32, 32), (64, 96), (96, 33)]),
    )


# --- preprocessing

LENGTHS = st.integers(1, 48)
MEANS = st.tuples(*[st.floats(0, 255, width=32)] * 3)
DEVIATIONS = st.tuples(*[st.floats(1, 128, width=32)] * 3)


def plain_input(image: np.ndarray, spec: InputSpec) -> np.ndarray | None:
    """Pixel by pixel after OpenCV's resize; None where nothing is left of the image."""
    height, width = spec.height, spec.width
    if spec.keep_ratio:
        scale = min(spec.width / image.shape[1], spec.height / image.shape[0])
        height, width = int(image.shape[0] * scale + 0.5), int(image.shape[1] * scale + 0.5)
    if not (height and width):
        return None
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    wanted = np.zeros((3, spec.height, spec.width), np.float32)
    for channel in range(3):
        mean, deviation = np.float32(spec.mean[channel]), np.float32(spec.std[channel])
        for row in range(height):
            for column in range(width):
                level = resized[row, column, 2 - channel if spec.to_rgb else channel]
                wanted[channel, row, column] = (np.float32(level) - mean) / deviation
    return wanted


@EXAMPLES
def test_a_row_of_a_batch_is_what_pixel_by_pixel_arithmetic_gives(share: int) -> None:
    def check(seed: int, height: int, width: int, spec: InputSpec) -> None:
        image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        wanted, used = plain_input(image, spec), np.full((2, 3, spec.height, spec.width), np.nan, np.float32)
        if wanted is None:
            with pytest.raises(DatasetError, match="too thin"):
                preprocess_batch([image], spec, used)
            return
        found, _ = preprocess_batch([image], spec, used)
        np.testing.assert_array_equal(found, [wanted, np.zeros_like(wanted)])

    sides = st.integers(1, 24)
    specs = st.builds(InputSpec, sides, sides, st.booleans(), MEANS, DEVIATIONS, st.booleans())
    hold(check, 25 * share, seed=st.integers(0, 2**32 - 1), height=LENGTHS, width=LENGTHS, spec=specs)


# --- evaluation

IMAGES, CATEGORIES = (3, 4, 9), (1, 5)
CORNER = st.tuples(st.integers(0, 60), st.integers(0, 60))
PLACE = st.tuples(st.sampled_from(IMAGES), st.sampled_from(CATEGORIES), CORNER, st.sampled_from([8, 20, 40, 120]))
TRUTHS = st.lists(st.tuples(PLACE, st.booleans()), min_size=1, max_size=12)
FOUND = st.lists(st.tuples(PLACE, st.sampled_from([0.1, 0.5, 0.9])), max_size=24)


def written(root: Path, truths: list[Any]) -> Dataset:
    """A data set of three images with these boxes, the flagged ones crowds."""
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": [*corner, side, side],
            "area": side * side,
            "iscrowd": int(crowd),
        }
        for number, ((image, category, corner, side), crowd) in enumerate(truths, 1)
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 200} for i in IMAGES],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORIES],
    }
    (root / "annotations/instances_val2017.json").write_text(json.dumps(content))
    return load_coco(root, "drawn")


def detections_of(found: list[Any]) -> Detections:
    columns = [(image, category, [*corner, side, side], score) for (image, category, corner, side), score in found]
    return Detections(
        image_id=np.array([row[0] for row in columns], np.int64),
        xywh=np.array([row[2] for row in columns], np.float32).reshape(-1, 4),
        score=np.array([row[3] for row in columns], np.float32),
        category_id=np.array([row[1] for row in columns], np.int64),
        images=np.array(IMAGES, np.int64),
    )


@EXAMPLES
def test_the_twelve_numbers_are_those_of_pycocotools(tmp_path: Path, share: int) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    for image in IMAGES:
        cv2.imwrite(str(tmp_path / f"val2017/{image}.png"), np.zeros((200, 200, 3), np.uint8))

    def check(truths: list[Any], found: list[Any]) -> None:
        hypothesis.assume(not all(crowd for _, crowd in truths))
        dataset, detections = written(tmp_path, truths), detections_of(found)
        ours, theirs = evaluate(dataset, detections), evaluate_reference(dataset, detections)
        gaps = {name: abs(getattr(ours, name) - getattr(theirs, name)) for name in NUMBERS}
        assert {name: gap for name, gap in gaps.items() if gap > 1e-12} == {}

    hold(check, 20 * share, truths=TRUTHS, found=FOUND)


# --- accepted figures

TEXTS = st.text('a.= "\\\n\0\u00e9\u2028\U0001f600', max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ACCEPTED = {"by": "me", "when": "2026-11-23T00:00:00Z", "reason": "drawn", "cell": "m-fp32-torch"}
SPEED = {"cell": "m-fp32-torch", "batch": 1, "fingerprint": "0" * 8, "device": {}, "fps": 1.0, "accepted": ACCEPTED}


def loaded(root: Path, content: Any) -> Recorded:
    file = recorded_file(root, "m")
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return load_recorded(root, "m")


def holding(speed: dict[str, Any]) -> dict[str, Any]:
    return {"schema": 1, "model": "m", "accuracy": [], "speed": [speed]}


def refused(root: Path, content: Any) -> bool:
    """Whether the file is refused by its name; any other error fails the test."""
    try:
        loaded(root, content)
    except SpecError as error:
        return str(recorded_file(root, "m")) in error.cause
    return False


@EXAMPLES
def test_a_tolerance_is_taken_exactly_up_to_three_spreads(tmp_path: Path, share: int) -> None:
    def check(percent: int, spread_permille: int | None) -> None:
        tolerance, deviation = percent / 100, (spread_permille or 0) / 1000
        spread = None if spread_permille is None else {"processes": 10, "deviation": deviation}
        bounds = 1 <= percent <= 15 and deviation <= MAXIMUM_SPREAD
        wanted = bounds and (percent <= 5 or percent * 10 <= 3 * (spread_permille or 0))
        assert refused(tmp_path, holding({**SPEED, "tolerance": tolerance, "spread": spread})) is not wanted

    hold(check, 60 * share, percent=st.integers(0, 20), spread_permille=st.none() | st.integers(0, 60))


@EXAMPLES
def test_what_is_written_is_read_again(tmp_path: Path, share: int) -> None:
    def check(fps: float, batch: int, options: dict[str, str]) -> None:
        read = loaded(tmp_path, holding({**SPEED, "fps": fps, "batch": batch, "options": options, "tolerance": 0.05}))
        assert loaded(tmp_path, read.model_dump(mode="json", by_alias=True)) == read
        assert (read.speed[0].fps, read.speed[0].batch, read.speed[0].options) == (fps, batch, options)

    hold(
        check,
        30 * share,
        fps=st.floats(min_value=1e-6, max_value=1e9),
        batch=st.integers(1, 4096),
        options=st.dictionaries(TEXTS, TEXTS, max_size=3),
    )


@EXAMPLES
def test_a_file_of_another_form_is_refused_by_name_whatever_it_holds(tmp_path: Path, share: int) -> None:
    def check(content: Any, key: str, value: Any) -> None:
        hypothesis.assume(key not in Recorded.model_json_schema(by_alias=True)["properties"])
        assert refused(tmp_path, {"schema": 1, "model": "m", key: value})
        assert refused(tmp_path, [content])
        assert refused(tmp_path, holding({**SPEED, "tolerance": 0.05, "fps": [content]}))

    hold(check, 30 * share, content=VALUES, key=TEXTS, value=VALUES)
