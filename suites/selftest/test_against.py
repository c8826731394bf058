"""`pytest -m accuracy --against RUN` on a fake engine: collected only then, green for the same, red for worse."""

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

from harness.judge.previous import CHECKS
from harness.report.results import results_schema
from suites.selftest.fakes import Workplace
from suites.selftest.test_gate import FP16, FP32, ONE, Outcome, run

pytestmark = pytest.mark.selftest


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace.make(tmp_path_factory.mktemp("against"))


@pytest.fixture(scope="module")
def before(place: Workplace) -> Path:
    """The results file of a good run of the fp32 cell."""
    return run(place, "-m", "accuracy", *ONE, results=place.root / "before" / "results.json").file


def against(place: Workplace, before: Path, *words: str, faults: str = "") -> Outcome:
    return run(place, "-m", "against", "--against", str(before), *words, faults=faults)


@pytest.fixture(scope="module")
def same(place: Workplace, before: Path) -> Outcome:
    return against(place, before, *ONE)


@pytest.fixture(scope="module")
def blind(place: Workplace, before: Path) -> Outcome:
    return against(place, before, *ONE, faults="blind")


def test_without_the_option_nothing_of_it_is_collected(place: Workplace) -> None:
    outcome = run(place, "-m", "accuracy", "--collect-only", "-q", "suites")
    assert ("test_accuracy.py::test_map" in outcome.text, "test_against" in outcome.text) == (True, False)


def test_with_the_option_each_cell_has_every_check(place: Workplace, before: Path) -> None:
    outcome = run(place, "-m", "accuracy", "--collect-only", "-q", "--against", str(before), "suites")
    assert outcome.text.count(f"test_against.py::test_against[{FP32}-") == len(CHECKS)


def test_the_same_engine_again_passes_with_the_same_bits(same: Outcome) -> None:
    part = same.part(FP32, "against")
    assert (same.code, part["status"], list(part["checks"])) == (0, "PASS", ["identical"])


def test_the_table_shows_the_comparison(same: Outcome, blind: Outcome) -> None:
    assert f"{FP32}   against before   same bits" in same.text
    assert f"{FP32}   against before   -0.3333 / -0.3333   −0.0005 / −0.001   REGRESSED" in blind.text


def test_what_is_worse_fails_with_exit_code_1(blind: Outcome) -> None:
    checks = blind.part(FP32, "against")["checks"]
    assert (blind.code, set(checks)) == (1, set(CHECKS))
    assert {name for name, check in checks.items() if check["status"] == "REGRESSED"} == {
        "map_50_95",
        "map_50",
        "detections",
        "count",
        "worst_class",
    }


def test_a_failure_names_the_command_that_shows_more(blind: Outcome, before: Path, place: Workplace) -> None:
    record, own = before.parent / "record" / FP32, blind.file.parent / "record" / FP32
    command = f"python -m harness compare {record} {own} --data-dir {place.images}"
    assert f"REGRESSED {FP32} count: boxes by score: 0 -> 0 from 0 to 0.1" in blind.text
    assert f"  next: {command}" in blind.text


def test_a_cell_without_a_record_is_skipped_with_the_reason(place: Workplace, before: Path) -> None:
    outcome = against(place, before)
    assert (outcome.code, outcome.part(FP16, "against")["status"]) == (0, "MISSING")
    assert f"{before} has no record of {FP16} to compare with" in outcome.text


def test_a_required_cell_without_a_record_fails(place: Workplace, before: Path) -> None:
    assert against(place, before, "--require", FP16).code == 1


def test_a_record_of_other_images_is_wrong_input(place: Workplace, before: Path) -> None:
    outcome = against(place, before, *ONE, "--limit", "6")
    assert (outcome.code, "wanted the same data" in outcome.text) == (4, True)


def test_a_run_is_not_compared_with_the_records_that_it_overwrites(place: Workplace, before: Path) -> None:
    outcome = run(place, "-m", "accuracy", *ONE, "--against", str(before), results=before)
    assert (outcome.code, "it would be compared with itself" in outcome.text) == (4, True)


def test_what_is_no_record_is_refused_before_anything_is_run(place: Workplace, before: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(before.parent / "record" / FP32, tmp_path / FP32)
    (damaged / "detections.npz").write_bytes(b"half")
    outcome = against(place, damaged, *ONE)
    assert (outcome.code, "is cut short or of another run" in outcome.text) == (4, True)
    assert not outcome.file.exists()


@pytest.mark.slow
def test_two_workers_find_what_one_process_finds(place: Workplace, before: Path, blind: Outcome) -> None:
    outcome = against(place, before, *ONE, "-n", "2", faults="blind")
    # Commands name the run's own folder, and that it had workers.
    found, expected = (
        json.dumps(run.part(FP32, "against") | {"command": ""}).replace(str(run.file.parent), "FOLDER")
        for run in (outcome, blind)
    )
    assert (outcome.code, found) == (1, expected)


def test_results_obey_the_published_schema(blind: Outcome) -> None:
    jsonschema.validate(json.loads(blind.file.read_text()), results_schema())
