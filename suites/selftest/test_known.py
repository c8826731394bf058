"""What is known to fail is expected to: its failure is green, its pass red; no entry outlives its day or check."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from suites.selftest.fakes import Workplace
from suites.selftest.test_gate import FP32, Outcome, accepted, first, place, required_speed, run

pytestmark = pytest.mark.selftest
__all__ = ["accepted", "first", "place", "required_speed"]

CHECK = f"suites/accuracy/test_accuracy.py::test_map[{FP32}-map_50_95]"
ENTRY = {
    "id": CHECK,
    "kind": "notyet",
    "stage": "accuracy",
    "reason": "the runtime does not see red",
    "link": "https://example.org/issues/1",
    "expires": "2999-01-01",
}


@pytest.fixture(autouse=True)
def forgotten(accepted: Workplace) -> Iterator[None]:
    """No entry outlives its test."""
    yield
    (accepted.baselines / "known_failures" / "fake.json").unlink(missing_ok=True)


def known(place: Workplace, *entries: dict[str, Any], **changes: Any) -> Path:
    path = place.baselines / "known_failures" / "fake.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": 1, "engine": "fake", "failures": list(entries)} | changes))
    return path


def both(**changes: Any) -> list[dict[str, Any]]:
    """Entries for both metrics of the cell."""
    return [{**ENTRY, **changes}, {**ENTRY, "id": CHECK.replace("map_50_95]", "map_50]"), **changes}]


def test_the_entrys_check_is_there(accepted: Workplace) -> None:
    assert CHECK in run(accepted, "--collect-only", "-q", "suites/accuracy").text


def test_a_known_failure_is_green_and_says_so(accepted: Workplace) -> None:
    known(accepted, *both())
    outcome = run(accepted, "-m", "accuracy", "--precision", "fp32", faults="blind")
    assert outcome.code == 0, outcome.text
    assert "2 xfailed" in outcome.text
    assert "REGRESSED (known)" in outcome.text
    cell = next(cell for cell in outcome.results["cells"] if cell["id"] == FP32)
    assert cell["accuracy"]["status"] == "REGRESSED"
    assert "notyet, accuracy: the runtime does not see red" in cell["accuracy"]["known"]


def test_a_known_failure_of_the_run_itself_is_green(accepted: Workplace) -> None:
    known(accepted, *both(stage="run"))
    outcome = run(accepted, "-m", "accuracy", "--precision", "fp32", faults="nan")
    assert (outcome.code, "2 xfailed" in outcome.text) == (0, True), outcome.text


def test_only_the_check_that_is_named_is_known(accepted: Workplace) -> None:
    known(accepted, ENTRY)
    outcome = run(accepted, "-m", "accuracy", "--precision", "fp32", faults="blind")
    assert outcome.code == 1
    assert "1 xfailed" in outcome.text
    assert "1 failed" in outcome.text


@pytest.mark.parametrize(
    "workers", [(), pytest.param(("-n", "2"), marks=pytest.mark.slow)], ids=["one process", "two workers"]
)
def test_an_unexpected_pass_is_red_and_says_what_to_do(accepted: Workplace, workers: tuple[str, ...]) -> None:
    known(accepted, ENTRY)
    outcome = run(accepted, "-m", "accuracy", "--precision", "fp32", *workers)
    assert outcome.code == 1
    assert f"{CHECK} is known to fail, and passed" in outcome.text
    assert "next: remove it from known_failures/" in outcome.text


def test_a_cell_that_is_missing_stays_missing(accepted: Workplace) -> None:
    known(accepted, *both())
    outcome = run(accepted, "-m", "accuracy", "--precision", "fp32", faults="missing")
    assert (outcome.code, "xfailed" in outcome.text) == (5, False), outcome.text


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({**ENTRY, "expires": "2020-01-01"}, "1 entry has expired, first suites/accuracy"),
        ({**ENTRY, "id": CHECK.replace("map_50_95", "map_75")}, "but there is no such check"),
        ({**ENTRY, "id": CHECK.replace("toy-fp32", "gone-fp32")}, "but there is no such check"),
        ({**ENTRY, "kind": "later"}, "key 'failures.0.kind'"),
        ({k: v for k, v in ENTRY.items() if k != "reason"}, "key 'failures.0.reason': Field required"),
    ],
    ids=["expired", "no such check", "no such model", "no such kind", "no reason"],
)
def test_an_entry_that_is_out_of_step_is_wrong_input(accepted: Workplace, entry: dict[str, Any], named: str) -> None:
    known(accepted, entry)
    outcome = run(accepted, "-m", "accuracy", "--precision", "fp32")
    assert outcome.code == 4
    assert named in outcome.text
    assert "mend it: " in outcome.text
    assert "Traceback" not in outcome.text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"expires": "2020-01-01"}, "whoever keeps that file: remove the entry and run `pytest 'suites/accuracy"),
        ({"id": CHECK.replace("map_50_95", "map_75")}, "whoever keeps that file: remove the entry, or correct its id"),
        (
            {"expires": "2020-01-01"},
            "(2020-01-01, the engine's to do: the runtime does not see red, followed at https://example.org/issues/1)",
        ),
    ],
    ids=["expired", "stale", "expired, whose move"],
)
def test_an_entry_that_is_out_of_step_says_who_must_do_what(
    accepted: Workplace, change: dict[str, str], told: str
) -> None:
    known(accepted, {**ENTRY, **change})
    assert told in run(accepted, "-m", "accuracy", "--precision", "fp32").text


@pytest.mark.parametrize(
    ("entries", "changes", "named"),
    [([ENTRY], {"engine": "other"}, "wanted engine 'fake', found 'other'"), ([ENTRY, ENTRY], {}, "is there twice")],
    ids=["another engine's", "twice"],
)
def test_a_file_that_contradicts_itself_is_wrong_input(
    accepted: Workplace, entries: list[dict[str, Any]], changes: dict[str, Any], named: str
) -> None:
    known(accepted, *entries, **changes)
    outcome: Outcome = run(accepted, "-m", "accuracy", "--precision", "fp32")
    assert (outcome.code, named in outcome.text) == (4, True), outcome.text


def test_entries_of_cells_that_are_not_chosen_rest(accepted: Workplace) -> None:
    known(accepted, {**ENTRY, "id": CHECK.replace("fp32", "fp16")})
    assert run(accepted, "-m", "accuracy", "--precision", "fp32").code == 0
