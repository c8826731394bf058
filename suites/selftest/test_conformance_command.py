"""`pytest -m conformance` on a fake engine: verdicts, exit codes, the table, the report, and builds from nothing."""

import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import jsonschema
import pytest

from harness.report import conformance as report
from harness.report.results import results_schema
from suites.selftest.conftest import Command
from suites.selftest.fakes import Workplace
from suites.selftest.pages import conformance_report
from suites.selftest.test_gate import FP32, ONE, Outcome, run

pytestmark = [pytest.mark.selftest, pytest.mark.xdist_group("gate")]

SOME = ("suites/conformance", "-m", "conformance", "-k", "run_again or finite or padding", *ONE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace.make(tmp_path_factory.mktemp("conformance"))


@pytest.fixture(scope="module")
def sound(place: Workplace) -> Outcome:
    return run(place, *SOME, "--conformance-report", str(place.root / "sound.md"))


@pytest.fixture(scope="module")
def unsound(place: Workplace) -> Outcome:
    return run(place, *SOME, "--conformance-report", str(place.root / "unsound.html"), faults="inf")


def test_promises_that_are_held_pass_with_exit_code_0(sound: Outcome) -> None:
    checks = sound.part(FP32, "conformance")["checks"]
    assert (sound.code, {name: check["status"] for name, check in checks.items()}) == (
        0,
        {"padding": "PASS", "run_again": "PASS", "finite": "PASS"},
    )


def test_the_table_counts_the_promises_that_are_held(sound: Outcome) -> None:
    assert re.search(rf"{FP32} +conformance +3 held +3 +PASS", sound.text)


def test_a_promise_that_is_not_held_is_invalid_with_exit_code_1(unsound: Outcome) -> None:
    checks = unsound.part(FP32, "conformance")["checks"]
    assert (unsound.code, checks["finite"]["status"]) == (1, "INVALID")


def test_the_table_names_the_promises_that_are_not_held(unsound: Outcome) -> None:
    assert re.search(rf"{FP32} +conformance +\d held +3 +INVALID +.*finite", unsound.text)


def test_a_failure_names_the_command_that_repeats_it_alone(unsound: Outcome) -> None:
    wanted = r"next: pytest -m conformance --model toy --precision fp32 --engine fake .* -k finite"
    assert re.search(wanted, unsound.text)


@pytest.mark.parametrize("name", ["sound", "unsound"])
def test_results_obey_the_published_schema(request: pytest.FixtureRequest, name: str) -> None:
    jsonschema.validate(request.getfixturevalue(name).results, results_schema())


@pytest.mark.slow
def test_two_workers_find_what_one_process_finds(sound: Outcome, place: Workplace) -> None:
    outcome = run(place, *SOME, "-n", "2")
    assert outcome.part(FP32, "conformance") == sound.part(FP32, "conformance")


# --- what cannot be asked

TIMED = ("suites/conformance", "-m", "conformance", "-k", "timed_call or finite", *ONE)


def test_a_check_that_cannot_be_made_is_skipped_by_name(place: Workplace) -> None:
    outcome = run(place, *TIMED)
    assert (outcome.code, outcome.part(FP32, "conformance")["status"]) == (0, "PASS")
    assert f"MISSING {FP32} timed_call: what the timed call computes cannot be read back" in outcome.text


def test_a_required_cell_has_to_answer_every_check(place: Workplace) -> None:
    assert run(place, *TIMED, "--require", FP32).code == 1


def test_what_a_check_needs_is_missing_under_its_own_name(place: Workplace, tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    words = ("suites/conformance", "-m", "conformance", "-k", "stages or finite", "--model", "toy", *ONE)
    outcome = run(place, *words, "--conformance-report", str(file), checkpoints=tmp_path)
    checks = outcome.part(FP32, "conformance")["checks"]
    assert {name: check["status"] for name, check in checks.items()} == {"stages": "MISSING", "finite": "PASS"}
    assert re.search(r"\| stages \| MISSING .* -k stages` \|", file.read_text())


def test_what_all_checks_of_a_cell_need_is_said_of_the_cell(place: Workplace) -> None:
    outcome = run(place, *SOME, faults="missing")
    assert f"MISSING {FP32}: the fake runtime is not installed" in outcome.text
    assert outcome.part(FP32, "conformance")["reason"] == "needs: the fake runtime is not installed"


def test_a_failure_to_close_leaves_the_verdicts_on_the_checks(place: Workplace) -> None:
    checks = run(place, *SOME, faults="unclosable").part(FP32, "conformance")["checks"]
    assert {name: check["status"] for name, check in checks.items()} == {
        **dict.fromkeys(["padding", "run_again", "finite"], "PASS"),
        "engine": "INVALID",
    }


def test_a_fault_of_ours_is_no_name_that_could_be_asked_for(place: Workplace, tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    assert run(place, *SOME, "--conformance-report", str(file), faults="crash").code == 3
    line = next(line for line in file.read_text().splitlines() if "| internal error |" in line)
    assert "`pytest -m conformance --model toy" in line
    assert " -k " not in line


# --- their order


def test_all_checks_of_a_cell_follow_each_other_and_builds_come_last(suites_command: Command) -> None:
    cells = ("--model", "*-mini", "--precision", "fp32", "--engine", "torch")
    words = ("suites/conformance", "-m", "conformance", "--collect-only", "-q", *cells, "--rebuilds", "2")
    told = suites_command(*words).stdout
    found = re.findall(r"^suites/conformance/(\w+)\.py::\w+\[(\w+-mini)-fp32-torch", told, re.MULTILINE)
    runs = [run for run, _ in groupby((file == "test_rebuilds", model) for file, model in found)]
    assert runs == [(False, "paa-mini"), (False, "pisa-mini"), (True, "paa-mini"), (True, "pisa-mini")]


# --- the report


def test_the_report_has_a_line_for_each_promise_with_its_command(sound: Outcome, place: Workplace) -> None:
    lines = [line for line in (place.root / "sound.md").read_text().splitlines() if line.startswith("| ")][2:]
    checks = [line.removeprefix("| ").split(" | ")[0] for line in lines]
    assert sorted(checks) == ["finite", "padding", "run_again"]
    assert [line.rpartition(" -k ")[2] for line in lines] == [f"{check}` |" for check in checks]


def test_the_report_says_what_was_examined(sound: Outcome, place: Workplace) -> None:
    text = (place.root / "sound.md").read_text()
    assert f"## {FP32}\n\n3 of 3 held. fake 1.0: fp32 on cpu, batch 8. Start: checkpoint;" in text


def test_the_report_counts_what_is_not_held(unsound: Outcome, place: Workplace) -> None:
    text = (place.root / "unsound.html").read_text()
    assert re.search(r"<h1>.* 0 of 3 promises held by 1 cell: 3 not held</h1>", text)
    assert text.count("badge is-invalid") == 4


def test_what_is_not_held_comes_first_in_the_report(tmp_path: Path) -> None:
    text = conformance_report(tmp_path / "report.html").read_text()
    assert re.findall(r"<h3 [^>]+>([^<]+)</h3>", text) == ["Not held", "Could not be asked", "Held"]
    rows = re.findall(r'<tr><th scope="row">(\w+)</th>', text)
    assert rows == ["invalid", "missing", "pass"]
    lines = conformance_report(tmp_path / "report.md").read_text().splitlines()
    assert [line.split(" | ")[1] for line in lines if line.startswith("| ")][2:] == ["INVALID", "MISSING", "PASS"]


@pytest.mark.parametrize("write", [report.html, report.markdown])
def test_a_report_of_nothing_does_not_say_that_all_is_held(write: Callable[..., str]) -> None:
    assert "no promise could be asked for" in write([], lambda cell, check: "")


def test_the_report_says_how_to_repeat_each_line(tmp_path: Path) -> None:
    text = conformance_report(tmp_path / "report.html").read_text()
    commands = re.findall(r"<code>(pytest -m conformance [^<]+)</code>", text)
    assert [command.rpartition(" -k ")[2] for command in commands] == ["invalid", "CHECK"]


def test_the_report_says_where_it_is(sound: Outcome, place: Workplace) -> None:
    assert f"conformance report: {place.root / 'sound.md'}" in sound.text


@pytest.mark.parametrize(
    ("file", "remedy"), [("report.pdf", r"ends in \.md or \.html"), ("taken.md", "--conformance-report FILE")]
)
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_asked(
    place: Workplace, tmp_path: Path, file: str, remedy: str
) -> None:
    (tmp_path / "taken.md").mkdir()
    outcome = run(place, *SOME, "--conformance-report", str(tmp_path / file))
    assert (outcome.code, outcome.results) == (4, {})
    assert re.search(remedy, outcome.text)


# --- builds

BUILDS = ("suites/conformance/test_rebuilds.py", "-m", "conformance", *ONE)


def test_builds_are_compared_in_outputs_ap_and_fps(place: Workplace) -> None:
    outcome = run(place, *BUILDS, "--rebuilds", "2")
    checks = outcome.part(FP32, "conformance")["checks"]
    assert (outcome.code, {name: check["figure"] for name, check in checks.items()}) == (
        0,
        {"rebuilt_outputs": 0, "rebuilt_map": 0, "rebuilt_fps": pytest.approx(0)},
    )


def test_without_the_option_nothing_is_built_again(place: Workplace) -> None:
    assert "rebuilt_map" not in run(place, "-m", "conformance", "--collect-only", "-q").text


@pytest.mark.parametrize(
    ("words", "told"), [(("--rebuilds", "1"), "wanted at least 2"), (("--rebuilds", "2", "-n", "1"), "under xdist")]
)
def test_builds_that_could_not_be_compared_are_refused(place: Workplace, words: tuple[str, ...], told: str) -> None:
    outcome = run(place, *BUILDS, *words)
    assert (outcome.code, outcome.results) == (4, {})
    assert told in outcome.text
