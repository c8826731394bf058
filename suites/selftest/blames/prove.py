"""Takes a pipeline; gives what `blame` finds of faults that an engine's build plants in whatever graph it is given."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx

from harness import chain
from harness.blame import reproducer
from harness.blame.case import bounds
from harness.blame.search import Search
from harness.blame.sides import EngineRunner, Images, Side
from harness.cache import Artifact
from harness.engines import Engine, Source
from harness.engines.reference import run_graph
from harness.model.parity import deviations
from harness.model.registry import Precision
from harness.pipeline import Cell, Pipeline, Prepared
from suites.selftest.blames.plant import PRECISION_OF, Kind, Planted, plant
from suites.selftest.faults.graphs import edit

SILENT = 1e-5
"""A fault that moves no output by more, relative L2, is none that anyone could see: another place is drawn."""


Build = Callable[[Any, Source, Path], None]


def damaged_build(healthy: Build, damage: Callable[[onnx.ModelProto], None]) -> Build:
    """An engine's `build` that damages whatever graph it is given."""

    def build(self: Engine, source: Source, target: Path) -> None:
        assert source.graph is not None
        model = onnx.load(str(source.graph))
        damage(model)
        damaged = target.with_name("damaged.onnx")
        onnx.save(model, str(damaged))
        healthy(self, replace(source, graph=damaged), target)

    return build


def damaging(engine: Engine, damage: Callable[[onnx.ModelProto], None]) -> Engine:
    """The engine, but what it builds is damaged."""
    kind = type(engine)
    return type(kind.__name__, (kind,), {"build": damaged_build(kind.build, damage)})(engine.options)  # type: ignore[no-any-return]


def with_a_wrong_scale(path: Path) -> Callable[..., Artifact]:
    """In place of `harness.chain.typed`: the int8 graph's first activation is clipped at an eighth of its range."""
    healthy = chain.typed

    def typed(pipeline: Pipeline, prepared: Prepared, precision: Precision) -> Artifact:
        made = healthy(pipeline, prepared, precision)
        if precision != "int8":
            return made
        model = onnx.load(str(made.path))
        edit(model, "/backbone/conv1/Conv_output_0_scale", lambda step: step / np.float32(8))
        onnx.save(model, str(path))
        return replace(made, path=path)

    return typed


@dataclass(frozen=True)
class Result:
    """What became of one planted fault. effect: relative L2 error of the worst output. runs: of the suspect and of the
    reference. alone: error of the blamed layer alone, on the reference's inputs. alone_again: its ONNX and inputs, read
    from the files that are kept, show the same error. silent: places drawn before that changed no output."""

    model: str
    kind: Kind
    engine: str
    precision: str
    place: str
    effect: float
    blamed: str
    right: bool
    alone: float
    alone_again: bool
    departs: bool
    layers: int
    suspect_runs: int
    reference_runs: int
    seconds: float
    silent: int


@dataclass(frozen=True)
class Bench:
    """Plants faults in the graphs of one pipeline, on images `[batch, 3, H, W]`."""

    pipeline: Pipeline
    seed: int = 0

    def prove(self, model: str, kind: Kind, engine: str, number: int) -> Result:
        """The fault number so and so of this kind."""
        precision = PRECISION_OF[kind]
        prepared = self.pipeline.prepare(Cell(model, precision, engine), random=True)  # type: ignore[arg-type]
        assert prepared.source.graph is not None
        healthy, images = onnx.load(str(prepared.source.graph)), self.pipeline.timing_images(prepared)
        rng = np.random.default_rng([self.seed, number, *kind.encode(), *model.encode()])
        planted, effect, silent = _felt(kind, healthy, images, rng)
        reference = Side.of("reference", healthy, run_graph)
        suspect = Side.of("suspect", healthy, EngineRunner(damaging(prepared.engine, planted.damage), prepared.source))
        start = time.perf_counter()
        found = Search(reference, suspect, images, bounds(True, prepared.cell.precision), lambda line: None).run()
        seconds = round(time.perf_counter() - start, 1)
        with tempfile.TemporaryDirectory() as folder:
            reproducer.write(Path(folder), found, prepared.cell, {}, in_engine=True)
            again = reproducer.run_with(suspect.run, Path(folder), suspect.image)
        return Result(
            model=model,
            kind=kind,
            engine=engine,
            precision=precision,
            place=planted.place,
            effect=effect,
            blamed=found.layer.name,
            right=bool(planted.guilty & set(found.layer.nodes)),
            alone=found.seen.worst.relative,
            alone_again=again == found.seen.worst,
            departs=found.seen.departs,
            layers=len(found.layers.layers),
            suspect_runs=suspect.runs,
            reference_runs=reference.runs,
            seconds=seconds,
            silent=silent,
        )


def _felt(kind: Kind, healthy: onnx.ModelProto, images: Images, rng: np.random.Generator) -> tuple[Planted, float, int]:
    """A fault that changes an output, by how much, and how many places that do not were drawn before."""
    side, wanted = Side.of("healthy", healthy, run_graph), run_graph(healthy, images)
    silent = 0
    while True:
        planted = plant(kind, healthy, lambda name: side.values(images, [name])[name], rng)
        damaged = onnx.ModelProto()
        damaged.CopyFrom(healthy)
        planted.damage(damaged)
        effect = deviations(wanted, run_graph(damaged, images))[0].relative
        if effect > SILENT:
            return planted, effect, silent
        silent += 1


def places(models: list[str], engines: list[str], of_each: int) -> Iterator[tuple[str, Kind, str, int]]:
    """Model, kind, engine and number of every fault: engines take turns."""
    for model in models:
        for kind in get_args(Kind):
            for number in range(of_each):
                yield model, kind, engines[number % len(engines)], number
