"""The record of a run: whole or refused, written last, found wherever a run keeps it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import __version__
from harness.accuracy_run import AccuracyRun, measure_accuracy
from harness.environment import collect
from harness.errors import RecordError
from harness.judge import record as records
from harness.judge.record import CURVES, DETECTIONS, RECORD, Recorded
from harness.pipeline import Cell, Pipeline
from suites.selftest.conftest import RECORDS
from suites.selftest.fakes import NAME, FakeEngine, Workplace

pytestmark = pytest.mark.selftest

CELL = Cell("toy", "fp32", NAME)
FP32, INT8 = "pisa-mini-fp32-onnxruntime", "pisa-mini-int8-onnxruntime"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AccuracyRun:
    monkeypatch.setattr("harness.pipeline.get_engine", lambda *_: FakeEngine({}))
    place = Workplace.make(tmp_path)
    return measure_accuracy(Pipeline(place.settings(record=tmp_path / "record")), CELL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a shipped record, to damage."""
    return shutil.copytree(RECORDS / FP32, tmp_path / "run" / FP32)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / RECORD).read_text())
    change(content)
    (folder / RECORD).write_text(json.dumps(content))


def test_a_run_leaves_a_record_that_can_be_read(made: AccuracyRun, tmp_path: Path) -> None:
    kept = records.load(tmp_path / "record" / CELL.id)
    assert kept.record == made.recorded.record
    assert kept.detections.identical(made.run.detections)


def test_a_record_says_what_its_detections_were_made_of(made: AccuracyRun) -> None:
    record = made.recorded.record
    assert (record.id, record.batch, record.start, record.precision_ran) == (CELL.id, 8, "checkpoint", "fp32")
    assert (record.dataset.images, record.dataset.sha256) == (12, made.dataset.sha256)
    assert record.artifacts.model_dump() == made.prepared.artifacts
    assert (record.metrics["map_50_95"], len(record.metrics)) == (1.0, 12)
    assert (record.detgate, record.environment.fingerprint) == (__version__, collect().fingerprint)


def test_a_record_names_no_folder_of_the_machine(made: AccuracyRun, tmp_path: Path) -> None:
    assert str(tmp_path) not in (tmp_path / "record" / CELL.id / RECORD).read_text()


def test_a_run_that_is_broken_off_while_it_writes_leaves_no_record(
    made: AccuracyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("disk full")

    folder = tmp_path / "record" / CELL.id
    monkeypatch.setattr(type(made.metrics.curves), "save", full)
    with pytest.raises(OSError, match="disk full"):
        records.keep(folder, made.recorded, made.metrics.curves)
    with pytest.raises(RecordError, match=r"cannot read .*record\.json: No such file"):
        records.load(folder)


def without_last_bytes(folder: Path) -> None:
    path = folder / DETECTIONS
    path.write_bytes(path.read_bytes()[:-100])


def swapped(folder: Path) -> None:
    shutil.copy(RECORDS / INT8 / DETECTIONS, folder)


def of_a_newer_schema(folder: Path) -> None:
    edit(folder, lambda content: content.update(schema=2, detgate="9.0"))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "detections cut short": (without_last_bytes, r"detections\.npz is cut short or of another run: .* copy the whole"),
    "another run's detections": (swapped, r"detections\.npz is cut short or of another run"),
    "no detections": (lambda folder: (folder / DETECTIONS).unlink(), r"cannot read .*detections\.npz"),
    "a newer schema": (of_a_newer_schema, r"is of schema 2, written by detgate 9\.0; .* update detgate"),
    "an unknown key": (
        lambda folder: edit(folder, lambda content: content.update(colour=1)),
        "key 'colour': unknown key",
    ),
    "a key that lacks": (
        lambda folder: edit(folder, lambda content: content.pop("batch")),
        "key 'batch': Field required",
    ),
    "a list": (lambda folder: (folder / RECORD).write_text("[]"), "Input should be a valid dictionary"),
    "half a record.json": (
        lambda folder: (folder / RECORD).write_text((folder / RECORD).read_text()[:99]),
        r"record\.json is cut short or was edited",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_record_is_refused(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(RecordError, match=f"(?s){message}"):
        records.load(folder)


def test_detections_that_hold_nan_are_refused(folder: Path) -> None:
    with np.load(folder / DETECTIONS) as columns:
        arrays = dict(columns)
    arrays["score"][0] = np.nan
    np.savez_compressed(folder / DETECTIONS, **arrays)
    digest = hashlib.sha256((folder / DETECTIONS).read_bytes()).hexdigest()
    edit(folder, lambda content: content.update(detections=digest))
    with pytest.raises(RecordError, match="hold NaN or Inf"):
        records.load(folder)


# --- where records are found


def test_a_record_folder_is_a_run_of_one_cell() -> None:
    assert records.folders(RECORDS / INT8) == {INT8: RECORDS / INT8}


def test_a_folder_of_records_is_a_run() -> None:
    assert records.folders(RECORDS) == {FP32: RECORDS / FP32, INT8: RECORDS / INT8}


@pytest.mark.parametrize("name", ["results.json", "."])
def test_records_beside_a_results_file_are_found(tmp_path: Path, name: str) -> None:
    shutil.copytree(RECORDS, tmp_path / "record")
    (tmp_path / "results.json").write_text("{}")
    assert list(records.folders(tmp_path / name)) == [FP32, INT8]


def test_a_record_is_called_by_its_cell_whatever_its_folder(folder: Path) -> None:
    assert list(records.folders(folder.rename(folder.with_name("main")))) == [FP32]


def test_two_records_of_one_cell_are_refused(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("copy"))
    with pytest.raises(RecordError, match=f"holds two records of {FP32}"):
        records.folders(folder.parent)


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no run .*nowhere"):
        records.folders(tmp_path / "nowhere")


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no record in .*: wanted record\.json and detections\.npz"):
        records.folders(tmp_path)


def test_detections_without_a_record_are_named(folder: Path) -> None:
    (folder / RECORD).unlink()
    with pytest.raises(RecordError, match=r"has no record\.json: its run was broken off, or was of an older detgate"):
        records.folders(folder.parent)


def test_a_record_that_replaces_another_holds_nothing_of_it(made: AccuracyRun, tmp_path: Path) -> None:
    folder = tmp_path / "record" / CELL.id
    none = made.run.detections.above(2.0)
    changed = made.recorded.record.model_copy(update={"detections": records.sha256_of(none)})
    records.keep(folder, Recorded(changed, none), made.metrics.curves)
    assert len(records.load(folder).detections) == 0
    assert sorted(path.name for path in folder.iterdir()) == [CURVES, DETECTIONS, RECORD]
