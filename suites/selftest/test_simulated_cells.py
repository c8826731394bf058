"""Every cell of TensorRT, ixRT and IGIE goes the whole way and scores as ONNX Runtime does, on simulated runtimes."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.accuracy_run import measure_accuracy
from harness.detect.run import run
from harness.engines import get_engine
from harness.measure.evaluate import evaluate
from harness.model.registry import Precision
from harness.pipeline import Cell, Pipeline, Prepared, Settings
from suites.selftest.simulated.runtimes import RUNTIMES, installed

pytestmark = [pytest.mark.selftest, pytest.mark.xdist_group("mini")]

MODELS = ("pisa-mini", "paa-mini")
MAP_TOLERANCE = 0.0005
BATCH, FEW = 8, 32
CELLS = [
    (runtime, model, precision)
    for runtime, engine in RUNTIMES.items()
    for precision in get_engine(engine).capabilities.precisions
    for model in MODELS
]
# The coarsest precision of each runtime, both models in turn.
SOME = [
    (runtime, MODELS[number % 2], get_engine(engine).capabilities.precisions[-1])
    for number, (runtime, engine) in enumerate(RUNTIMES.items())
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(cache_dir=tmp_path_factory.getbasetemp() / "mini-cache", batch_size=BATCH)


@pytest.fixture(scope="module")
def references(settings: Settings) -> "References":
    return References(settings)


class References:
    """What ONNX Runtime makes of the graph in a precision, each once: `[limit, model, precision, scheme] -> mAP`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.found: dict[tuple[object, ...], float] = {}

    def map_50_95(self, cell: Cell, limit: int | None) -> float:
        """mAP of the very file that engines of the cell's precision are built from, by ONNX Runtime itself."""
        scheme = get_engine(cell.engine).capabilities.int8_scheme if cell.precision == "int8" else None
        key = (limit, cell.model, cell.precision, scheme)
        if key not in self.found:
            pipeline = Pipeline(replace(self.settings, limit=limit))
            prepared = pipeline.prepare(Cell(cell.model, "fp32", "onnxruntime"))
            graph = pipeline.fixed(cell.model, cell.precision, scheme, prepared.source.weights, BATCH).path
            self.found[key] = scored(pipeline, replace(prepared, source=replace(prepared.source, graph=graph)))
        return self.found[key]


def scored(pipeline: Pipeline, prepared: Prepared) -> float:
    """mAP of ONNX Runtime on a graph, in whatever types its kernels have."""
    engine, model = prepared.engine, prepared.cell.model
    target = pipeline.settings.cache_dir / f"{prepared.source.graph.stem}.optimised.onnx"  # type: ignore[union-attr]
    engine.build(prepared.source, target)
    dataset = pipeline.dataset(model)
    with engine.open(prepared.source, target) as session:
        detections = run(dataset, session, pipeline.input_spec(model), pipeline.decoder(model), BATCH).detections
    return evaluate(dataset, detections).map_50_95


def differs(settings: Settings, references: References, cell: Cell, limit: int | None) -> float:
    """How far a cell's mAP is from ONNX Runtime's, on the first `limit` images or on all."""
    wanted = references.map_50_95(cell, limit)
    found = measure_accuracy(Pipeline(replace(settings, limit=limit)), cell).metrics.map_50_95
    print(f"{cell.id}: mAP {found:.5f}, ONNX Runtime {wanted:.5f}")
    assert wanted > 0.3
    return abs(found - wanted)


@pytest.mark.parametrize(("runtime", "model", "precision"), SOME)
def test_a_cell_scores_as_onnx_runtime_does_on_the_same_graph(
    settings: Settings, references: References, tmp_path: Path, runtime: str, model: str, precision: Precision
) -> None:
    with installed(runtime, tmp_path):
        assert differs(settings, references, Cell(model, precision, RUNTIMES[runtime]), FEW) <= MAP_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "model", "precision"), CELLS)
def test_every_cell_scores_as_onnx_runtime_does_on_all_images(
    settings: Settings, references: References, tmp_path: Path, runtime: str, model: str, precision: Precision
) -> None:
    with installed(runtime, tmp_path):
        assert differs(settings, references, Cell(model, precision, RUNTIMES[runtime]), None) <= MAP_TOLERANCE
