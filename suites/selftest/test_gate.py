"""The real suites, run by a subprocess on a fake engine: every verdict, exit code and file, and that each can fail."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.environment import collect
from harness.report.results import results_schema
from suites.selftest import forks
from suites.selftest.conftest import own_environment
from suites.selftest.fakes import FAULTS_VARIABLE, PLUGIN, Workplace, write_model

pytestmark = pytest.mark.selftest

CHECKOUT = Path(__file__).resolve().parents[2]
SUITES = ("suites/accuracy", "suites/performance")
BOTH = ("-m", "accuracy or performance")
ONE = ("--precision", "fp32")
FP32, FP16 = "toy-fp32-fake", "toy-fp16-fake"


@dataclass(frozen=True)
class Outcome:
    """What a run of pytest left behind."""

    code: int
    text: str
    file: Path
    results: dict[str, Any] = field(default_factory=dict)

    def part(self, cell: str, kind: str) -> dict[str, Any]:
        """`accuracy` or `performance` of a cell in the results file."""
        found: dict[str, Any] = self.cell(cell)[kind]
        return found

    def cell(self, cell: str) -> dict[str, Any]:
        found: dict[str, Any] = next(row for row in self.results["cells"] if row["id"] == cell)
        return found

    @property
    def accept_commands(self) -> list[str]:
        return list(dict.fromkeys(re.findall(r"next: (python -m harness baseline accept .*)", self.text)))

    @property
    def table(self) -> list[str]:
        """Rows of the table at the end of the run."""
        return re.findall(r"^ (toy\S*) .*(?:AP / AP50|FPS)", self.text.partition(" detgate ==")[2], re.MULTILINE)


def environment(faults: str = "") -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return own_environment() | {FAULTS_VARIABLE: faults, "PATH": path}


def run_pytest(*words: str, faults: str = "", variables: Mapping[str, str] | None = None) -> forks.Outcome:
    return forks.run(
        ["pytest", "-p", "no:cacheprovider", *words], CHECKOUT, environment(faults) | dict(variables or {})
    )


def run(
    place: Workplace,
    *arguments: str,
    faults: str = "",
    results: Path | None = None,
    variables: Mapping[str, str] | None = None,
    **places: Path,
) -> Outcome:
    """`pytest` on the real suites with the fake engine; results go to a file of their own unless one is named."""
    file = results or Path(tempfile.mkdtemp(dir=place.root)) / "results.json"
    options = {"data_dir": place.images, "baselines": place.baselines, "checkpoints": place.checkpoints}
    options = options | {"cache_dir": place.cache} | places | {"results": file}
    words = [word for name, path in options.items() for word in (f"--{name.replace('_', '-')}", str(path))]
    if not any(word.startswith("--collect-only") for word in arguments):
        words += SUITES
    fake = ("-p", PLUGIN, f"--benchmark-timer={PLUGIN}.clock", "--engine", "fake")
    done = run_pytest(*fake, *words, *arguments, faults=faults, variables=variables)
    text = done.stdout + done.stderr
    return Outcome(done.returncode, text, file, json.loads(file.read_text()) if file.exists() else {})


def shell(command: str) -> None:
    command = command.replace("--reason WHY", "--reason checked")
    subprocess.run(["sh", "-c", command], cwd=CHECKOUT, env=environment(), check=True, capture_output=True)


def edited(place: Workplace, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the accepted baselines with the recorded file of `toy` changed."""
    copy = place.root / name
    shutil.copytree(place.baselines, copy)
    recorded = copy / "recorded" / "toy.json"
    content = json.loads(recorded.read_text())
    change(content)
    recorded.write_text(json.dumps(content))
    return copy


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace.make(tmp_path_factory.mktemp("gate"))


# --- nothing is accepted yet


@pytest.fixture(scope="module")
def first(place: Workplace) -> Outcome:
    """Both cells, both checks, no baseline anywhere."""
    files = (f"--benchmark-json={place.root / 'benchmark.json'}", f"--report={place.root / 'page.html'}")
    return run(place, *BOTH, *files)


@pytest.fixture(scope="module")
def required_speed(place: Workplace) -> Outcome:
    """Speed of a required cell that has no baseline."""
    return run(place, "-m", "performance", "--require", "toy-*", results=place.root / "required" / "results.json")


def test_a_missing_accuracy_baseline_fails_the_run(first: Outcome) -> None:
    assert first.code == 1


def test_a_missing_accuracy_baseline_is_called_missing(first: Outcome) -> None:
    assert first.part(FP32, "accuracy")["status"] == "MISSING"


def test_what_was_measured_is_proposed_as_a_baseline(first: Outcome) -> None:
    proposal = json.loads((first.file.parent / "proposed" / "toy.json").read_text())
    figures = {cell: (row["map_50_95"], row["map_50"], row["images"]) for cell, row in proposal["accuracy"].items()}
    assert figures == {FP32: (1.0, 1.0, 12), FP16: (1.0, 1.0, 12)}


def test_nothing_is_accepted_by_running(first: Outcome, place: Workplace) -> None:
    proposed = first.file.parent / "proposed" / "toy.json"
    assert f"proposed baseline: {proposed}" in first.text
    assert sorted(path.name for path in (first.file.parent / "proposed").iterdir()) == ["toy.json"]


def test_each_cell_without_a_baseline_gets_its_accept_command(first: Outcome, place: Workplace) -> None:
    wanted = "python -m harness baseline accept {} --reason WHY --results {} --baselines {}"
    assert first.accept_commands == [wanted.format(cell, first.file, place.baselines) for cell in (FP32, FP16)]


def test_speed_without_a_baseline_is_recorded_and_passes(first: Outcome) -> None:
    part = first.part(FP32, "performance")
    assert (part["status"], part["fps"]) == ("RECORDED", pytest.approx(80.0))
    assert "2 passed" in first.text


def test_the_table_shows_each_check_of_every_chosen_cell(first: Outcome) -> None:
    assert sorted(first.table) == sorted([FP32, FP16] * 2)


def test_each_engine_is_built_once_for_both_checks(first: Outcome) -> None:
    assert "engines: 2 built, 0 from the cache" in first.text


def test_a_run_writes_its_page(first: Outcome, place: Workplace) -> None:
    page = (place.root / "page.html").read_text()
    assert f"report: {place.root / 'page.html'}" in first.text
    assert "2 cells lack what is required" in page
    assert all(cell in page for cell in (FP32, FP16))
    assert "python -m harness baseline accept" in page


def test_path_options_may_be_given_with_a_space(first: Outcome) -> None:
    assert "configfile: pytest.ini" in first.text


def test_path_options_with_a_space_do_not_change_what_is_collected(place: Workplace) -> None:
    outcome = run(place, "--collect-only", "-q", "-m", "accuracy", *ONE)
    assert re.search(r"^2/\d+ tests collected", outcome.text, re.MULTILINE), outcome.text


def test_recorded_speed_of_a_required_cell_fails(required_speed: Outcome) -> None:
    assert required_speed.code == 1
    assert f"RECORDED {FP32} fps: 80.00 FPS, no speed accepted on this device at batch 8" in required_speed.text


# --- pytest-benchmark's file


@pytest.fixture(scope="module")
def benchmark_json(first: Outcome, place: Workplace) -> Path:
    return place.root / "benchmark.json"


def test_pytest_benchmark_compares_its_file(benchmark_json: Path) -> None:
    command = [sys.executable, "-m", "pytest_benchmark", "compare", str(benchmark_json)]
    done = subprocess.run(command, cwd=benchmark_json.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, f"test_fps[{FP32}]" in done.stdout) == (0, True)


def test_extra_info_says_what_was_measured(benchmark_json: Path, first: Outcome) -> None:
    rows = json.loads(benchmark_json.read_text())["benchmarks"]
    assert next(row["extra_info"] for row in rows if row["extra_info"]["cell"] == FP16) == {
        "cell": FP16,
        "fps": pytest.approx(80.0),
        "timer": "host",
        "transfer_fps": None,
        "device_fps": None,
        "device_timer": None,
        "memory_bytes": None,
        "batch": 8,
        "precision_ran": "fp16",
        "engine_version": "1.0",
        "fingerprint": first.results["environment"]["fingerprint"],
        "weights": first.cell(FP16)["artifacts"]["weights"],
        "options": {},
    }


@pytest.mark.parametrize("name", ["device", "fingerprint", "versions"])
def test_machine_info_says_where_it_was_measured(benchmark_json: Path, first: Outcome, name: str) -> None:
    assert json.loads(benchmark_json.read_text())["machine_info"][name] == first.results["environment"][name]


def test_pytest_benchmark_tells_a_machine_that_changed(accepted: Workplace, benchmark_json: Path) -> None:
    content = json.loads(benchmark_json.read_text())
    content["machine_info"]["versions"]["openvino"] = "2020.1"
    older = accepted.root / "older.json"
    older.write_text(json.dumps(content))
    outcome = run(accepted, "-m", "performance", *ONE, f"--benchmark-compare={older}")
    assert "Benchmark machine_info is different" in outcome.text


# --- what an accelerator tells beside the speed that is judged


@pytest.fixture(scope="module")
def accelerator(place: Workplace) -> Outcome:
    file = f"--benchmark-json={place.root / 'accelerator.json'}"
    return run(place, "-m", "performance", *ONE, file, faults="accelerator")


def test_on_an_accelerator_speed_with_copies_and_by_its_own_clock_is_told(accelerator: Outcome) -> None:
    part = accelerator.part(FP32, "performance")
    figures = {name: (part[name]["fps"], part[name]["timer"]) for name in ("transfer", "device")}
    assert figures == {"transfer": (pytest.approx(64.0), "host"), "device": (pytest.approx(100.0), "cuda events")}


def test_what_is_judged_on_an_accelerator_is_resident_and_on_the_hosts_clock(accelerator: Outcome) -> None:
    part = accelerator.part(FP32, "performance")
    assert (accelerator.code, part["fps"], part["timer"]) == (0, pytest.approx(80.0), "host")


def test_memory_held_on_an_accelerator_is_told(accelerator: Outcome) -> None:
    assert accelerator.part(FP32, "performance")["memory_bytes"] == 1 << 20


def test_the_benchmark_file_has_the_figures_of_an_accelerator_too(accelerator: Outcome, place: Workplace) -> None:
    (row,) = json.loads((place.root / "accelerator.json").read_text())["benchmarks"]
    extra = row["extra_info"]
    assert (extra["transfer_fps"], extra["device_fps"]) == (pytest.approx(64.0), pytest.approx(100.0))
    assert (extra["timer"], extra["device_timer"], extra["memory_bytes"]) == ("host", "cuda events", 1 << 20)


def test_on_a_cpu_nothing_is_copied_and_no_other_clock_is_read(first: Outcome) -> None:
    part = first.part(FP32, "performance")
    assert (part["transfer"], part["device"], part["memory_bytes"]) == (None, None, None)


# --- accepted by exactly the commands that were printed


@pytest.fixture(scope="module")
def accepted(place: Workplace, first: Outcome, required_speed: Outcome) -> Workplace:
    for command in (*first.accept_commands, *required_speed.accept_commands):
        shell(command)
    return place


@pytest.fixture(scope="module")
def accuracy_again(accepted: Workplace) -> Outcome:
    results = accepted.root / "again" / "results.json"
    results.parent.mkdir()
    elsewhere = {"schema": 1, "environment": {"fingerprint": "another"}, "cells": []}
    results.write_text(json.dumps(elsewhere))
    return run(accepted, "-m", "accuracy", results=results)


@pytest.fixture(scope="module")
def performance_again(accepted: Workplace, accuracy_again: Outcome) -> Outcome:
    return run(accepted, "-m", "performance", "--require", "*", results=accuracy_again.file)


def test_the_printed_commands_accept_accuracy_and_speed_of_both_cells(accepted: Workplace) -> None:
    recorded = json.loads((accepted.baselines / "recorded" / "toy.json").read_text())
    assert [row["accepted"]["cell"] for row in recorded["accuracy"] + recorded["speed"]] == [FP32, FP16] * 2


def test_the_reason_given_is_kept_with_the_figures(accepted: Workplace) -> None:
    recorded = json.loads((accepted.baselines / "recorded" / "toy.json").read_text())
    assert {row["accepted"]["reason"] for row in recorded["accuracy"] + recorded["speed"]} == {"checked"}


def test_the_accepted_accuracy_passes_with_exit_code_0(accuracy_again: Outcome) -> None:
    assert (accuracy_again.code, accuracy_again.part(FP16, "accuracy")["status"]) == (0, "PASS")


def test_the_accepted_speed_passes_under_require(performance_again: Outcome) -> None:
    assert (performance_again.code, performance_again.part(FP16, "performance")["status"]) == (0, "PASS")


def test_a_second_run_builds_nothing(accuracy_again: Outcome) -> None:
    assert "engines: 0 built, 2 from the cache" in accuracy_again.text


def test_accuracy_then_performance_merge_by_cell(performance_again: Outcome) -> None:
    parts = {
        row["id"]: (row["accuracy"]["status"], row["performance"]["status"])
        for row in performance_again.results["cells"]
    }
    assert parts == {FP32: ("PASS", "PASS"), FP16: ("PASS", "PASS")}


def test_results_of_another_environment_are_kept_aside(accuracy_again: Outcome) -> None:
    aside = json.loads(accuracy_again.file.with_name("results.json.prev").read_text())
    assert aside["environment"] == {"fingerprint": "another"}


# --- worse and better


@pytest.fixture(scope="module")
def worse(accepted: Workplace) -> Outcome:
    """As a job of GitHub runs it."""
    page, junit, summary = (accepted.root / name for name in ("page.md", "worse.xml", "worse.md"))
    page.write_text("of the step before\n")
    variables = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(page)}
    words = [f"--junitxml={junit}", "--summary", str(summary)]
    return run(accepted, *BOTH, *ONE, *words, faults="blind,seconds=0.12", variables=variables)


def properties(file: Path) -> list[dict[str, str]]:
    """What a JUnit file holds beside each test case."""
    cases = ElementTree.parse(file).iter("testcase")
    return [{each.attrib["name"]: each.attrib["value"] for each in case.iter("property")} for case in cases]


def test_the_page_of_a_github_job_gets_the_summary_below_what_is_there(worse: Outcome, place: Workplace) -> None:
    summary = (place.root / "worse.md").read_text()
    assert summary.startswith("## detgate: failed (2 REGRESSED)\n\n### What failed\n\n- **REGRESSED** `toy-fp32-fake`")
    assert (place.root / "page.md").read_text() == f"of the step before\n{summary}"


def test_a_failing_cell_is_annotated_on_github(worse: Outcome) -> None:
    (line,) = [line for line in worse.text.splitlines() if line.startswith("::error")]
    assert line.startswith(f"::error title=REGRESSED {FP32}::REGRESSED {FP32} map_50")
    assert line.count("%0A  next: pytest -m ") == 3


def test_nothing_is_annotated_elsewhere(better: Outcome) -> None:
    assert "::error" not in better.text


def test_junit_holds_verdict_figures_and_what_ran_of_each_check(worse: Outcome, place: Workplace) -> None:
    found = {case["check"]: case for case in properties(place.root / "worse.xml")}
    assert set(found) == {"map_50_95", "map_50", "fps"}
    told = {name: found["map_50"][name] for name in ("cell", "status", "figure", "precision_ran")}
    figure = str(worse.part(FP32, "accuracy")["map_50"])
    assert told == {"cell": FP32, "status": "REGRESSED", "figure": figure, "precision_ran": "fp32"}


def test_junit_of_two_workers_holds_the_same(two_workers: Outcome, place: Workplace) -> None:
    found = properties(place.root / "two.xml")
    assert sorted(case["cell"] for case in found) == sorted([FP32, FP32, FP16, FP16])
    assert all("detgate" not in case for case in found)


@pytest.fixture(scope="module")
def better(accepted: Workplace) -> Outcome:
    def lower(content: dict[str, Any]) -> None:
        content["accuracy"][0] |= {"map_50_95": 0.9}

    return run(accepted, *BOTH, *ONE, faults="seconds=0.09", baselines=edited(accepted, "lower", lower))


def test_lower_ap_is_regressed_with_exit_code_1(worse: Outcome) -> None:
    assert (worse.code, worse.part(FP32, "accuracy")["status"]) == (1, "REGRESSED")


def test_a_regression_names_cell_figure_expectation_tolerance_and_command(worse: Outcome, place: Workplace) -> None:
    message = re.search(rf"REGRESSED {FP32} map_50_95: (.*)\n  next: (.*)", worse.text)
    assert message is not None
    today = collect_day(place)
    assert message[1] == f"0.6667, expected 1.0000 (recorded {today}), tolerance 0.002: 0.3333 lower"
    command = "pytest -m accuracy --model toy --precision fp32 --engine fake"
    assert message[2].startswith(f"{command} --data-dir {place.images} --checkpoints {place.checkpoints}")


def collect_day(place: Workplace) -> str:
    recorded = json.loads((place.baselines / "recorded" / "toy.json").read_text())
    day: str = recorded["accuracy"][0]["accepted"]["when"][:10]
    return day


def test_twenty_percent_more_time_is_regressed(worse: Outcome) -> None:
    assert worse.part(FP32, "performance")["status"] == "REGRESSED"
    assert re.search(rf"REGRESSED {FP32} fps: 66.67 FPS, expected 80.00 \(.*\), tolerance 5%: 16.7% slower", worse.text)


def test_higher_ap_is_improved(better: Outcome) -> None:
    assert better.part(FP32, "accuracy")["status"] == "IMPROVED"


def test_less_time_is_improved(better: Outcome) -> None:
    assert better.part(FP32, "performance")["status"] == "IMPROVED"


def test_improvements_pass_with_exit_code_0(better: Outcome) -> None:
    assert better.code == 0


def test_slower_alone_exits_1(accepted: Workplace) -> None:
    assert run(accepted, "-m", "performance", *ONE, faults="seconds=0.12").code == 1


def test_four_percent_more_time_is_within_the_tolerance(accepted: Workplace) -> None:
    assert run(accepted, "-m", "performance", *ONE, faults="seconds=0.104").code == 0


def test_noise_is_invalid(accepted: Workplace) -> None:
    outcome = run(accepted, "-m", "performance", *ONE, faults="noisy=1000")
    assert (outcome.code, outcome.part(FP32, "performance")["status"]) == (1, "INVALID")
    assert "the median is uncertain by" in outcome.text


def test_noise_that_ends_is_measured_again(accepted: Workplace) -> None:
    file = accepted.root / "retried.json"
    outcome = run(accepted, "-m", "performance", *ONE, f"--benchmark-json={file}", faults="noisy=20")
    (row,) = json.loads(file.read_text())["benchmarks"]
    extra = row["extra_info"]
    assert (outcome.code, extra["fps"]) == (0, pytest.approx(80.0))
    assert extra["fps_of_the_first_try"] < 80.0


def test_speed_accepted_on_another_device_is_recorded_with_the_differences(accepted: Workplace) -> None:
    def elsewhere(content: dict[str, Any]) -> None:
        for row in content["speed"]:
            row |= {"fingerprint": "0" * 12, "device": row["device"] | {"cpu": "Z80"}, "fps": 40.0}

    baselines = edited(accepted, "elsewhere", elsewhere)
    part = run(accepted, "-m", "performance", *ONE, baselines=baselines).part(FP32, "performance")
    here = collect().device["cpu"]
    assert part["status"] == "RECORDED"
    assert part["reason"].endswith(f"; 2.00 x the speed accepted on another device (cpu: Z80 -> {here})")


def test_changed_versions_stand_beside_a_speed_that_is_judged_all_the_same(accepted: Workplace) -> None:
    def older(content: dict[str, Any]) -> None:
        for row in content["speed"]:
            row["versions"] |= {"numpy": "0.1"}

    outcome = run(accepted, "-m", "performance", *ONE, faults="seconds=0.2", baselines=edited(accepted, "older", older))
    part = outcome.part(FP32, "performance")
    numpy = collect().versions["numpy"]
    assert part["status"] == "REGRESSED"
    assert part["reason"].endswith(f"; versions changed since it was accepted (numpy: 0.1 -> {numpy})")


# --- no check is loosened unseen


def looser_speed(place: Workplace) -> Path:
    return edited(place, "looser-speed", lambda content: content["speed"][0].update(tolerance=0.15))


def looser_accuracy(place: Workplace) -> Path:
    copy = edited(place, "looser-accuracy", lambda content: None)
    model = copy / "models" / "toy.json"
    model.write_text(json.dumps(json.loads(model.read_text()) | {"tolerance": {"fp32": 0.01}}))
    return copy


@pytest.mark.parametrize(
    ("loosen", "told"),
    [
        (looser_speed, ["wanted at most 5.0% (the spread is not measured), found 15.0%", "who edited it: restore it"]),
        (
            looser_accuracy,
            ["'tolerance.fp32': Input should be less than or equal to 0.005, found 0.01", "who edited it: correct "],
        ),
    ],
)
def test_a_tolerance_loosened_by_hand_fails_the_run(
    accepted: Workplace, loosen: Callable[[Workplace], Path], told: list[str]
) -> None:
    outcome = run(accepted, *BOTH, *ONE, baselines=loosen(accepted))
    assert outcome.code == 4
    assert [text in outcome.text for text in told] == [True, True], outcome.text


CHANGES = ("--limit", "--batch-size", "--baselines", "--engine-option", "--benchmark-timer", "--runxfail")


@pytest.fixture(scope="module")
def changed(accepted: Workplace) -> Outcome:
    """A run with every option that changes what is judged."""
    words = ("--limit", "12", "--batch-size", "4", "--engine-option", "fake.colour=red", "--runxfail")
    return run(accepted, *BOTH, *ONE, *words)


@pytest.mark.parametrize("kind", ["accuracy", "performance"])
def test_options_that_change_what_is_judged_are_in_the_results(changed: Outcome, kind: str, place: Workplace) -> None:
    assert changed.part(FP32, kind)["given"] == {
        "--limit": "12",
        "--batch-size": "4",
        "--baselines": str(place.baselines),
        "--engine-option": "fake.colour=red",
        "--benchmark-timer": f"{PLUGIN}.clock",
        "--runxfail": "",
    }


def test_options_that_change_what_is_judged_are_told_below_the_table(changed: Outcome) -> None:
    (line,) = re.findall(r"^judged with (.*) \(rows: 2\)", changed.text, re.MULTILINE)
    assert {word for word in line.split() if word.startswith("--")} == set(CHANGES)


# --- figures that mean nothing


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nan", f"INVALID {FP32} integrity: NaN or Inf in raw output 'box_8' for image 1 (000000000001.png)"),
        (
            "precision",
            f"INVALID {FP32} integrity: {FP32}: wanted 95% of convolution work in fp32, found 100% in int8 on cpu",
        ),
        ("lost", f"INVALID {FP32} integrity: {FP32}: wanted each of 12 images once, found 11 processed, 1 lost (first"),
        ("shape", f"INVALID {FP32} engine: wanted outputs {{'cls_8': (8, 27, 8, 8)"),
    ],
)
def test_figures_that_mean_nothing_are_invalid(accepted: Workplace, fault: str, reason: str) -> None:
    outcome = run(accepted, "-m", "accuracy", *ONE, faults=fault)
    assert (outcome.code, outcome.part(FP32, "accuracy")["status"]) == (1, "INVALID")
    assert reason in outcome.text


def test_speed_in_the_wrong_precision_is_invalid(accepted: Workplace) -> None:
    outcome = run(accepted, "-m", "performance", *ONE, faults="precision")
    assert (outcome.code, outcome.part(FP32, "performance")["fps"]) == (1, None)
    assert f"INVALID {FP32} integrity" in outcome.text


def test_an_engine_that_refuses_the_model_is_invalid(accepted: Workplace) -> None:
    outcome = run(accepted, *BOTH, *ONE, "--engine-option", "fake.colour=red", faults="unbuildable")
    assert (outcome.code, outcome.table) == (1, [FP32, FP32])
    assert f"INVALID {FP32} engine: fake 1.0 refused the module\n  next: choose another fault" in outcome.text


def test_an_internal_error_exits_3_with_its_traceback(accepted: Workplace) -> None:
    outcome = run(accepted, "-m", "accuracy", *ONE, faults="crash")
    assert (outcome.code, outcome.part(FP32, "accuracy")["status"]) == (3, "INVALID")
    assert "raise ZeroDivisionError" in outcome.text


# --- what this machine does not have


@pytest.fixture(scope="module")
def no_engine(accepted: Workplace) -> Outcome:
    return run(accepted, *BOTH, faults="missing")


def test_a_missing_engine_skips_and_nothing_judged_exits_5(no_engine: Outcome) -> None:
    assert no_engine.code == 5
    assert "6 skipped" in no_engine.text


def test_a_missing_engine_is_one_row_of_the_table(no_engine: Outcome) -> None:
    assert no_engine.table == []
    assert re.findall(r"^ (\*-fake \(2 cells\)) +all .* MISSING", no_engine.text, re.MULTILINE) == ["*-fake (2 cells)"]


def test_a_missing_engine_is_named_once_with_its_remedy(no_engine: Outcome) -> None:
    told = "MISSING *-fake (2 cells): the fake runtime is not installed\n  next: pip install -e '.[fake]'"
    assert told in no_engine.text
    assert no_engine.text.partition(" detgate ==")[2].count("the fake runtime is not installed") == 1


def test_each_cell_of_a_missing_engine_is_in_the_results(no_engine: Outcome) -> None:
    found = {
        (row["id"], row[kind]["status"]) for row in no_engine.results["cells"] for kind in ("accuracy", "performance")
    }
    assert found == {(FP32, "MISSING"), (FP16, "MISSING")}


def test_a_required_missing_engine_fails_with_the_reason(accepted: Workplace) -> None:
    outcome = run(accepted, "-m", "accuracy", "--require", FP32, faults="missing")
    assert outcome.code == 1
    assert f"MISSING {FP32} needs: the fake runtime is not installed" in outcome.text
    assert re.search(r"2 skipped, \d+ deselected, 2 errors", outcome.text)
    assert outcome.table == [FP32, FP16]


def test_one_judged_cell_among_missing_ones_is_enough(accepted: Workplace) -> None:
    write_model(accepted.root / "two", accepted.root / "two", "absent")
    baselines = accepted.root / "two-baselines"
    shutil.copytree(accepted.baselines, baselines)
    shutil.copy(accepted.root / "two" / "models" / "absent.json", baselines / "models")
    outcome = run(accepted, "-m", "accuracy", *ONE, baselines=baselines)
    assert (outcome.code, "2 passed, 2 skipped" in outcome.text) == (0, True)
    assert outcome.table == [FP32]
    assert re.search(r"^ absent-fp32-fake +AP / AP50 .* MISSING", outcome.text, re.MULTILINE)


@pytest.fixture(scope="module")
def random_weights(accepted: Workplace) -> Outcome:
    file = f"--benchmark-json={accepted.root / 'random.json'}"
    nowhere = accepted.root / "nowhere"
    return run(
        accepted, *BOTH, *ONE, "--model", "toy", file, checkpoints=nowhere, baselines=edited_without_speed(accepted)
    )


def edited_without_speed(place: Workplace) -> Path:
    return edited(place, "no-speed", lambda content: content.pop("speed"))


def test_random_weights_are_never_used_for_accuracy(random_weights: Outcome) -> None:
    part = random_weights.part(FP32, "accuracy")
    assert (part["status"], part["map_50_95"]) == ("MISSING", None)
    assert "checkpoint toy.pth of 'toy' not found" in part["reason"]


def test_random_weights_are_marked_in_the_results(random_weights: Outcome) -> None:
    cell = random_weights.cell(FP32)
    assert (cell["start"], cell["artifacts"]["weights"]) == ("random weights", "random-seed-20260101")
    assert "RANDOM WEIGHTS: speed only" in cell["performance"]["reason"]


def test_random_weights_are_marked_in_the_table(random_weights: Outcome) -> None:
    assert re.search(rf"{FP32} +FPS .*RANDOM WEIGHTS", random_weights.text)


def test_random_weights_are_marked_in_the_benchmark_file(random_weights: Outcome, place: Workplace) -> None:
    (row,) = json.loads((place.root / "random.json").read_text())["benchmarks"]
    assert row["extra_info"]["weights"] == "random-seed-20260101"


def test_random_weights_need_the_model_to_be_named(accepted: Workplace) -> None:
    outcome = run(accepted, "-m", "performance", *ONE, checkpoints=accepted.root / "nowhere")
    assert (outcome.code, outcome.part(FP32, "performance")["status"]) == (5, "MISSING")


# --- several processes


@pytest.fixture(scope="module")
def two_workers(accepted: Workplace) -> Outcome:
    junit = f"--junitxml={accepted.root / 'two.xml'}"
    return run(accepted, "-m", "accuracy", "-n", "2", "-v", junit, cache_dir=accepted.root / "fresh-cache")


def test_two_workers_find_what_one_process_finds(two_workers: Outcome, accuracy_again: Outcome) -> None:
    def figures(outcome: Outcome) -> dict[str, Any]:
        parts = {cell: dict(outcome.part(cell, "accuracy")) for cell in (FP32, FP16)}
        return {cell: part | {"seconds": None} for cell, part in parts.items()}

    assert (two_workers.code, figures(two_workers)) == (0, figures(accuracy_again))


def test_two_workers_report_in_the_order_of_one_process(two_workers: Outcome, accuracy_again: Outcome) -> None:
    assert two_workers.table == accuracy_again.table == [FP32, FP16]


def test_two_workers_build_each_engine_once(two_workers: Outcome) -> None:
    assert "engines: 2 built, 0 from the cache" in two_workers.text


def test_one_worker_has_all_tests_of_a_cell(two_workers: Outcome) -> None:
    found = re.findall(r"\[(gw\d)\].* PASSED .*test_map\[(.*)-map_50(?:_95)?\]", two_workers.text)
    assert sorted(cell for _, cell in found) == sorted([FP32, FP16] * 2)
    assert len({cell for _, cell in found}) == len(set(found))


@pytest.mark.slow
def test_two_workers_propose_missing_baselines_too(accepted: Workplace) -> None:
    baselines = edited(accepted, "nothing", lambda content: content.pop("accuracy"))
    outcome = run(accepted, "-m", "accuracy", "-n", "2", baselines=baselines)
    proposal = json.loads((outcome.file.parent / "proposed" / "toy.json").read_text())
    assert (outcome.code, set(proposal["accuracy"])) == (1, {FP32, FP16})


def test_a_run_with_default_options_says_nothing_of_them(tmp_path: Path) -> None:
    cell = ["--model", "pisa-mini", "--engine", "onnxruntime", *ONE, "--engine-file", "README.md"]
    file = tmp_path / "results.json"
    run_pytest("-m", "accuracy", *cell, "--checkpoints", str(tmp_path), "--results", str(file))
    (row,) = json.loads(file.read_text())["cells"]
    assert row["accuracy"]["given"] == {"--engine-file": "README.md"}


# --- history


@pytest.fixture(scope="module")
def remembered(accepted: Workplace) -> list[Outcome]:
    """Two runs with a history, the second on two workers."""
    words = ("--history", str(accepted.root / "history" / "all.jsonl"))
    return [run(accepted, *BOTH, *words), run(accepted, "-m", "accuracy", "-n", "2", *words)]


def test_each_cell_of_each_run_has_a_line_in_the_history(remembered: list[Outcome], accepted: Workplace) -> None:
    lines = [json.loads(line) for line in (accepted.root / "history" / "all.jsonl").read_text().splitlines()]
    found = [
        (row["cell"], row["accuracy"]["map_50_95"], row["performance"] and row["performance"]["fps"]) for row in lines
    ]
    speed = pytest.approx(80.0)
    assert found == [(FP32, 1.0, speed), (FP16, 1.0, speed), (FP32, 1.0, None), (FP16, 1.0, None)]


def test_the_run_says_where_its_history_is(remembered: list[Outcome], accepted: Workplace) -> None:
    assert f"history: {accepted.root / 'history' / 'all.jsonl'}, lines added: 2" in remembered[1].text


def test_a_history_that_cannot_be_written_is_refused_before_anything_is_measured(accepted: Workplace) -> None:
    outcome = run(accepted, *BOTH, "--history", str(accepted.root))
    assert (outcome.code, outcome.results) == (4, {})
    assert "mend it: give a writable path: --history FILE" in outcome.text


def test_without_the_option_no_history_is_written(first: Outcome) -> None:
    assert "history" not in first.text.partition(" detgate ==")[2]


# --- every results file


@pytest.mark.parametrize(
    "name",
    ["first", "accelerator", "performance_again", "worse", "no_engine", "random_weights", "two_workers", "changed"],
)
def test_results_obey_the_published_schema(request: pytest.FixtureRequest, name: str) -> None:
    jsonschema.validate(request.getfixturevalue(name).results, results_schema())


def test_the_folder_of_the_benchmark_file_is_made(tmp_path: Path) -> None:
    file = tmp_path / "not" / "there" / "benchmark.json"
    options = ["--results", str(tmp_path / "results.json"), "--cache-dir", str(tmp_path / "cache")]
    chosen = ["--model", "paa-mini", "--engine", "torch", f"--benchmark-json={file}", "--collect-only", "-q"]
    assert run_pytest("-m", "performance", *chosen, *options).returncode == 0
    assert file.parent.is_dir()


def test_a_required_cell_that_is_deselected_fails(tmp_path: Path) -> None:
    options = ["--results", str(tmp_path / "results.json"), "--model", "pisa,paa", "--engine", "torch"]
    done = run_pytest("-m", "accuracy", "-k", "paa", "--require", "pisa-*", *options)
    assert done.returncode == 1
    assert "required but not run: pisa-fp32-torch" in done.stdout


@pytest.mark.parametrize("option", ["--require", "--model"])
def test_an_empty_pattern_is_refused(option: str) -> None:
    done = run_pytest("-m", "accuracy", option, "")
    assert done.returncode == 4
    assert f"{option} '': wanted a pattern, found none" in done.stderr


def test_options_behind_a_path_reach_pytest_once(tmp_path: Path) -> None:
    words = ["-m", "accuracy", "--data-dir", str(tmp_path), "--collect-only", "-q", "--", "suites/accuracy"]
    command = [sys.executable, "-m", "pytest", *words]
    run = subprocess.run(
        command, cwd=CHECKOUT, env=environment(), check=False, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "suites/accuracy/test_accuracy.py::test_map[paa-fp32-torch-map_50]" in run.stdout
