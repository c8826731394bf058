"""Takes a pipeline and a cell; gives the same images at each stage of its way from torch to the engine."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import numpy.typing as npt

from harness.cache import Artifact
from harness.detect.dataset import Dataset
from harness.detect.detections import Detections
from harness.detect.run import Batch, load_batch, parts_of
from harness.engines.reference import run_graph
from harness.errors import NotFinite
from harness.measure.hops import Hop, Stage, hops
from harness.model import graph
from harness.model.checkpoint import Weights
from harness.model.export import run_module
from harness.model.mmdet import load_module
from harness.model.registry import Precision
from harness.pipeline import Cell, Pipeline, Prepared
from harness.tolerances import Step

IMAGES = 8
"""Of the data set, the first: what every stage is shown."""
TORCH, ONNX, SIMPLIFIED, TYPED = "torch", "onnx", "simplified", "graph"

Images = npt.NDArray[np.float32]
Maps = Mapping[str, npt.NDArray[np.float32]]
Infer = Callable[[Images], Maps]


def measure(pipeline: Pipeline, cell: Cell, random: bool = False) -> Iterator[Hop]:
    """What each hop of the cell's way costs on the first images of its data set.

    Args:
        random: random weights may stand in for a missing checkpoint.

    Raises:
        Missing: engine, checkpoint, graph or data are not here.
        any stage's error on the way.
    """
    dataset = pipeline.dataset(cell.model).limit(IMAGES)
    prepared = pipeline.prepare(cell, random)
    return hops(dataset, _stages(pipeline, prepared, dataset))


def _stages(pipeline: Pipeline, prepared: Prepared, dataset: Dataset) -> Iterator[Stage]:
    model, batch = prepared.cell.model, prepared.source.batch
    spec = pipeline.input_spec(model)
    batches = [load_batch(records, spec, batch) for records in parts_of(dataset, batch)]
    with ExitStack() as stack:
        for name, step, infer in _runners(pipeline, prepared, stack):
            maps = _run(infer, batches)
            yield Stage(name, step, maps, _decoded(maps, batches, pipeline, model, dataset))


def _run(infer: Infer, batches: Sequence[Batch]) -> Maps:
    """The maps of all images, without those of the padding."""
    parts = []
    for batch in batches:
        maps = infer(batch.images)
        parts.append({output: rows[: len(batch.records)].copy() for output, rows in maps.items()})
    return {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}


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


def _runners(pipeline: Pipeline, prepared: Prepared, stack: ExitStack) -> Iterator[tuple[str, Step, Infer]]:
    """Name, step and runner of each stage, in order; the engine is opened on `stack` when it is reached."""
    model, weights = prepared.cell.model, _weights(pipeline, prepared)
    if weights is not None:
        module = load_module(pipeline.models[model], pipeline.config(model), weights.path)
        yield TORCH, "fp32", lambda images: run_module(module, pipeline.head(model), images)
    if prepared.engine.capabilities.source == "graph":
        for name, step, made in graphs(pipeline, prepared):
            yield name, step, partial(run_graph, graph.load(made.path))
    session = stack.enter_context(prepared.engine.open(prepared.source, prepared.file.path))
    yield prepared.cell.engine, prepared.cell.precision, session.infer


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
