"""A run shows every image once to the session, in order, padded to the batch, and refuses what means nothing."""

import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from harness.detect import run as runner
from harness.detect.dataset import Dataset, load_coco
from harness.detect.decode import Boxes
from harness.detect.journal import Journal
from harness.detect.preprocess import Geometry, preprocess_batch, read_image
from harness.detect.run import Images, Maps, load_batch, parts_of, run
from harness.errors import DatasetError, DecodeError, InvalidRun, NotFinite
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
    """A session that keeps what it is shown, and numbers it from 1 in its one output `[batch, 1]`."""

    broken: Mapping[int, float] = field(default_factory=dict)
    shown: list[Images] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def infer(self, images: Images) -> Maps:
        done = len(self.shown) * len(images)
        self.shown.append(images.copy())
        self.threads.add(threading.get_ident())
        rows = [[self.broken.get(done + row, done + row + 1.0)] for row in range(len(images))]
        return {"out": np.array(rows, np.float32)}


@dataclass
class Counting:
    """A decoder that gives image n one box, n pixels wide."""

    seen: dict[int, Geometry] = field(default_factory=dict)

    @property
    def geometries(self) -> list[Geometry]:
        return [self.seen[number] for number in sorted(self.seen)]

    def check(self, outputs: Mapping[str, object], images: int) -> None:
        if set(outputs) != {"out"}:
            raise DecodeError(f"wanted out, found {', '.join(outputs)}", "mend the spy")

    def decode(self, outputs: Maps, geometries: Sequence[Geometry]) -> list[Boxes]:
        raise NotImplementedError

    def decode_image(self, outputs: Maps, row: int, geometry: Geometry) -> Boxes:
        number = float(outputs["out"][row, 0])
        if not np.isfinite(number):
            raise NotFinite("out")
        self.seen[int(number)] = geometry
        return Boxes(np.array([[0, 0, number, 1]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))


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
        ("preprocess", "infer", "decode", "wall"), True
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("image", [1, 7, 12])
def test_nan_or_inf_is_invalid_and_names_output_and_image(dataset: Dataset, value: float, image: int) -> None:
    named = f"NaN or Inf in raw output 'out' for image {image} \\({image:012d}.png\\)"
    with pytest.raises(InvalidRun, match=named):
        run(dataset, Spy(broken={image - 1: value}), SPEC, Counting(), BATCH)


def test_of_several_bad_images_the_first_is_named_whoever_finds_another_before(dataset: Dataset) -> None:
    """Two threads: one decodes image 1 until the other has taken the bad image 2, which waits for the bad image 3."""
    taken = {number: threading.Event() for number in (2, 3)}

    class Waiting(Counting):
        def decode_image(self, outputs: Maps, row: int, geometry: Geometry) -> Boxes:
            if row + 1 in taken:
                taken[row + 1].set()
            if row < 2:
                assert taken[row + 2].wait(timeout=30), "one thread does the work of two"
            return super().decode_image(outputs, row, geometry)

    with pytest.raises(InvalidRun, match="for image 2 "):
        run(dataset, Spy(broken={1: np.nan, 2: np.nan}), SPEC, Waiting(), BATCH, threads=2)


@pytest.mark.parametrize("end", [DatasetError, KeyboardInterrupt])
def test_a_run_that_ends_does_not_read_the_rest_of_its_batch(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    many = replace(dataset, images=dataset.images * 2)
    read: list[Path] = []

    def slowly(path: Path) -> npt.NDArray[np.uint8]:
        read.append(path)
        if end is DatasetError and len(read) == IMAGES + 1:
            raise DatasetError("cannot read image", "fetch it again")
        if len(read) > IMAGES:
            time.sleep(0.05)
        return read_image(path)

    class Interrupted(Spy):
        def infer(self, images: Images) -> Maps:
            if end is KeyboardInterrupt:
                raise KeyboardInterrupt
            return super().infer(images)

    monkeypatch.setattr(runner, "read_image", slowly)
    with pytest.raises(end):
        run(many, Interrupted(), SPEC, Counting(), IMAGES, threads=2)
    assert len(read) < 2 * IMAGES


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


@dataclass
class Failing(Spy):
    """Fails at its `calls`-th call."""

    calls: int = 1

    def infer(self, images: Images) -> Maps:
        if len(self.shown) + 1 == self.calls:
            raise InvalidRun("throttled", "cool it")
        return super().infer(images)


@dataclass
class Resumed(Spy):
    """Numbers images from where the run goes on."""

    start: int = 0

    def infer(self, images: Images) -> Maps:
        return {"out": super().infer(images)["out"] + np.float32(self.start)}


def journal_of(dataset: Dataset, path: Path, batch: int) -> Journal:
    return Journal(path, [[record.id for record in part] for part in parts_of(dataset, batch)])


@pytest.mark.parametrize("calls", [1, 2, 3, 6, 12])
def test_a_run_that_ended_early_goes_on_where_it_was(dataset: Dataset, tmp_path: Path, calls: int) -> None:
    whole = run(dataset, Spy(), SPEC, Counting(), 1).detections
    with pytest.raises(InvalidRun, match="throttled"):
        run(dataset, Failing(calls=calls), SPEC, Counting(), 1, journal=journal_of(dataset, tmp_path / "journal", 1))
    journal = journal_of(dataset, tmp_path / "journal", 1)
    done = len(journal.parts)
    assert done == calls - 1, "a batch that was inferred is lost"
    told: list[tuple[int, int]] = []
    session = Resumed(start=done)
    again = run(dataset, session, SPEC, Counting(), 1, lambda *pair: told.append(pair), journal)
    assert again.detections.identical(whole)
    assert (again.resumed, len(session.shown)) == (done, IMAGES - done)
    assert told[0] == (max(done, 1), IMAGES)


def test_what_was_inferred_before_a_bad_image_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    images = list(dataset.images)
    images[8] = replace(images[8], path=Path("gone.png"))
    journal = journal_of(dataset, tmp_path / "journal", 1)
    with pytest.raises(DatasetError, match=r"gone\.png"):
        run(replace(dataset, images=tuple(images)), Spy(), SPEC, Counting(), 1, journal=journal)
    assert len(journal_of(dataset, tmp_path / "journal", 1).parts) == 8


def test_an_interrupt_stays_one_whatever_is_wrong_beside_it(dataset: Dataset) -> None:
    class Interrupted(Spy):
        def infer(self, images: Images) -> Maps:
            if self.shown:
                raise KeyboardInterrupt
            return super().infer(images)

    with pytest.raises(KeyboardInterrupt):
        run(dataset, Interrupted(broken={0: np.nan}), SPEC, Counting(), 1)


def test_a_finished_journal_needs_no_inference(dataset: Dataset, tmp_path: Path) -> None:
    whole = run(dataset, Spy(), SPEC, Counting(), BATCH, journal=journal_of(dataset, tmp_path / "journal", BATCH))
    session = Spy()
    again = run(dataset, session, SPEC, Counting(), BATCH, journal=journal_of(dataset, tmp_path / "journal", BATCH))
    assert again.detections.identical(whole.detections)
    assert (again.resumed, session.shown) == (IMAGES, [])


def test_a_batch_is_decoded_while_the_next_is_inferred(dataset: Dataset) -> None:
    second = threading.Event()

    class Signalling(Spy):
        def infer(self, images: Images) -> Maps:
            if self.shown:
                second.set()
            return super().infer(images)

    class Waiting(Counting):
        def decode_image(self, outputs: Maps, row: int, geometry: Geometry) -> Boxes:
            assert second.wait(timeout=30), "the second batch is not inferred before the first is decoded"
            return super().decode_image(outputs, row, geometry)

    assert len(run(dataset, Signalling(), SPEC, Waiting(), BATCH).detections) == IMAGES


def test_a_batch_is_loaded_while_the_one_before_is_inferred(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = threading.Event()

    def read(path: Path) -> npt.NDArray[np.uint8]:
        if path == dataset.images[BATCH].path:
            loaded.set()
        return read_image(path)

    class Waiting(Spy):
        def infer(self, images: Images) -> Maps:
            assert loaded.wait(timeout=30), "the second batch is not loaded while the first is inferred"
            return super().infer(images)

    monkeypatch.setattr(runner, "read_image", read)
    assert len(run(dataset, Waiting(), SPEC, Counting(), BATCH).detections) == IMAGES


@pytest.mark.parametrize(("ahead_bytes", "ahead"), [(0, 1), (2 * 4 * 3 * 64 * 64, 2), (2**30, runner.MOST_AHEAD)])
def test_small_batches_are_loaded_further_ahead(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, ahead_bytes: int, ahead: int
) -> None:
    loaded = threading.Semaphore(0)

    def read(path: Path) -> npt.NDArray[np.uint8]:
        loaded.release()
        return read_image(path)

    class Waiting(Spy):
        def infer(self, images: Images) -> Maps:
            if not self.shown:
                for _ in range(1 + ahead):
                    assert loaded.acquire(timeout=30), "not as many batches are loaded beside the first inference"
                assert not loaded.acquire(timeout=0.05), "more batches are loaded than may be"
            return super().infer(images)

    monkeypatch.setattr(runner, "read_image", read)
    monkeypatch.setattr(runner, "AHEAD_BYTES", ahead_bytes)
    run(dataset, Waiting(), SPEC, Counting(), 1)


def test_a_batch_is_kept_while_a_later_one_is_inferred(dataset: Dataset) -> None:
    third = threading.Event()

    class Signalling(Spy):
        def infer(self, images: Images) -> Maps:
            if len(self.shown) == 2:
                third.set()
            return super().infer(images)

    def progress(*_: int) -> None:
        assert third.wait(timeout=30), "the third batch is not inferred before the first is kept"

    assert len(run(dataset, Signalling(), SPEC, Counting(), BATCH, progress).detections) == IMAGES


@pytest.mark.parametrize("done", [BATCH, 2 * BATCH, IMAGES], ids=["first", "second", "last"])
def test_a_batch_that_cannot_be_kept_ends_the_run(dataset: Dataset, done: int) -> None:
    def progress(found: int, _images: int) -> None:
        if found == done:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run(dataset, Spy(), SPEC, Counting(), BATCH, progress)


def test_two_sets_of_raw_maps_are_alive_at_most(dataset: Dataset) -> None:
    alive: list[weakref.ref[npt.NDArray[np.float32]]] = []
    most = 0

    class Counted(Spy):
        def infer(self, images: Images) -> Maps:
            nonlocal most
            maps = super().infer(images)
            alive.append(weakref.ref(maps["out"]))
            most = max(most, sum(one() is not None for one in alive))
            return maps

    run(dataset, Counted(), SPEC, Counting(), 1)
    assert most == 2


def test_a_batch_holds_records_images_and_geometries(dataset: Dataset) -> None:
    part = load_batch(dataset.images[:2], SPEC, BATCH)
    assert (len(part.records), part.images.shape, len(part.geometries)) == (2, (BATCH, 3, 64, 64), 2)
