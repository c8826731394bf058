"""Takes a pipeline; gives what `blame` finds of faults that an engine's build plants in whatever graph it is given."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx

from harness.blame import reproducer
from harness.blame.case import bounds
from harness.blame.search import Search
from harness.blame.sides import EngineRunner, Images, Side
from harness.engines import Engine, Session, Source
from harness.engines.reference import run_graph
from harness.model.parity import deviations
from harness.pipeline import Cell, Pipeline
from suites.selftest.blames.plant import PRECISION_OF, Kind, Planted, plant

SILENT = 1e-5
"""A fault that moves no output by more, relative L2, is none that anyone could see: another place is drawn."""


class Damaging(Engine):
    """An engine whose build plants a fault in every graph that holds its place."""

    def __init__(self, engine: Engine, planted: Planted) -> None:
        self.inner, self.planted = engine, planted
        self.name, self.file_suffix, self.options = engine.name, engine.file_suffix, engine.options  # type: ignore[misc]

    @property
    def capabilities(self) -> Any:
        return self.inner.capabilities

    def available(self) -> str | None:
        return self.inner.available()

    def version(self) -> str:
        return self.inner.version()

    def build(self, source: Source, target: Path) -> None:
        assert source.graph is not None
        model = onnx.load(str(source.graph))
        self.planted.damage(model)
        damaged = target.with_name("damaged.onnx")
        onnx.save(model, str(damaged))
        self.inner.build(replace(source, graph=damaged), target)

    def open(self, source: Source, file: Path) -> Session:
        return self.inner.open(source, file)


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
        suspect = Side.of("suspect", healthy, EngineRunner(Damaging(prepared.engine, planted), prepared.source))
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
