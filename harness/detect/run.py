"""Takes a data set, an open session and a decoder; gives the detections of every image, in batches."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from harness.detect.dataset import Dataset, ImageRecord, check_size
from harness.detect.decode import Boxes, Decoder
from harness.detect.detections import Detections
from harness.detect.preprocess import Geometry, preprocess_batch, read_image
from harness.errors import InvalidRun
from harness.model.mmdet import InputSpec

Images = npt.NDArray[np.float32]
Maps = dict[str, npt.NDArray[np.float32]]
Progress = Callable[[int, int], None]


class Inference(Protocol):
    """What the run needs of an engine's session: a full batch in, head maps by name out."""

    def infer(self, images: Images, /) -> Maps: ...


@dataclass(frozen=True)
class Batch:
    """Up to `batch` images, preprocessed; `images` `[batch, 3, H, W]` is padded with zeros behind the last record."""

    records: Sequence[ImageRecord]
    images: Images
    geometries: Sequence[Geometry]


@dataclass(frozen=True)
class Run:
    """Detections of a data set and the seconds of each stage (preprocess overlaps with the others)."""

    detections: Detections
    seconds: dict[str, float]


def silent(_done: int, _total: int) -> None:
    """Progress that tells nobody."""


def run(
    dataset: Dataset,
    session: Inference,
    input_spec: InputSpec,
    decoder: Decoder,
    batch: int,
    progress: Progress = silent,
) -> Run:
    """Detect on every image of the data set.

    Args:
        batch: images per call; the last batch is padded with zeros and the padding's rows are not decoded.
        progress: told (images done, images in all) after each batch.

    Raises:
        DatasetError: an image that cannot be read or has another size than its annotation says.
        InvalidRun: NaN or Inf in a raw output.
        DecodeError: outputs that do not fit the head.
    """
    seconds = {"preprocess": 0.0, "infer": 0.0, "decode": 0.0}
    found: list[tuple[int, Boxes]] = []
    for part in _batches(dataset.images, input_spec, batch, seconds):
        start = time.perf_counter()
        maps = session.infer(part.images)
        seconds["infer"] += time.perf_counter() - start
        start = time.perf_counter()
        require_finite(maps, [f"{record.id} ({record.path.name})" for record in part.records])
        boxes = decoder.decode(maps, part.geometries)
        found.extend((record.id, one) for record, one in zip(part.records, boxes, strict=True))
        seconds["decode"] += time.perf_counter() - start
        progress(len(found), len(dataset.images))
    return Run(Detections.from_boxes(found, dataset.category_ids), seconds)


def _batches(
    records: Sequence[ImageRecord], input_spec: InputSpec, batch: int, seconds: dict[str, float]
) -> Iterator[Batch]:
    """Batches in order; the next one is read and preprocessed while the caller works on this one."""

    def load(part: Sequence[ImageRecord]) -> Batch:
        start = time.perf_counter()
        made = load_batch(part, input_spec, batch)
        seconds["preprocess"] += time.perf_counter() - start
        return made

    parts = [records[i : i + batch] for i in range(0, len(records), batch)]
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="preprocess") as pool:
        ahead: Future[Batch] = pool.submit(load, parts[0])
        for following in parts[1:]:
            ready, ahead = ahead.result(), pool.submit(load, following)
            yield ready
        yield ahead.result()


def load_batch(records: Sequence[ImageRecord], input_spec: InputSpec, batch: int) -> Batch:
    """Read and preprocess up to `batch` images.

    Raises:
        DatasetError: an image that cannot be read or has another size than its annotation says.
    """
    photographs = [_read(record) for record in records]
    out = np.empty((batch, 3, input_spec.height, input_spec.width), np.float32)
    images, geometries = preprocess_batch(photographs, input_spec, out)
    return Batch(records, images, geometries)


def _read(record: ImageRecord) -> npt.NDArray[np.uint8]:
    photograph = read_image(record.path)
    check_size(record, photograph.shape[0], photograph.shape[1])
    return photograph


def require_finite(maps: Maps, names: Sequence[str]) -> None:
    """Refuse raw outputs with NaN or Inf for any of the images called `names`; rows behind them are padding.

    Raises:
        InvalidRun: names the output and the first image.
    """
    for name, values in maps.items():
        finite = np.isfinite(values[: len(names)]).reshape(len(names), -1).all(axis=1)
        if not finite.all():
            raise InvalidRun(
                f"NaN or Inf in raw output '{name}' for image {names[int(np.flatnonzero(~finite)[0])]}",
                "the engine overflows or is broken: compare it with fp32, and see which layer exceeds 65504 in fp16",
            )
