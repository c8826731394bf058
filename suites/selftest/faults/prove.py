"""Takes faults and harmless changes; gives which check caught each, against a clean run of the same cell."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx

from harness.accuracy_run import AccuracyRun, measure_accuracy
from harness.cache import Artifact, sha256_of
from harness.detect.dataset import Dataset
from harness.errors import EvaluationError, InvalidRun
from harness.judge import accuracy, baseline, previous
from harness.judge.previous import Pair
from harness.judge.record import RECORD, Recorded, load
from harness.judge.verdict import Status
from harness.model.registry import SHIPPED_BASELINES
from harness.pipeline import Cell, Pipeline, Settings
from suites.selftest.faults.catalogue import Edit, Fault

PRECISION_FINDINGS = ("wanted 95%", "wanted to run on")


@dataclass(frozen=True)
class Bench:
    """Runs of mini cells on the first `images` of the embedded set, recorded in `folder`."""

    cache: Path
    folder: Path
    images: int | None = None

    def pipeline(self, name: str, **settings: object) -> Pipeline:
        """A new pipeline whose records go to a folder of that name."""
        mine = {"cache_dir": self.cache, "limit": self.images, "record": self.folder / name, "resume": False}
        return Pipeline(Settings(**(mine | settings)))  # type: ignore[arg-type]

    def recorded(self, name: str, cell: Cell) -> Recorded:
        """What a run of that name recorded of the cell."""
        return load(self.folder / name / cell.id)

    def once(self, name: str, cell: Cell, **settings: object) -> Recorded:
        """A run of that name; run where it was not yet."""
        if not (self.folder / name / cell.id / RECORD).is_file():
            measure_accuracy(self.pipeline(name, **settings), cell)
        return self.recorded(name, cell)

    def clean(self, cell: Cell) -> Recorded:
        """The cell as it is."""
        return self.once("clean", cell)

    def dataset(self, cell: Cell) -> Dataset:
        """What the cells are run on."""
        return self.pipeline("unused").dataset(cell.model)


def caught_by(fault: Fault, cell: Cell, bench: Bench) -> list[str]:
    """Names of the checks that fail when the cell is run with the fault; empty where it passes unseen."""
    before = bench.clean(cell)
    name = "".join(letter if letter.isalnum() else "_" for letter in fault.name)
    pipeline = bench.pipeline(name)
    try:
        with ExitStack() as stack:
            if fault.edits is not None:
                stack.enter_context(_edited(fault.edits, pipeline))
            else:
                pipeline.prepare(cell)
            if fault.breaks is not None:
                fault.breaks(stack, pipeline, cell)
            run = measure_accuracy(pipeline, cell)
    except (InvalidRun, EvaluationError) as error:
        return ["precision" if any(word in error.cause for word in PRECISION_FINDINGS) else "integrity"]
    after = bench.recorded(name, cell)
    (verdicts,) = previous.judge_all([Pair(bench.dataset(cell), before, after, "")])
    found = [verdict.check for verdict in verdicts if verdict.fails(required=False)]
    return found + _recorded(run, cell, bench)


def _recorded(run: AccuracyRun, cell: Cell, bench: Bench) -> list[str]:
    """Checks of the accepted figures that fail; those of the whole embedded set, so only where all of it was run."""
    spec = bench.pipeline("unused").models[cell.model]
    key = baseline.AccuracyKey(precision=cell.precision, dataset=run.dataset.sha256, weights=spec.checkpoint.sha256[:8])
    expected = accuracy.expectation(
        spec, cell.precision, False, key, baseline.load_recorded(SHIPPED_BASELINES, cell.model)
    )
    if expected is None:
        return []
    verdicts = [accuracy.judge(cell.id, m, getattr(run.metrics, m), expected, "") for m in accuracy.METRICS]
    return [f"recorded {verdict.check}" for verdict in verdicts if verdict.status is Status.REGRESSED]


@contextmanager
def _edited(edit: Edit, pipeline: Pipeline) -> Iterator[None]:
    """The engine is built from the edited graph of the cell's own precision and batch."""
    fixed = pipeline.fixed
    with tempfile.TemporaryDirectory() as folder:

        def edited(*of: Any) -> Artifact:
            made = fixed(*of)
            model = onnx.load(str(made.path))
            edit(model)
            path = Path(folder) / made.path.name
            onnx.save(model, str(path))
            return Artifact(path, sha256_of(path), True)

        with patch.object(pipeline, "fixed", edited):
            yield
