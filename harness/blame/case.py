"""Takes a pipeline and a cell; gives `Blame`: what each hop costs, and the layer that lost it."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness import chain
from harness.blame.layers import Layer
from harness.blame.ranges import Range, ranges
from harness.blame.search import Bounds, Found, Search, Tell
from harness.blame.sides import EngineRunner, Images, Side
from harness.detect.run import load_batch, parts_of
from harness.engines.reference import run_graph
from harness.errors import UsageError
from harness.judge.stages import Break, first_break
from harness.measure.hops import Hop
from harness.model import graph
from harness.model.parity import deviation
from harness.model.registry import PRECISIONS, Precision
from harness.pipeline import Cell, Pipeline, Prepared
from harness.tolerances import LAYER_BOUND, TOLERANCES

if TYPE_CHECKING:
    import onnx

AROUND = 6
"""Layers before and behind the one that departs, whose errors are shown."""


@dataclass(frozen=True)
class Nearby:
    """A layer in depth order near the one that departs, and how far its output is off in the whole graph."""

    layer: Layer
    relative: float


@dataclass(frozen=True)
class Blame:
    """All that is told of a cell.

    hops: its way. broken: the first that breaks. reference, suspect: the sides that were compared inside; None, with
    `found`, where there is no graph to look into, and `why` says so. seconds: of the search. in_engine: the suspect is
    an engine, not a graph. folder: the layer alone, once it is written.
    """

    cell: Cell
    hops: Sequence[Hop]
    broken: Break | None
    why: str = ""
    reference: Side | None = None
    suspect: Side | None = None
    found: Found | None = None
    ranges: Sequence[Range] = ()
    nearby: Sequence[Nearby] = ()
    seconds: float = 0.0
    in_engine: bool = False
    folder: Path | None = None

    @property
    def healthy(self) -> bool:
        """No hop breaks, and no layer departs, alone or with others in one engine."""
        return self.broken is None and (self.found is None or not self.found.departs)


@dataclass(frozen=True)
class Sides:
    """Who is compared with whom, on which images, and what their precisions explain of a difference."""

    reference: Side
    suspect: Side
    images: Images
    bounds: Bounds


def sides(
    pipeline: Pipeline, prepared: Prepared, hops: Sequence[Hop], broken: Break | None, against: Prepared | None
) -> Sides | None:
    """Those of the hop that breaks (the engine's where none does), or two cells; None where no graph can be cut."""
    images = _images(pipeline, prepared, (broken.hop if broken else hops[-1]).image)
    if against is not None:
        return _cells(pipeline, prepared, against, images)
    if _uncut(prepared, broken):
        return None
    precision = chain.built_from(prepared)
    typed = graph.load(chain.typed(pipeline, prepared, precision).path)
    if broken is not None and _in_graph(broken):
        fp32 = graph.load(chain.typed(pipeline, prepared, "fp32").path)
        one, other = (
            Side.of("the fp32 graph in ONNX Runtime", fp32, run_graph),
            Side.of(broken.hop.after, typed, run_graph),
        )
        return Sides(one, other, images, bounds(False, precision))
    one, other = Side.of("the same graph in ONNX Runtime", typed, run_graph), _engine(prepared, typed)
    return Sides(one, other, images, bounds(precision == prepared.cell.precision, prepared.cell.precision))


def _in_graph(broken: Break) -> bool:
    """The typed graph lost it, before any engine had it."""
    return broken.hop.after.endswith(chain.TYPED)


def _uncut(prepared: Prepared, broken: Break | None) -> str:
    """Why there is no graph whose pieces could be compared; empty where there is one."""
    if prepared.engine.capabilities.source == "module":
        return f"{prepared.cell.engine} runs torch's module: there is no graph whose layers could be compared"
    if broken is not None and broken.hop.step in ("export", "simplify", "batch"):
        return f"{broken.hop.name} made other layers: look at what that step's library did"
    if prepared.start == "engine file" and (broken is None or not _in_graph(broken)):
        return (
            f"{prepared.file.path} cannot be taken apart: leave --engine-file out to look into what "
            f"{prepared.cell.engine} builds here"
        )
    return ""


def bounds(same_graph: bool, precision: Precision) -> Bounds:
    """What a precision explains of a difference between two sides."""
    return Bounds(LAYER_BOUND[same_graph, precision], TOLERANCES[precision].relative)


def _engine(prepared: Prepared, typed: "onnx.ModelProto") -> Side:
    return Side.of(prepared.cell.id, typed, EngineRunner(prepared.engine, prepared.source))


def _require_comparable(pipeline: Pipeline, cell: Cell, against: Cell) -> None:
    """What can be known before the first hop is measured.

    Raises:
        UsageError: the other cell is of another model, one of them runs no graph, or one is an engine file.
    """
    if against.model != cell.model:
        raise UsageError(f"{cell.id} and {against.id} are of different models", "compare cells of one model")
    if pipeline.settings.engine_file is not None:
        raise UsageError("an engine file cannot be taken apart to compare its layers", "leave --engine-file out")
    for one in (cell, against):
        if pipeline.engine(one.engine).capabilities.source == "module":
            raise UsageError(f"{one.id} runs no graph that could be looked into", "choose another --against")


def _cells(pipeline: Pipeline, prepared: Prepared, other: Prepared, images: Images) -> Sides:
    """The cell, and another whose graph is made for the same batch."""
    cell, against = prepared.cell, other.cell
    kinds = [(chain.built_from(one), one.engine.capabilities.int8_scheme) for one in (other, prepared)]
    artifacts = [chain.typed_as(pipeline, prepared, *kind) for kind in kinds]
    reference, suspect = (
        _engine(one, graph.load(made.path)) for one, made in zip((other, prepared), artifacts, strict=True)
    )
    coarser = max(cell.precision, against.precision, key=PRECISIONS.index)
    same = artifacts[0].sha256 == artifacts[1].sha256 and cell.precision == against.precision
    return Sides(reference, suspect, images, bounds(same, coarser))


def _images(pipeline: Pipeline, prepared: Prepared, image: int) -> Images:
    """Of the batches that the stages were shown, the one that has this image."""
    model, batch = prepared.cell.model, prepared.source.batch
    records = parts_of(chain.shown(pipeline, model), batch)[image // batch]
    return load_batch(records, pipeline.input_spec(model), batch).images


def blame(pipeline: Pipeline, cell: Cell, against: Cell | None, tell: Tell) -> Blame:
    """What each hop of the cell costs, and the first layer that departs.

    Raises:
        UsageError: the other cell cannot be compared with this one.
        Missing, EngineError: as `harness.chain.measure`; or the other cell's engine is not here.
    """
    other = None
    if against is not None:
        _require_comparable(pipeline, cell, against)
        other = pipeline.prepare(against, random=True)
    hops = []
    for hop in chain.measure(pipeline, cell, random=True):
        hops.append(hop)
        tell(f"{hop.name}: {hop.worst.relative:.2g} off" if hop.worst else f"{hop.name}: {hop.broken}")
    broken = first_break(hops)
    prepared = pipeline.prepare(cell, random=True)
    chosen = sides(pipeline, prepared, hops, broken, other)
    if chosen is None:
        return Blame(cell, hops, broken, why=_uncut(prepared, broken))
    start = time.perf_counter()
    found = Search(chosen.reference, chosen.suspect, chosen.images, chosen.bounds, tell).run()
    nearby, own = around(chosen, found)
    return Blame(
        cell,
        hops,
        broken,
        reference=chosen.reference,
        suspect=chosen.suspect,
        found=found,
        ranges=_ranges(found, own),
        nearby=nearby,
        seconds=time.perf_counter() - start,
        in_engine=isinstance(chosen.suspect.run, EngineRunner),
    )


def around(sides: Sides, found: Found) -> tuple[list[Nearby], dict[str, "np.ndarray"]]:
    """Errors near the layer in the whole graph, each side with its own values; and the suspect's inputs to it."""
    layers = found.layers.layers
    place = layers.index(found.layer)
    near = layers[max(0, place - AROUND) : place + AROUND + 1]
    names = [*found.layer.inputs, *(layer.output for layer in near)]
    wanted, own = sides.reference.values(sides.images, names), sides.suspect.values(sides.images, names)
    errors = [Nearby(one, deviation(one.output, wanted[one.output], own[one.output]).relative) for one in near]
    return errors, {name: own[name] for name in found.layer.inputs}


def _ranges(found: Found, own: dict[str, "np.ndarray"]) -> list[Range]:
    """Inputs and output in the reference; the suspect's own inputs, and its output from the reference's."""
    alone = found.layers.cut(found.seen.piece)
    given = {**found.inputs, **found.wanted}
    both = ranges(alone, given, "reference"), ranges(alone, {**own, **found.found}, "suspect")
    return list(itertools.chain.from_iterable(zip(*both, strict=True)))
