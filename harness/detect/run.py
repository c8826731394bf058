"""Takes a data set, an open session and a decoder; gives the detections of every image, in batches.

Reading, preprocessing and decoding run on a pool of threads, image by image, while the session infers: batch k + 1 is
made ready and batch k - 1 decoded during the inference of batch k, and a thread of its own keeps what is decoded, for
which the session would wait else. Two sets of raw maps are alive at most, and two input batches, or up to
1 + `MOST_AHEAD` small ones: then a batch that takes longer than others is not waited for. What is finished can be
journalled, so that a killed run is taken up again.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

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
Images = npt.NDArray[np.float32]
Maps = dict[str, npt.NDArray[np.float32]]
Progress = Callable[[int, int], None]
Seconds = dict[str, float]

AHEAD_BYTES = 32 * 2**20
"""Beside the batch that is inferred, one is made ready, or as many as fit into this, up to `MOST_AHEAD`."""
MOST_AHEAD = 3
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

    with _Pool(threads or usable_cores()) as pool, _Pool(1) as keeper:
        kept: Future[None] = keeper.submit(lambda: None)
        before: _Decoding | None = None

        def finish() -> None:
            nonlocal kept, before
            decoding, before = before, None
            if decoding is not None:
                found = decoding.boxes(seconds)
                kept.result()
                kept = keeper.submit(keep, found)

        try:
            for ready in _batches(parts_of(dataset, batch)[len(finished) :], input_spec, batch, pool, seconds):
                called = time.perf_counter()
                maps = session.infer(ready.images)
                seconds["infer"] += time.perf_counter() - called
                decoding = _Decoding(maps, ready, decoder, pool)
                del maps
                finish()
                before = decoding
        except Exception:  # what was inferred is kept; an interrupt does not wait for it
            finish()
            kept.result()
            raise
        finish()
        kept.result()
    seconds["wall"] = time.perf_counter() - start
    return Run(Detections.concatenate(finished), seconds, resumed)


class _Pool(ThreadPoolExecutor):
    """Threads that drop what they have not begun when the run ends early."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="detect")
        self.threads = threads
        self.ended = False

    def __exit__(self, *_: object) -> None:
        self.ended = True
        self.shutdown(cancel_futures=True)


class _Rows(Generic[T]):
    """Work on the rows of one batch, begun at once: each thread of the pool takes the next row until none is left.

    A task for every thread and not for every row: to hand over and to collect a batch of small images row by row takes
    longer than some engines take for it.
    """

    def __init__(self, pool: _Pool, work: Callable[[int], T], rows: int) -> None:
        self._pool, self._count, self._left = pool, rows, deque(range(rows))
        self._made: dict[int, tuple[T, float]] = {}
        self._last = [0] * min(pool.threads, rows)
        self._tasks = [pool.submit(self._take, work, number) for number in range(len(self._last))]

    def _take(self, work: Callable[[int], T], number: int) -> None:
        while self._left and not self._pool.ended:
            try:
                self._last[number] = row = self._left.popleft()
            except IndexError:  # another thread was faster
                return
            start = time.perf_counter()
            try:
                made = work(row)
            except BaseException:
                self._left.clear()  # nobody will ask for them
                raise
            self._made[row] = made, time.perf_counter() - start

    def results(self, seconds: Seconds, stage: str) -> list[T]:
        """What the work gave for each row, once all is done; adds what it took. Raises what the first bad row did."""
        errors = [task.exception() for task in self._tasks]  # waits: only then the last rows are the last
        failed = {row: error for row, error in zip(self._last, errors, strict=True) if error}
        if failed:
            raise failed[min(failed)]
        ordered = [self._made[row] for row in range(self._count)]
        seconds[stage] += sum(spent for _, spent in ordered)
        return [made for made, _ in ordered]


def _batches(
    parts: Sequence[Sequence[ImageRecord]], spec: InputSpec, batch: int, pool: _Pool, seconds: Seconds
) -> Iterator[Batch]:
    """Batches in order; while the caller works on one, the pool fills the next in other buffers."""
    shape = (batch, 3, spec.height, spec.width)
    affordable = AHEAD_BYTES // (math.prod(shape) * np.dtype(np.float32).itemsize)
    buffers = [np.empty(shape, np.float32) for _ in range(1 + min(max(1, affordable), MOST_AHEAD))]

    def begin(number: int) -> _Rows[Geometry]:
        images, records = buffers[number % len(buffers)], parts[number]
        images[len(records) :] = 0
        return _Rows(pool, lambda row: _load(images[row], records[row], spec), len(records))

    ahead = deque(begin(number) for number in range(min(len(buffers) - 1, len(parts))))
    for number, records in enumerate(parts):
        geometries = ahead.popleft().results(seconds, "preprocess")
        free = number + len(buffers) - 1
        if free < len(parts):
            ahead.append(begin(free))
        yield Batch(records, buffers[number % len(buffers)], geometries)


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
    """One batch's raw maps on their way to boxes; lets go of the maps with the last image."""

    def __init__(self, maps: Maps, batch: Batch, decoder: Decoder, pool: _Pool) -> None:
        decoder.check(maps, len(batch.records))
        self._maps, self._decoder, self._batch = maps, decoder, batch
        self._rows = _Rows(pool, self._decode, len(batch.records))

    def _decode(self, row: int) -> Boxes:
        try:
            return self._decoder.decode_image(self._maps, row, self._batch.geometries[row])
        except NotFinite as error:
            record = self._batch.records[row]
            raise InvalidRun(f"{error.cause} for image {record.id} ({record.path.name})", error.remedy) from error

    def boxes(self, seconds: Seconds) -> list[tuple[int, Boxes]]:
        """Image id and boxes of each image, when all are decoded."""
        boxes = self._rows.results(seconds, "decode")
        self._maps = {}
        return [(record.id, one) for record, one in zip(self._batch.records, boxes, strict=True)]
