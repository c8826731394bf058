"""Takes a data set, an open session and a decoder; gives the detections of every image, in batches.

Reading, preprocessing and decoding run on a pool of threads, image by image, while the session infers: batch k + 1 is
made ready and batch k - 1 decoded during the inference of batch k, and a thread of its own keeps what is decoded, for
which the session would wait else. Two input batches and two sets of raw maps are alive at most. What is finished can be
journalled, so that a killed run is taken up again.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from harness.detect.dataset import Dataset, ImageRecord, check_size
from harness.detect.decode import Boxes, Decoder
from harness.detect.detections import Detections
from harness.detect.journal import Journal
from harness.detect.preprocess import Geometry, preprocess_into, read_image
from harness.environment import usable_cores
from harness.errors import InvalidRun, NotFinite
from harness.model.mmdet import InputSpec

T = TypeVar("T")
P = ParamSpec("P")
Images = npt.NDArray[np.float32]
Maps = dict[str, npt.NDArray[np.float32]]
Progress = Callable[[int, int], None]
Seconds = dict[str, float]

STAGES = ("preprocess", "infer", "decode", "wall")


class Inference(Protocol):
    """What the run needs of an engine's session: a full batch in, head maps by name out.

    Maps are read while the next batch is inferred: a session must not write to what it has given away.
    """

    def infer(self, images: Images, /) -> Maps: ...


@dataclass(frozen=True)
class Batch:
    """Up to `batch` images, preprocessed; `images` `[batch, 3, H, W]` is padded with zeros behind the last record."""

    records: Sequence[ImageRecord]
    images: Images
    geometries: Sequence[Geometry]


@dataclass(frozen=True)
class Run:
    """Detections of a data set, and what they cost.

    seconds: of each stage, summed over threads (`preprocess` with reading, `infer`, `decode`), and `wall`, the whole.
    resumed: images taken over from an earlier run that was killed; the seconds are of the others.
    """

    detections: Detections
    seconds: Seconds
    resumed: int = 0


def silent(_done: int, _total: int) -> None:
    """Progress that tells nobody."""


def parts_of(dataset: Dataset, batch: int) -> list[tuple[ImageRecord, ...]]:
    """The data set's images in order, cut into batches; the last may be shorter."""
    return [dataset.images[i : i + batch] for i in range(0, len(dataset.images), batch)]


def run(
    dataset: Dataset,
    session: Inference,
    input_spec: InputSpec,
    decoder: Decoder,
    batch: int,
    progress: Progress = silent,
    journal: Journal | None = None,
    threads: int | None = None,
) -> Run:
    """Detect on every image of the data set.

    Args:
        batch: images per call; the last batch is padded with zeros and the padding's rows are not decoded.
        progress: told (images done, images in all) after each batch, by the thread that keeps it, and at once where the
            journal holds some. What it or the journal raises ends the run, at the latest with the next batch.
        journal: its parts are taken over, and every finished batch is added; None starts anew and keeps nothing.
        threads: for reading, preprocessing and decoding; by default the cores this process may use.

    Raises:
        DatasetError: an image that cannot be read or has another size than its annotation says.
        InvalidRun: NaN or Inf in a raw output.
        DecodeError: outputs that do not fit the head.
    """
    start = time.perf_counter()
    seconds = dict.fromkeys(STAGES, 0.0)
    finished = list(journal.parts) if journal else []
    resumed = done = sum(len(part.images) for part in finished)
    if resumed:
        progress(resumed, len(dataset.images))

    def keep(found: list[tuple[int, Boxes]]) -> None:
        nonlocal done
        part = Detections.from_boxes(found, dataset.category_ids)
        finished.append(part)
        if journal:
            journal.add(part)
        done += len(part.images)
        progress(done, len(dataset.images))

    with _pool(threads or usable_cores()) as pool, _pool(1) as keeper:
        kept: Future[None] = keeper.submit(lambda: None)
        before: _Decoding | None = None

        def finish(decoding: "_Decoding | None") -> None:
            nonlocal kept
            if decoding is not None:
                found = decoding.boxes(seconds)
                kept.result()
                kept = keeper.submit(keep, found)

        for ready in _batches(parts_of(dataset, batch)[len(finished) :], input_spec, batch, pool, seconds):
            try:
                maps, spent = _clocked(session.infer, ready.images)
            except BaseException:
                finish(before)
                kept.result()
                raise
            seconds["infer"] += spent
            decoding = _Decoding(maps, ready, decoder, pool)
            del maps
            finish(before)
            before = decoding
        finish(before)
        kept.result()
    seconds["wall"] = time.perf_counter() - start
    return Run(Detections.concatenate(finished), seconds, resumed)


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool that drops what it has not begun when the run ends early."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="detect")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _clocked(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """What `work` gives, and the seconds it took."""
    start = time.perf_counter()
    return work(*args, **kwargs), time.perf_counter() - start


def _collected(tasks: Sequence["Future[tuple[T, float]]"], seconds: Seconds, stage: str) -> list[T]:
    """The tasks' results in order, once all are done."""
    done = [task.result() for task in tasks]
    seconds[stage] += sum(spent for _, spent in done)
    return [made for made, _ in done]


def _batches(
    parts: Sequence[Sequence[ImageRecord]], spec: InputSpec, batch: int, pool: ThreadPoolExecutor, seconds: Seconds
) -> Iterator[Batch]:
    """Batches in order; while the caller works on one, the pool fills the next in the other of two buffers."""
    buffers = [np.empty((batch, 3, spec.height, spec.width), np.float32) for _ in range(2)]

    def begin(number: int) -> "list[Future[tuple[Geometry, float]]]":
        images, records = buffers[number % 2], parts[number]
        images[len(records) :] = 0
        rows = zip(images, records, strict=False)
        return [pool.submit(_clocked, _load, row, record, spec) for row, record in rows]

    ahead = begin(0) if parts else []
    for number, records in enumerate(parts):
        geometries = _collected(ahead, seconds, "preprocess")
        if number + 1 < len(parts):
            ahead = begin(number + 1)
        yield Batch(records, buffers[number % 2], geometries)


def _load(row: Images, record: ImageRecord, spec: InputSpec) -> Geometry:
    photograph = read_image(record.path)
    check_size(record, photograph.shape[0], photograph.shape[1])
    return preprocess_into(row, photograph, spec)


def load_batch(records: Sequence[ImageRecord], spec: InputSpec, batch: int) -> Batch:
    """Read and preprocess up to `batch` images.

    Raises:
        DatasetError: an image that cannot be read or has another size than its annotation says.
    """
    images = np.zeros((batch, 3, spec.height, spec.width), np.float32)
    return Batch(records, images, [_load(row, record, spec) for row, record in zip(images, records, strict=False)])


class _Decoding:
    """One batch's raw maps on their way to boxes, image by image on the pool; lets go of the maps with the last."""

    def __init__(self, maps: Maps, batch: Batch, decoder: Decoder, pool: ThreadPoolExecutor) -> None:
        decoder.check(maps, len(batch.records))
        self._maps, self._decoder = maps, decoder
        self._records, self._geometries = batch.records, batch.geometries
        self._tasks = [pool.submit(_clocked, self._decode, row) for row in range(len(batch.records))]

    def _decode(self, row: int) -> Boxes:
        try:
            return self._decoder.decode_image(self._maps, row, self._geometries[row])
        except NotFinite as error:
            record = self._records[row]
            raise InvalidRun(f"{error.cause} for image {record.id} ({record.path.name})", error.remedy) from error

    def boxes(self, seconds: Seconds) -> list[tuple[int, Boxes]]:
        """Image id and boxes of each image, when all are decoded."""
        boxes = _collected(self._tasks, seconds, "decode")
        self._maps = {}
        return [(record.id, one) for record, one in zip(self._records, boxes, strict=True)]
