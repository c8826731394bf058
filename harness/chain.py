"""Takes a pipeline and a cell; gives what each hop costs of its way from torch to the engine, on the same images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.cache import Artifact
from harness.detect.dataset import Dataset
from harness.detect.detections import Detections
from harness.detect.run import Batch, load_batch, parts_of
from harness.engines.reference import open_graph
from harness.errors import NotFinite
from harness.measure.hops import Hop, Stage, hop
from harness.model import graph
from harness.model.checkpoint import Weights
from harness.model.export import run_module
from harness.model.mmdet import load_module
from harness.model.registry import Precision
from harness.pipeline import Cell, Pipeline, Prepared
from harness.tolerances import Step

IMAGES = 8
"""Of the data set, the first: what every stage is shown."""
HELD_BYTES = 3 << 30
"""Of stages that further cells of the model may need; the last two are held whatever their size."""
TORCH, ONNX, SIMPLIFIED, TYPED = "torch", "onnx", "simplified", "graph"

Images = npt.NDArray[np.float32]
Maps = Mapping[str, npt.NDArray[np.float32]]
Infer = Callable[[Images], Maps]


class Key(NamedTuple):
    """Of what a stage is made: weights by their hash, or a graph by its path in the cache, for a batch."""

    model: str
    batch: int
    made_of: str


@dataclass(frozen=True)
class Maker:
    """How a stage is made. key: of what, the same for all cells that have it on their way; None where one alone has."""

    name: str
    step: Step
    key: Key | None
    infer: Callable[[], AbstractContextManager[Infer]]


@dataclass
class Shared:
    """What cells have in common: hops that were measured, and stages that the hops of further cells may begin at."""

    _hops: dict[tuple[Key, Key], Hop] = field(default_factory=dict)
    _stages: dict[Key, Stage] = field(default_factory=dict)

    def hop(self, dataset: Dataset, before: Maker, after: Maker, make: Callable[[Maker], Stage]) -> Hop:
        """The hop between two stages; what is not known of it is made."""
        one, other = before.key, after.key
        if one is None or other is None:
            return hop(dataset, self._stage(before, make), self._stage(after, make))
        if (one, other) not in self._hops:
            self._hops[one, other] = hop(dataset, self._stage(before, make), self._stage(after, make))
        return self._hops[one, other]

    def _stage(self, maker: Maker, make: Callable[[Maker], Stage]) -> Stage:
        if maker.key is None:
            return make(maker)
        self._stages = {key: stage for key, stage in self._stages.items() if key.model == maker.key.model}
        found = self._stages.pop(maker.key, None) or make(maker)
        self._stages[maker.key] = found  # the last that was used is the last to go
        while len(self._stages) > 2 and sum(map(_bytes_of, self._stages.values())) > HELD_BYTES:
            del self._stages[next(iter(self._stages))]
        return found


def measure(pipeline: Pipeline, cell: Cell, random: bool = False, shared: Shared | None = None) -> Iterator[Hop]:
    """What each hop of the cell's way costs on the first images of its data set, each hop as soon as it is measured.

    Args:
        random: random weights may stand in for a missing checkpoint.
        shared: of other cells of this pipeline; what they have in common with this one is not made again.

    Raises:
        Missing: engine, checkpoint, graph or data are not here.
        any stage's error on the way.
    """
    prepared = pipeline.prepare(cell, random)
    return _hops(pipeline, prepared, shown(pipeline, cell.model), shared or Shared())


def shown(pipeline: Pipeline, model: str) -> Dataset:
    """The images that every stage is shown."""
    return pipeline.dataset(model).limit(IMAGES)


def _hops(pipeline: Pipeline, prepared: Prepared, dataset: Dataset, shared: Shared) -> Iterator[Hop]:
    model, batch = prepared.cell.model, prepared.source.batch
    spec = pipeline.input_spec(model)
    batches = [load_batch(records, spec, batch) for records in parts_of(dataset, batch)]

    def make(maker: Maker) -> Stage:
        with maker.infer() as infer:
            maps = _run(infer, batches)
        return Stage(maker.name, maker.step, maps, _decoded(maps, batches, pipeline, model, dataset))

    for before, after in pairwise(_makers(pipeline, prepared)):
        yield shared.hop(dataset, before, after, make)


def _run(infer: Infer, batches: Sequence[Batch]) -> Maps:
    """The maps of all images, without those of the padding."""
    parts = []
    for batch in batches:
        maps = infer(batch.images)
        parts.append({output: rows[: len(batch.records)].copy() for output, rows in maps.items()})
    return {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}


def _bytes_of(stage: Stage) -> int:
    return sum(maps.nbytes for maps in stage.maps.values())


def _decoded(
    maps: Maps, batches: Sequence[Batch], pipeline: Pipeline, model: str, dataset: Dataset
) -> Detections | None:
    decoder = pipeline.decoder(model)
    pairs = [pair for batch in batches for pair in zip(batch.records, batch.geometries, strict=True)]
    decoder.check(maps, len(pairs))
    try:
        found = [(record.id, decoder.decode_image(maps, row, geometry)) for row, (record, geometry) in enumerate(pairs)]
    except NotFinite:
        return None
    return Detections.from_boxes(found, dataset.category_ids)


def _makers(pipeline: Pipeline, prepared: Prepared) -> Iterator[Maker]:
    """How each stage is made, in order; a stage's graph is there when it is reached, and no earlier."""
    model, weights, batch = prepared.cell.model, _weights(pipeline, prepared), prepared.source.batch
    if weights is not None:
        path = weights.path

        @contextmanager
        def torch() -> Iterator[Infer]:
            module = load_module(pipeline.models[model], pipeline.config(model), path)
            yield lambda images: run_module(module, pipeline.head(model), images)

        yield Maker(TORCH, "fp32", Key(model, batch, weights.sha256), torch)
    if prepared.engine.capabilities.source == "graph":
        for name, step, made in graphs(pipeline, prepared):
            yield Maker(name, step, Key(model, batch, str(made.path)), partial(_in_reference, made.path))

    @contextmanager
    def engine() -> Iterator[Infer]:
        with pipeline.open(prepared) as session:
            yield session.infer

    yield Maker(prepared.cell.engine, prepared.cell.precision, None, engine)


@contextmanager
def _in_reference(path: Path) -> Iterator[Infer]:
    yield open_graph(graph.load(path))


def graphs(pipeline: Pipeline, prepared: Prepared) -> Iterator[tuple[str, Step, Artifact]]:
    """The graphs on the cell's way, each with the name of its stage and its step; its engine builds from the last."""
    model, weights = prepared.cell.model, _weights(pipeline, prepared)
    if weights is not None:
        yield ONNX, "export", pipeline.exported(model, weights)
    yield SIMPLIFIED, "simplify", pipeline.simplified(model, weights)
    precision = built_from(prepared)
    step: Step = "batch" if precision == "fp32" else precision
    yield f"{precision} {TYPED}", step, typed(pipeline, prepared, precision)


def _weights(pipeline: Pipeline, prepared: Prepared) -> Weights | None:
    """Where the way begins: the cell's weights, for an engine file the model's checkpoint; none where ONNX was given.

    Raises:
        Missing: there is neither a checkpoint nor an ONNX.
    """
    if pipeline.settings.onnx is not None:
        return None
    return prepared.source.weights or pipeline.checkpoint(prepared.cell.model)


def built_from(prepared: Prepared) -> Precision:
    """The precision of the graph that the cell's engine builds from."""
    cell = prepared.cell
    return prepared.engine.capabilities.builds_from.get(cell.precision, cell.precision)


def typed(pipeline: Pipeline, prepared: Prepared, precision: Precision) -> Artifact:
    """The graph of a precision for the cell's batch, in the scheme of its engine."""
    return typed_as(pipeline, prepared, precision, prepared.engine.capabilities.int8_scheme)


def typed_as(pipeline: Pipeline, prepared: Prepared, precision: Precision, scheme: graph.Int8Scheme | None) -> Artifact:
    """The graph of a precision for the cell's batch, int8 in this scheme."""
    weights, batch = _weights(pipeline, prepared), prepared.source.batch
    return pipeline.fixed(prepared.cell.model, precision, scheme if precision == "int8" else None, weights, batch)
