"""Takes a pipeline and a cell; gives its COCO metrics on its data set, by a run that can be resumed."""

import dataclasses
import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import cache as caching
from harness.detect.dataset import Dataset
from harness.detect.journal import Journal
from harness.detect.run import Progress, Run, parts_of, run, silent
from harness.engines import Inspection
from harness.environment import collect
from harness.errors import ResultsError
from harness.judge import record as records
from harness.judge.accuracy import require_every_image
from harness.judge.record import Artifacts, DatasetIdentity, Record, Recorded
from harness.measure.evaluate import NUMBERS, CocoMetrics, evaluate
from harness.pipeline import Cell, Pipeline, Prepared

JOURNAL = "journal"


@dataclass(frozen=True)
class AccuracyRun:
    """A cell's detections on a data set, scored, with what really ran."""

    prepared: Prepared
    dataset: Dataset
    run: Run
    metrics: CocoMetrics
    inspection: Inspection

    @functools.cached_property
    def recorded(self) -> Recorded:
        """What later runs are compared with."""
        prepared, detections = self.prepared, self.run.detections
        cell, data = prepared.cell, self.dataset
        made = Record(
            id=cell.id,
            model=cell.model,
            precision=cell.precision,
            engine=cell.engine,
            engine_version=prepared.engine.version(),
            options=prepared.engine.flags(),
            batch=prepared.source.batch,
            start=prepared.start,
            precision_ran=self.inspection.dominant,
            device=self.inspection.device,
            dataset=DatasetIdentity(name=data.name, images=len(data.images), sha256=data.sha256),
            artifacts=Artifacts(**prepared.artifacts),
            metrics={name: getattr(self.metrics, name) for name in NUMBERS},
            detections=records.sha256_of(detections),
        )
        return Recorded(made, detections)


def measure_accuracy(pipeline: Pipeline, cell: Cell, progress: Progress = silent) -> AccuracyRun:
    """The cell's COCO metrics on its data set; made once per cell.

    Raises:
        Missing: engine, checkpoint or data are not here.
        InvalidRun: NaN, images lost, or another precision ran than claimed.
    """
    return pipeline.remember(("accuracy", cell), lambda: _measured(pipeline, cell, progress))


def _measured(pipeline: Pipeline, cell: Cell, progress: Progress) -> AccuracyRun:
    pipeline.require(cell)
    dataset = pipeline.dataset(cell.model)
    prepared = pipeline.prepare(cell)
    spec, decoder, batch = pipeline.input_spec(cell.model), pipeline.decoder(cell.model), prepared.source.batch
    with pipeline.opened(prepared) as session, _journal(pipeline, prepared, dataset) as journal:
        inspection = session.inspect()
        result = run(dataset, session, spec, decoder, batch, progress, journal)
    processed = [int(image) for image in result.detections.images]
    require_every_image(cell.id, [record.id for record in dataset.images], processed)
    start = time.perf_counter()
    metrics = evaluate(dataset, result.detections)
    seconds = {**result.seconds, "evaluate": time.perf_counter() - start}
    made = AccuracyRun(prepared, dataset, dataclasses.replace(result, seconds=seconds), metrics, inspection)
    if pipeline.settings.record is not None:
        _keep_record(made, pipeline.settings.record / cell.id)
    return made


def _keep_record(made: AccuracyRun, folder: Path) -> None:
    """What the cell's figures were made from, for whoever compares or draws them."""
    try:
        records.keep(folder, made.recorded, made.metrics.curves)
    except OSError as error:
        raise ResultsError(
            f"cannot write to {folder}: {error.strerror}", "give a writable path: --record DIR"
        ) from error


@contextmanager
def _journal(pipeline: Pipeline, prepared: Prepared, dataset: Dataset) -> Iterator[Journal | None]:
    """What a killed run of the same engine file, data and device left, to go on from; and where to keep more."""
    model, batch = prepared.cell.model, prepared.source.batch
    inputs = pipeline.recipe("run") | {
        "cell": prepared.cell.id,
        "engine": prepared.engine.name,
        "file": prepared.file.sha256,
        "version": prepared.engine.version(),
        "flags": prepared.engine.flags(),
        "device": collect().fingerprint,
        "code": {"detect": sources_digest(), "engine": prepared.engine.code()},
        "head": dataclasses.asdict(pipeline.head(model)),
        "preprocess": dataclasses.asdict(pipeline.input_spec(model)),
        "batch": batch,
        "dataset": dataset.sha256,
    }
    with pipeline.cache.unfinished("run", inputs) as directory:
        if directory is not None and not pipeline.settings.resume:
            (directory / JOURNAL).unlink(missing_ok=True)
        wanted = [[record.id for record in part] for part in parts_of(dataset, batch)]
        yield Journal(directory / JOURNAL, wanted) if directory is not None else None


@functools.cache
def sources_digest() -> str:
    """SHA-256 of the code that turns images into detections: a run is not taken up again by other code."""
    room = Path(__file__).parent / "detect"
    return caching.digest({str(file.relative_to(room)): caching.sha256_of(file) for file in room.rglob("*.py")})
