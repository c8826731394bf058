"""The results file: one object a cell from all its checks, merged by artefacts, never mixed between environments."""

import errno
import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.environment import collect
from harness.errors import ResultsError
from harness.judge.verdict import Kind, Status, Verdict
from harness.report import results
from harness.report.results import PROPOSAL, CellResult, Record, collate, load, results_schema, save

pytestmark = pytest.mark.selftest

NAMES = {"model": "pisa", "precision": "fp16", "engine": "tensorrt"}
CELL = "pisa-fp16-tensorrt"
ARTIFACTS = {"weights": "aa", "onnx": "bb", "engine": "cc"}
BASICS: dict[str, Any] = {
    "engine_version": "10.1",
    "batch": 8,
    "start": "checkpoint",
    "precision_ran": "fp16",
    "device": "cuda",
    "artifacts": ARTIFACTS,
}
DATASET = {"name": "mini", "images": 12, "sha256": "f" * 64, "full_val2017": False}
ACCURACY: dict[str, Any] = {
    **BASICS,
    "dataset": DATASET,
    "accuracy": {"map_50_95": 0.5, "map_50": 0.7, "metrics": {"mar_100": 0.6}, "per_class": {"cat": 0.5}},
}
PERFORMANCE: dict[str, Any] = {
    **BASICS,
    "performance": {"fps": 80.0, "latency_ms": {"p50": 100.0, "p90": 101.0, "p99": 102.0}, "cv": 0.01, "rounds": 31},
}


def written(cells: list[dict[str, str]], without: str = "") -> str:
    """A results file of this environment, less one of its fields."""
    environment = {name: value for name, value in collect().as_json().items() if name != without}
    return json.dumps({"schema": 1, "environment": environment, "cells": cells})


def accuracy(status: Status = Status.PASS, check: str = "map_50_95", facts: dict[str, Any] = ACCURACY) -> Record:
    return Record(NAMES, Verdict(CELL, "accuracy", check, status, f"{check} is so", 0.5, 0.4, 0.002), facts)


def performance(status: Status = Status.PASS, facts: dict[str, Any] = PERFORMANCE) -> Record:
    verdict = Verdict(CELL, "performance", "fps", status, "80 FPS", figure=80.0, expected=79.0, tolerance=0.05)
    return Record(NAMES, verdict, facts)


def against(status: Status = Status.PASS, check: str = "count") -> Record:
    verdict = Verdict(CELL, "against", check, status, f"{check} is so", 90, 100, 0.005)
    return Record(NAMES, verdict, ACCURACY)


def conformance(status: Status = Status.PASS, check: str = "padding") -> Record:
    verdict = Verdict(CELL, "conformance", check, status, f"{check} is so", 0.0, 1e-5)
    return Record(NAMES, verdict, BASICS)


def failed(kind: Kind, status: Status = Status.INVALID, reason: str = "NaN") -> Record:
    return Record(NAMES, Verdict(CELL, kind, "integrity", status, reason), {})


def one(*records: Record) -> CellResult:
    (cell,) = collate(records)
    return cell


# --- records


def test_a_record_survives_json() -> None:
    record = accuracy(Status.REGRESSED)
    assert Record.from_json(json.loads(json.dumps(record.as_json()))) == record


# --- collating


def test_the_checks_of_a_cell_become_one_result() -> None:
    cell = one(accuracy(), accuracy(check="map_50"), performance())
    assert (cell.id, cell.model, cell.precision, cell.engine) == (CELL, "pisa", "fp16", "tensorrt")
    assert (cell.accuracy is not None, cell.performance is not None) == (True, True)


def test_cells_keep_the_order_of_their_first_check() -> None:
    other = replace(accuracy(), verdict=replace(accuracy().verdict, cell="a-first-by-name"))
    assert [cell.id for cell in collate([accuracy(), other, performance()])] == [CELL, "a-first-by-name"]


def test_a_cell_with_accuracy_only_has_no_performance() -> None:
    assert one(accuracy()).performance is None


def test_a_cell_with_performance_only_has_no_accuracy() -> None:
    cell = one(performance())
    assert (cell.accuracy, cell.dataset) == (None, None)


def test_facts_are_kept() -> None:
    cell = one(accuracy(), performance())
    assert (cell.engine_version, cell.batch, cell.precision_ran, cell.device) == ("10.1", 8, "fp16", "cuda")
    assert cell.artifacts.model_dump() == ARTIFACTS


@pytest.mark.parametrize("order", [1, -1])
def test_accuracy_shows_the_gravest_of_its_checks_and_that_checks_reason(order: int) -> None:
    part = one(*[accuracy(), accuracy(Status.REGRESSED, "map_50")][::order]).accuracy
    assert part is not None
    assert (part.status, part.reason) == (Status.REGRESSED, "map_50: map_50 is so")


def test_reasons_of_equal_gravity_are_joined() -> None:
    part = one(accuracy(), accuracy(check="map_50")).accuracy
    assert part is not None
    assert set(part.reason.split("; ")) == {"map_50_95: map_50_95 is so", "map_50: map_50 is so"}


def test_results_do_not_depend_on_the_order_in_which_workers_report() -> None:
    checks = [accuracy(), accuracy(check="map_50")]
    assert one(*checks) == one(*reversed(checks))


def test_the_same_reason_of_two_checks_is_given_once() -> None:
    part = one(failed("accuracy"), failed("accuracy")).accuracy
    assert part is not None
    assert part.reason == "integrity: NaN"


def test_expectations_are_given_by_metric() -> None:
    part = one(accuracy(), accuracy(check="map_50")).accuracy
    assert part is not None
    assert (part.expected, part.tolerance) == ({"map_50_95": 0.4, "map_50": 0.4}, 0.002)


@pytest.mark.parametrize("kind", ["accuracy", "performance"])
def test_a_check_that_measured_nothing_has_no_figures(kind: Kind) -> None:
    part = getattr(one(failed(kind)), kind)
    figures = (part.map_50_95, part.map_50) if kind == "accuracy" else (part.fps, part.latency_ms)
    assert (part.status, part.expected, part.tolerance, figures) == (Status.INVALID, None, None, (None, None))


def test_a_failure_after_the_verdict_weighs_more() -> None:
    part = one(performance(), failed("performance")).performance
    assert part is not None
    assert (part.status, part.fps) == (Status.INVALID, 80.0)


def test_checks_against_an_earlier_run_are_kept_by_name() -> None:
    part = one(against(), against(Status.REGRESSED, "detections")).against
    assert part is not None
    assert (part.status, part.reason, list(part.checks)) == (
        Status.REGRESSED,
        "detections: detections is so",
        ["count", "detections"],
    )
    assert part.checks["count"].model_dump() == {
        "status": Status.PASS,
        "reason": "count is so",
        "remedy": "",
        "interval": None,
        "figure": 90,
        "expected": 100,
        "tolerance": 0.005,
    }


def test_a_fall_against_an_earlier_run_is_no_fall_against_the_baseline() -> None:
    part = one(accuracy(), against(Status.REGRESSED)).accuracy
    assert part is not None
    assert part.status is Status.PASS


@pytest.mark.parametrize(
    ("others", "status"),
    [([Status.PASS], Status.PASS), ([Status.INVALID], Status.INVALID), ([], Status.MISSING)],
)
def test_a_promise_that_cannot_be_asked_for_hides_nothing_that_can(others: list[Status], status: Status) -> None:
    part = one(conformance(Status.MISSING, "timed_call"), *[conformance(other) for other in others]).conformance
    assert part is not None
    assert (part.status, part.checks["timed_call"].status) == (status, Status.MISSING)


@pytest.mark.parametrize("record", [accuracy(), performance()])
def test_promises_are_kept_beside_what_is_measured_later(tmp_path: Path, record: Record) -> None:
    save(tmp_path / "results.json", collate([conformance()]))
    (cell,) = save(tmp_path / "results.json", collate([record])).cells
    assert cell.conformance == one(conformance()).conformance


@pytest.mark.parametrize(("records", "kept"), [([performance()], True), ([accuracy()], False)])
def test_a_comparison_holds_until_accuracy_is_measured_again(tmp_path: Path, records: list[Record], kept: bool) -> None:
    save(tmp_path / "results.json", collate([accuracy(), against()]))
    (cell,) = save(tmp_path / "results.json", collate(records)).cells
    assert (cell.against is not None) is kept


def test_a_proposed_baseline_is_no_part_of_the_results() -> None:
    record = replace(accuracy(), facts=ACCURACY | {PROPOSAL: {"map_50": 0.7}})
    assert PROPOSAL not in one(record).model_dump_json()


def test_statuses_are_those_of_the_parts_that_were_checked() -> None:
    assert one(accuracy(), performance(Status.RECORDED)).statuses == [Status.PASS, Status.RECORDED]


# --- saving and merging


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "results.json"


def test_results_are_read_as_they_were_written(path: Path) -> None:
    written = save(path, collate([accuracy(), performance()]))
    assert load(path) == written


def test_results_obey_the_published_schema(path: Path) -> None:
    save(path, collate([accuracy(), performance(), failed("performance")]))
    jsonschema.validate(json.loads(path.read_text()), results_schema())


def test_the_schema_refuses_an_unknown_key(path: Path) -> None:
    save(path, collate([accuracy()]))
    content = json.loads(path.read_text()) | {"comment": ""}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, results_schema())


def test_the_schema_is_itself_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(results_schema())


def test_results_carry_the_environment_and_its_fingerprint(path: Path) -> None:
    environment = save(path, collate([accuracy()])).environment
    assert environment.model_dump() == collect().as_json()


def saved_twice(path: Path, first: list[Record], then: list[Record]) -> CellResult:
    save(path, collate(first))
    (cell,) = save(path, collate(then)).cells
    return cell


@pytest.mark.parametrize("swap", [False, True])
def test_accuracy_and_performance_of_the_same_artefacts_merge(path: Path, swap: bool) -> None:
    first, then = ([performance()], [accuracy()]) if swap else ([accuracy()], [performance()])
    cell = saved_twice(path, first, then)
    assert (cell.statuses, cell.dataset and cell.dataset.images) == ([Status.PASS, Status.PASS], 12)


@pytest.mark.parametrize(
    "change", [{"artifacts": ARTIFACTS | {"engine": "dd"}}, {"artifacts": ARTIFACTS | {"weights": "dd"}}, {"batch": 1}]
)
def test_halves_of_other_artefacts_or_batch_do_not_merge(path: Path, change: dict[str, Any]) -> None:
    cell = saved_twice(path, [accuracy()], [performance(facts=PERFORMANCE | change)])
    assert (cell.accuracy, cell.dataset) == (None, None)


def test_the_same_half_is_replaced(path: Path) -> None:
    cell = saved_twice(path, [accuracy(Status.REGRESSED)], [accuracy()])
    assert cell.statuses == [Status.PASS]


def test_other_cells_stay_in_the_file(path: Path) -> None:
    other = replace(accuracy(), verdict=replace(accuracy().verdict, cell="other"))
    save(path, collate([other]))
    assert [cell.id for cell in save(path, collate([accuracy()])).cells] == ["other", CELL]


def test_a_cell_that_could_not_be_measured_replaces_yesterdays_figures(path: Path) -> None:
    cell = saved_twice(path, [accuracy(), performance()], [failed("accuracy", Status.MISSING)])
    assert (cell.statuses, cell.performance) == ([Status.MISSING], None)


def test_two_halves_that_could_not_be_measured_merge(path: Path) -> None:
    cell = saved_twice(path, [failed("accuracy", Status.MISSING)], [failed("performance", Status.MISSING)])
    assert cell.statuses == [Status.MISSING, Status.MISSING]


def previous(path: Path) -> Path:
    return path.with_name("results.json.prev")


def test_merging_keeps_nothing_aside(path: Path) -> None:
    saved_twice(path, [accuracy()], [performance()])
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_results_of_another_environment_are_kept_aside_and_not_merged(path: Path) -> None:
    save(path, collate([accuracy()]))
    content = json.loads(path.read_text())
    content["environment"]["python"] = "2.7"
    path.write_text(json.dumps(content))
    (cell,) = save(path, collate([performance()])).cells
    assert cell.accuracy is None
    assert json.loads(previous(path).read_text()) == content


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2, "environment": {}, "cells": []}'])
def test_a_file_that_cannot_be_read_is_kept_aside(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    save(path, collate([accuracy()]))
    assert previous(path).read_text() == text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "is not valid JSON"),
        ('{"schema": 2, "environment": {}, "cells": []}', "key 'schema'"),
        (written([{"id": "x"}]), "key 'cells.0.model'"),
        (written([], without="fingerprint"), "key 'environment.fingerprint'"),
        (written([], without="device"), "key 'environment.device'"),
    ],
)
def test_a_damaged_results_file_names_the_fault(path: Path, text: str, named: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ResultsError, match=named):
        load(path)


def test_a_binary_file_in_the_place_of_results_is_not_json(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(ResultsError, match="is not valid JSON"):
        load(path)


def test_a_binary_file_is_kept_aside(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"\x89PNG\xff")
    save(path, collate([accuracy()]))
    assert previous(path).read_bytes() == b"\x89PNG\xff"


def test_a_results_file_that_is_not_there_names_the_run_that_makes_it(path: Path) -> None:
    with pytest.raises(ResultsError) as caught:
        load(path)
    assert "run pytest first" in caught.value.remedy


def as_folder(path: Path) -> None:
    path.mkdir(parents=True)


def below_a_file(path: Path) -> None:
    path.parent.write_text("")


@pytest.mark.parametrize("obstacle", [as_folder, below_a_file])
def test_a_path_that_cannot_be_written_is_refused_beforehand(path: Path, obstacle: Callable[[Path], None]) -> None:
    obstacle(path)
    with pytest.raises(ResultsError, match=r"cannot write .*results\.json"):
        results.require_writable(path)


def test_results_that_cannot_be_written_are_an_error(path: Path) -> None:
    below_a_file(path)
    with pytest.raises(ResultsError, match=r"cannot write .*results\.json"):
        save(path, collate([accuracy()]))


def test_results_that_cannot_be_put_in_place_leave_no_litter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path, collate([accuracy()]))
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", _refused)
    with pytest.raises(ResultsError, match="cannot write"):
        save(path, collate([performance()]))
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {path.name: before}


def _refused(*_: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)], ids=oct)
def test_results_can_be_read_by_whom_the_umask_allows(path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        save(path, collate([accuracy()]))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_folder_that_may_not_be_written_is_refused_beforehand(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ResultsError, match="Permission denied"):
        results.require_writable(path)


def test_results_may_be_written_to_a_folder_that_does_not_exist_yet(path: Path) -> None:
    results.require_writable(path)
    assert not path.parent.exists()


def test_an_old_file_that_cannot_be_kept_aside_is_an_error(path: Path) -> None:
    previous(path).mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(ResultsError, match="cannot write"):
        save(path, collate([accuracy()]))
