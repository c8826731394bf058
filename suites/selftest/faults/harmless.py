"""Takes a bench; gives pairs of runs between which nothing is wrong: reruns, other batches, engines and precisions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np

from harness.detect.dataset import Dataset
from harness.judge.previous import Pair
from harness.judge.record import Recorded
from harness.model.registry import Precision
from harness.pipeline import Cell
from suites.selftest.faults.catalogue import IN_THE_ENGINE, MINI
from suites.selftest.faults.prove import Bench

FLOATS: tuple[tuple[Precision, str], ...] = (
    ("fp32", "torch"),
    ("fp32", "onnxruntime"),
    ("fp32", "openvino"),
    ("fp32", "aotinductor"),
    ("fp16", "onnxruntime"),
    ("fp16", "openvino"),
)
INT8: tuple[tuple[Precision, str], ...] = (("int8", "onnxruntime"), ("int8", "openvino"))
"""Not beside floats: int8 costs accuracy."""
PARTS = 4
"""Disjoint parts of the data set; each is a data set of its own, beside the whole."""


@dataclass(frozen=True)
class Change:
    """A harmless change: its name, the pair, and whether no other change says the same of these runs.

    The reverse of a change, what follows from two others, and a part of the data set are not independent.
    """

    name: str
    pair: Pair
    independent: bool

    @property
    def identical(self) -> bool:
        """Whether the change changed nothing at all."""
        return self.pair.comparison.identical


def changes(bench: Bench) -> Iterator[Change]:
    """Of each model: every ordered pair of its fp32 and fp16 cells and of its int8 cells, on the whole data set and on
    each of four parts; and on the whole a rerun, a rebuild, another batch and one thread."""
    for model in MINI:
        for group in (FLOATS, INT8):
            yield from between(bench, [Cell(model, *of) for of in group])
        for precision, engine in (*FLOATS, *INT8):
            if engine in IN_THE_ENGINE:
                yield from _variants(bench, Cell(model, precision, engine))


def between(bench: Bench, cells: Sequence[Cell]) -> Iterator[Change]:
    """Every ordered pair of cells, on all images and on each of four parts."""
    runs, dataset = {cell: bench.clean(cell) for cell in cells}, bench.dataset(cells[0])
    for one, other in permutations(cells, 2):
        for part, images in _parts(dataset):
            before, after = (_only(runs[cell], images) for cell in (one, other))
            pair = Pair(images, before, after, "")
            yield Change(f"{one.id} -> {other.id}, {part}", pair, one == cells[0] and images is dataset)


def _variants(bench: Bench, cell: Cell) -> Iterator[Change]:
    settings: dict[str, dict[str, Any]] = {
        "rerun": {},
        "rebuilt": {"cache_dir": bench.folder / "cache"},
        "batch 5": {"batch_size": 5},
        "one thread": {"engine_options": {cell.engine: {"threads": "1"}}},
    }
    for name, changed in settings.items():
        pair = Pair(bench.dataset(cell), bench.clean(cell), bench.once(name, cell, **changed), "")
        yield Change(f"{cell.id}, {name}", pair, independent=True)


def _parts(dataset: Dataset) -> Iterator[tuple[str, Dataset]]:
    yield "all images", dataset
    for part in range(PARTS):
        images = dataset.images[part::PARTS]
        yield f"part {part + 1} of {PARTS}", replace(dataset, images=images, sha256=f"{part:x}{dataset.sha256[1:]}")


def _only(run: Recorded, dataset: Dataset) -> Recorded:
    """What the run found on the images of `dataset`."""
    if len(dataset.images) == len(run.detections.images):
        return run
    ids = [record.id for record in dataset.images]
    found = run.detections
    here = np.isin(found.image_id, ids)
    columns = {name: getattr(found, name)[here] for name in ("image_id", "xywh", "score", "category_id")}
    record = run.record.model_copy(update={"dataset": run.record.dataset.model_copy(update={"sha256": dataset.sha256})})
    return Recorded(record, type(found)(**columns, images=found.images[np.isin(found.images, ids)]))
