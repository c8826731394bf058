"""Takes a bench; gives pairs of runs between which nothing is wrong: reruns, other batches, engines and precisions."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np

from harness.detect.dataset import Dataset
from harness.judge.previous import Pair
from harness.judge.record import Recorded
from harness.model.registry import Precision
from harness.pipeline import Cell
from suites.selftest.faults.catalogue import MINI
from suites.selftest.faults.prove import Bench

ENGINES = {"fp32": ("torch", "onnxruntime", "openvino"), "fp16": ("onnxruntime", "openvino")}
INT8 = ("onnxruntime", "openvino")
PARTS = 4
"""Disjoint parts of the data set; each is a data set of its own, beside the whole."""


@dataclass(frozen=True)
class Change:
    """A harmless change: its name, the pair, and whether both runs have the same bits."""

    name: str
    pair: Pair

    @property
    def identical(self) -> bool:
        """Whether the change changed nothing at all."""
        return self.pair.comparison.identical


def changes(bench: Bench) -> Iterator[Change]:
    """Of each model: every ordered pair of its fp32 and fp16 cells and of its int8 cells, on the whole data set and on
    each of four parts; and on the whole a rerun, another batch and one thread."""
    for model in MINI:
        floats: list[tuple[Precision, str]] = [
            (precision, engine) for precision, engines in ENGINES.items() for engine in engines
        ]
        eights: list[tuple[Precision, str]] = [("int8", engine) for engine in INT8]
        runs = {Cell(model, *of): bench.clean(Cell(model, *of)) for of in (*floats, *eights)}
        dataset = bench.dataset(next(iter(runs)))
        for group in (floats, eights):
            for one, other in permutations((Cell(model, *of) for of in group), 2):
                for part, images in _parts(dataset):
                    before, after = (_only(runs[cell], images) for cell in (one, other))
                    yield Change(f"{one.id} -> {other.id}, {part}", Pair(images, before, after, ""))
        yield from _variants(bench, model, runs, dataset)


def _variants(bench: Bench, model: str, runs: dict[Cell, Recorded], dataset: Dataset) -> Iterator[Change]:
    settings: dict[str, dict[str, Any]] = {
        "rerun": {},
        "batch 5": {"batch_size": 5},
        "one thread": {"engine_options": {"onnxruntime": {"threads": "1"}, "openvino": {"threads": "1"}}},
    }
    for cell in (cell for cell in runs if cell.engine in INT8):
        for name, changed in settings.items():
            bench.pipeline(name, **changed).accuracy(cell)
            yield Change(f"{cell.id}, {name}", Pair(dataset, runs[cell], bench.recorded(name, cell), ""))


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
