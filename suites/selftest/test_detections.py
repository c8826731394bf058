"""Detections are checked columns, stored whole or not at all, and compared bit by bit."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from harness.detect.detections import Detections
from harness.errors import EvaluationError

pytestmark = pytest.mark.selftest

CATEGORY_IDS = (3, 8)


@dataclass(frozen=True)
class Decoded:
    boxes: npt.NDArray[Any]
    scores: npt.NDArray[Any]
    labels: npt.NDArray[Any]


NOTHING = Decoded(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
TWO = Decoded(
    np.array([[1, 2, 4, 8], [0.5, 0.5, 1, 1]], np.float32), np.array([0.9, 0.2], np.float32), np.array([1, 0])
)


@pytest.fixture
def detections() -> Detections:
    return Detections.from_boxes([(20, TWO), (10, NOTHING), (2**40, TWO)], CATEGORY_IDS)


def test_corners_become_left_top_width_height(detections: Detections) -> None:
    assert detections.xywh[:2].tolist() == [[1, 2, 3, 6], [0.5, 0.5, 0.5, 0.5]]


def test_labels_become_category_ids(detections: Detections) -> None:
    assert detections.category_id.tolist() == [8, 3, 8, 3]


def test_boxes_keep_the_id_of_their_image(detections: Detections) -> None:
    assert detections.image_id.tolist() == [20, 20, 2**40, 2**40]


def test_images_without_boxes_count_as_processed(detections: Detections) -> None:
    assert detections.images.tolist() == [20, 10, 2**40]


@pytest.mark.parametrize("found", [[], [(10, NOTHING)]], ids=["no image", "no box"])
def test_nothing_found_is_empty_columns(found: list[tuple[int, Decoded]]) -> None:
    assert Detections.from_boxes(found, CATEGORY_IDS).xywh.shape == (0, 4)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_category_is_refused(label: int) -> None:
    with pytest.raises(EvaluationError, match="label outside 0 to 1"):
        Detections.from_boxes([(10, replace(TWO, labels=np.array([0, label])))], CATEGORY_IDS)


def test_boxes_without_their_scores_are_refused() -> None:
    with pytest.raises(EvaluationError, match="image 10 has 2 boxes, 1 scores and 2 labels"):
        Detections.from_boxes([(10, replace(TWO, scores=TWO.scores[:1]))], CATEGORY_IDS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", ["xywh", "score"])
def test_a_value_that_is_not_finite_is_refused(detections: Detections, column: str, value: float) -> None:
    damaged = getattr(detections, column).copy()
    damaged[2] = value
    with pytest.raises(EvaluationError, match=f"1 of 4 detections hold NaN or Inf, first on image {2**40}"):
        replace(detections, **{column: damaged})


@pytest.mark.parametrize("column", ["image_id", "xywh", "score", "category_id"])
def test_a_column_of_another_length_is_refused(detections: Detections, column: str) -> None:
    with pytest.raises(EvaluationError, match="column"):
        replace(detections, **{column: getattr(detections, column)[:-1]})


@pytest.mark.parametrize("column", ["image_id", "xywh", "score", "category_id", "images"])
def test_a_column_of_another_type_is_refused(detections: Detections, column: str) -> None:
    with pytest.raises(EvaluationError, match=f"column {column} should be"):
        replace(detections, **{column: getattr(detections, column).astype(np.float64)})


def test_an_image_processed_twice_is_refused() -> None:
    with pytest.raises(EvaluationError, match="1 images were processed more than once, first 10"):
        Detections.from_boxes([(10, TWO), (20, TWO), (10, TWO)], CATEGORY_IDS)


def test_a_box_on_an_image_that_was_not_processed_is_refused(detections: Detections) -> None:
    with pytest.raises(EvaluationError, match="2 detections lie on images that were not processed, first 20"):
        replace(detections, images=detections.images[1:])


def test_what_is_saved_is_loaded_bit_by_bit(detections: Detections, tmp_path: Path) -> None:
    detections.save(tmp_path / "runs" / "first.npz")
    assert Detections.load(tmp_path / "runs" / "first.npz").identical(detections)


def test_no_boxes_survive_saving(tmp_path: Path) -> None:
    empty = Detections.from_boxes([(10, NOTHING)], CATEGORY_IDS)
    empty.save(tmp_path / "empty.npz")
    assert Detections.load(tmp_path / "empty.npz").identical(empty)


def test_saving_leaves_nothing_but_the_file(detections: Detections, tmp_path: Path) -> None:
    detections.save(tmp_path / "detections.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["detections.npz"]


def test_a_save_that_cannot_be_put_in_place_leaves_no_litter(detections: Detections, tmp_path: Path) -> None:
    (tmp_path / "detections.npz").mkdir()
    with pytest.raises(IsADirectoryError):
        detections.save(tmp_path / "detections.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["detections.npz"]


def test_a_failed_save_keeps_the_old_file(
    detections: Detections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    (tmp_path / "detections.npz").write_bytes(b"old")
    monkeypatch.setattr(np, "savez_compressed", disk_full)
    with pytest.raises(OSError, match="no space"):
        detections.save(tmp_path / "detections.npz")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"detections.npz": b"old"}


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def pickled(path: Path) -> None:
    column = np.array([{}], dtype=object)
    np.savez(path, image_id=column, xywh=column, score=column, category_id=column, images=column)


def without_columns(path: Path) -> None:
    np.savez(path, image_id=np.zeros(0, np.int64))


def single_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize("damage", [Path.unlink, truncated, pickled, without_columns, single_array])
def test_a_damaged_file_is_refused(detections: Detections, tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "detections.npz"
    detections.save(path)
    damage(path)
    with pytest.raises(EvaluationError, match="cannot read detections from"):
        Detections.load(path)


def test_a_copy_is_identical(detections: Detections) -> None:
    assert detections.identical(replace(detections, xywh=detections.xywh.copy()))


@pytest.mark.parametrize("column", ["xywh", "score"])
def test_one_bit_of_difference_is_not_identical(detections: Detections, column: str) -> None:
    other = getattr(detections, column).copy()
    other.flat[0] = np.nextafter(other.flat[0], np.float32(2))
    assert not detections.identical(replace(detections, **{column: other}))


def test_another_order_is_not_identical(detections: Detections) -> None:
    assert not detections.identical(replace(detections, images=detections.images[::-1]))


def test_fewer_boxes_are_not_identical(detections: Detections) -> None:
    fewer = {name: getattr(detections, name)[:-1] for name in ("image_id", "xywh", "score", "category_id")}
    assert not detections.identical(replace(detections, **fewer))
