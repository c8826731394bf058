"""A run shows every image once to the session, in order, padded to the batch, and refuses what means nothing."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from harness.detect.dataset import Dataset, load_coco
from harness.detect.decode import Boxes
from harness.detect.preprocess import Geometry, preprocess_batch
from harness.detect.run import Images, Maps, load_batch, run
from harness.errors import DatasetError, InvalidRun
from harness.model.mmdet import InputSpec
from suites.selftest.fakes import write_images

pytestmark = pytest.mark.selftest

BATCH = 5
IMAGES = 12
SPEC = InputSpec(64, 64, keep_ratio=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), to_rgb=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_coco(write_images(tmp_path_factory.mktemp("run") / "coco", IMAGES), "coco2017")


@dataclass
class Spy:
    """A session that keeps what it is shown and says so in its one output `[batch, 1]`."""

    broken: Mapping[int, float] = field(default_factory=dict)
    shown: list[Images] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def infer(self, images: Images) -> Maps:
        done = len(self.shown) * len(images)
        self.shown.append(images.copy())
        self.threads.add(threading.get_ident())
        rows = [[self.broken.get(done + row, 0.0)] for row in range(len(images))]
        return {"out": np.array(rows, np.float32)}


@dataclass
class Counting:
    """A decoder that gives image n one box, n pixels wide, in order of being asked."""

    geometries: list[Geometry] = field(default_factory=list)

    def decode(self, outputs: Mapping[str, object], geometries: Sequence[Geometry]) -> list[Boxes]:
        found = []
        for geometry in geometries:
            self.geometries.append(geometry)
            box = np.array([[0, 0, len(self.geometries), 1]], np.float32)
            found.append(Boxes(box, np.ones(1, np.float32), np.zeros(1, np.int64)))
        return found


def test_every_image_is_processed_once_in_order(dataset: Dataset) -> None:
    detections = run(dataset, Spy(), SPEC, Counting(), BATCH).detections
    assert detections.images.tolist() == [record.id for record in dataset.images]


def test_the_boxes_of_an_image_stay_with_it(dataset: Dataset) -> None:
    detections = run(dataset, Spy(), SPEC, Counting(), BATCH).detections
    assert dict(zip(detections.image_id.tolist(), detections.xywh[:, 2].tolist(), strict=True)) == {
        i: float(i) for i in range(1, IMAGES + 1)
    }


@pytest.mark.parametrize("batch", [1, BATCH, IMAGES, 20])
def test_every_call_gets_a_full_batch(dataset: Dataset, batch: int) -> None:
    spy = Spy()
    run(dataset, spy, SPEC, Counting(), batch)
    assert [images.shape for images in spy.shown] == [(batch, 3, 64, 64)] * -(-IMAGES // batch)


def test_the_last_batch_is_padded_with_zeros(dataset: Dataset) -> None:
    spy = Spy()
    run(dataset, spy, SPEC, Counting(), BATCH)
    assert [bool(image.any()) for image in spy.shown[-1]] == [True, True, False, False, False]


def test_padding_is_not_decoded(dataset: Dataset) -> None:
    decoder = Counting()
    run(dataset, Spy(), SPEC, decoder, BATCH)
    assert len(decoder.geometries) == IMAGES


def test_the_session_sees_the_preprocessed_images(dataset: Dataset) -> None:
    spy = Spy()
    run(dataset, spy, SPEC, Counting(), BATCH)
    wanted, _ = preprocess_batch([record.path for record in dataset.images], SPEC)
    np.testing.assert_array_equal(np.concatenate(spy.shown)[:IMAGES], wanted)


def test_the_decoder_gets_the_geometry_of_each_image(dataset: Dataset) -> None:
    decoder = Counting()
    run(dataset, Spy(), SPEC, decoder, BATCH)
    sizes = [(geometry.original_width, geometry.original_height) for geometry in decoder.geometries]
    assert sizes == [(record.width, record.height) for record in dataset.images]


def test_the_session_is_called_by_one_thread(dataset: Dataset) -> None:
    spy = Spy()
    run(dataset, spy, SPEC, Counting(), BATCH)
    assert spy.threads == {threading.get_ident()}


def test_labels_become_the_data_sets_category_ids(dataset: Dataset) -> None:
    other = replace(dataset, category_ids=(7, 8, 9))
    assert set(run(other, Spy(), SPEC, Counting(), BATCH).detections.category_id.tolist()) == {7}


def test_progress_is_told_after_each_batch(dataset: Dataset) -> None:
    told: list[tuple[int, int]] = []
    run(dataset, Spy(), SPEC, Counting(), BATCH, lambda done, total: told.append((done, total)))
    assert told == [(5, 12), (10, 12), (12, 12)]


def test_the_seconds_of_each_stage_are_kept(dataset: Dataset) -> None:
    seconds = run(dataset, Spy(), SPEC, Counting(), BATCH).seconds
    assert {stage: value > 0 for stage, value in seconds.items()} == dict.fromkeys(
        ("preprocess", "infer", "decode"), True
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("image", [1, 7, 12])
def test_nan_or_inf_is_invalid_and_names_output_and_image(dataset: Dataset, value: float, image: int) -> None:
    named = f"NaN or Inf in raw output 'out' for image {image} \\({image:012d}.png\\)"
    with pytest.raises(InvalidRun, match=named):
        run(dataset, Spy(broken={image - 1: value}), SPEC, Counting(), BATCH)


def test_nan_in_the_padding_means_nothing(dataset: Dataset) -> None:
    run(dataset, Spy(broken={IMAGES: np.nan}), SPEC, Counting(), BATCH)


@pytest.mark.parametrize("position", [0, 6, 11])
def test_an_image_of_another_size_than_annotated_is_refused(dataset: Dataset, position: int) -> None:
    images = list(dataset.images)
    images[position] = replace(images[position], width=999)
    with pytest.raises(DatasetError, match=f"image {position + 1} .* its annotation says 999x"):
        run(replace(dataset, images=tuple(images)), Spy(), SPEC, Counting(), BATCH)


def test_an_image_that_is_gone_is_refused(dataset: Dataset) -> None:
    gone = replace(dataset.images[8], path=Path("gone.png"))
    images = (*dataset.images[:8], gone)
    with pytest.raises(DatasetError, match=r"cannot read image gone\.png"):
        run(replace(dataset, images=images), Spy(), SPEC, Counting(), BATCH)


def test_a_session_that_fails_ends_the_run(dataset: Dataset) -> None:
    class Broken:
        def infer(self, images: Images) -> Maps:
            raise InvalidRun("throttled", "cool it")

    with pytest.raises(InvalidRun, match="throttled"):
        run(dataset, Broken(), SPEC, Counting(), BATCH)


def test_a_batch_holds_records_images_and_geometries(dataset: Dataset) -> None:
    part = load_batch(dataset.images[:2], SPEC, BATCH)
    assert (len(part.records), part.images.shape, len(part.geometries)) == (2, (BATCH, 3, 64, 64), 2)
