"""The history of figures: a line a cell and run, damaged lines told, and figures compared only where they may be."""

import datetime
import json
import multiprocessing
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.environment import collect
from harness.report import history
from harness.report.course import Course, courses, sparkline
from harness.report.results import CellResult

pytestmark = pytest.mark.selftest

CELL = "pisa-fp16-tensorrt"
HERE, ELSEWHERE = "0123456789ab", "ba9876543210"
DAY = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)


def result(fps: float | None = 100.0, ap: float | None = 0.4, **changes: Any) -> CellResult:
    """A cell as a run leaves it."""
    accuracy = {"map_50_95": ap, "map_50": 0.6, "status": "PASS", "expected": None, "tolerance": None, "reason": ""}
    speed = {"fps": fps, "latency_ms": None, "cv": None, "status": "PASS", "expected": None, "tolerance": None}
    parts = {
        "id": CELL,
        "model": "pisa",
        "precision": "fp16",
        "engine": "tensorrt",
        "batch": 8,
        "start": "checkpoint",
        "dataset": {"name": "mini", "images": 256, "sha256": "f" * 64, "full_val2017": False},
        "artifacts": {"weights": "aa", "onnx": "bb", "engine": "cc"},
        "accuracy": accuracy,
        "performance": speed | {"reason": "", "uncertainty": 0.01},
    }
    return CellResult(**(parts | changes))


def missing(cell: CellResult) -> CellResult:
    """The same, but its engine is not here."""
    part = {"status": "MISSING", "expected": None, "tolerance": None, "reason": ""}
    accuracy = part | {"map_50_95": None, "map_50": None}
    speed = part | {"fps": None, "latency_ms": None, "cv": None}
    return CellResult(**cell.model_dump() | {"accuracy": accuracy, "performance": speed, "batch": None})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl"


def write(file: Path, *runs: dict[str, Any]) -> Path:
    """A line for each run: its figures, and fields of the line that are not as they would be here."""
    lines = []
    for day, run in enumerate(runs):
        history.append(file, [result(run.pop("fps", 100.0), run.pop("ap", 0.4))], file.parent)
        line = json.loads(file.read_text().splitlines()[-1])
        time = (DAY + datetime.timedelta(days=day)).isoformat()
        status = run.pop("status", "PASS")
        line |= {"time": time, "fingerprint": HERE, "device": {"cpu": "EPYC"}} | run
        line["performance"]["status"] = line["accuracy"]["status"] = status
        lines.append(line)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What `python -m harness history` prints."""
    assert main(["history", *map(str, words)]) == 0
    return capsys.readouterr().out


def speeds(file: Path) -> list[Course]:
    return [course for course in courses(history.load(file).entries) if course.figure == "FPS"]


# --- writing


def test_a_line_holds_figures_verdicts_device_versions_and_hashes(file: Path) -> None:
    history.append(file, [result()], file.parent)
    (entry,) = history.load(file).entries
    assert entry.accuracy is not None
    assert entry.performance is not None
    assert (entry.cell, entry.accuracy.map_50_95, entry.performance.fps) == (CELL, 0.4, 100.0)
    assert (entry.fingerprint, entry.versions) == (collect().fingerprint, collect().versions)
    assert entry.artifacts.engine == "cc"


def test_runs_add_to_what_is_there(file: Path) -> None:
    assert [history.append(file, [result(), result()], file.parent) for _ in range(2)] == [2, 2]
    assert len(history.load(file).entries) == 4


def test_a_cell_that_could_not_run_has_no_line(file: Path) -> None:
    assert history.append(file, [missing(result())], file.parent) == 0


def append_often(file: Path) -> None:
    for _ in range(50):
        history.append(file, [result()] * 3, file.parent)


def test_runs_at_the_same_time_do_not_mix_their_lines(file: Path) -> None:
    processes = [multiprocessing.get_context("spawn").Process(target=append_often, args=(file,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = history.load(file)
    assert (len(found.entries), found.skipped) == (300, ())


def test_a_line_that_a_killed_run_left_half_written_spoils_no_other(file: Path) -> None:
    file.write_text('{"schema": 1, "ti')
    history.append(file, [result()], file.parent)
    found = history.load(file)
    assert (len(found.entries), found.skipped) == (1, ("line 1: damaged, not JSON",))


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *names, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_line_names_the_commit_of_the_baselines_and_whether_they_were_changed(tmp_path: Path) -> None:
    (tmp_path / "pisa.json").write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "baselines")
    commit = git(tmp_path, "rev-parse", "HEAD")
    clean = history.commit_of(tmp_path)
    (tmp_path / "pisa.json").write_text("2")
    assert (clean, history.commit_of(tmp_path)) == (commit, f"{commit}-dirty")


def test_baselines_outside_a_repository_have_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert history.commit_of(tmp_path) is None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert history.commit_of(tmp_path) is None


# --- lines that cannot be read


DAMAGE = {
    "cut": ('{"schema": 1, "time', "line 2: damaged, not JSON"),
    "no text": ("\x00\x01", "line 2: damaged, not JSON"),
    "of a newer detgate": ('{"schema": 2}', "line 2: schema 2, of a newer detgate: this one reads 1"),
    "another thing": ("[1, 2]", "line 2: key '(whole file)'"),
    "without a cell": ('{"schema": 1}', "line 2: key 'time': Field required"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_line_that_cannot_be_read_is_skipped_with_its_number_and_reason(
    capsys: pytest.CaptureFixture[str], file: Path, damage: str
) -> None:
    line, told = DAMAGE[damage]
    whole = write(file, {}, {}).read_text().splitlines()
    file.write_text("\n".join([whole[0], line, whole[1]]) + "\n")
    assert main(["history", str(file)]) == 0
    assert f"{file}, lines skipped: 1 ({told}" in capsys.readouterr().err


def test_the_json_names_the_skipped_lines_too(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    file.write_text(write(file, {}).read_text() + "{\n")
    assert json.loads(shown(capsys, file, "--format", "json"))["skipped"] == ["line 2: damaged, not JSON"]


@pytest.mark.parametrize("text", ["", "{\n"], ids=["empty", "damaged"])
def test_a_file_without_a_readable_line_is_wrong_input(
    capsys: pytest.CaptureFixture[str], file: Path, text: str
) -> None:
    file.write_text(text)
    assert main(["history", str(file)]) == 4
    assert "has no line that can be read" in capsys.readouterr().err


def test_a_file_that_is_not_there_names_the_option_that_writes_it(
    capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    assert main(["history", str(file)]) == 4
    assert f"run `pytest --history {file}` first" in capsys.readouterr().err


# --- the course of a figure


def test_the_change_is_that_to_the_run_before(file: Path) -> None:
    (course,) = speeds(write(file, {"fps": 50.0}, {"fps": 100.0}, {"fps": 90.0}))
    assert course.change == pytest.approx(-0.1)


def test_the_change_of_ap_is_absolute(file: Path) -> None:
    course = courses(history.load(write(file, {"ap": 0.4}, {"ap": 0.38})).entries)[0]
    assert (course.figure, course.change) == ("AP", pytest.approx(-0.02))


def test_a_first_run_has_no_change(file: Path) -> None:
    assert speeds(write(file, {}))[0].change is None


@pytest.mark.parametrize(
    "other",
    [{"fingerprint": ELSEWHERE}, {"batch": 1}, {"options": {"threads": "1"}}, {"start": "random weights"}],
    ids=str,
)
def test_fps_of_another_device_batch_option_or_start_are_never_joined(file: Path, other: dict[str, Any]) -> None:
    found = speeds(write(file, {"fps": 100.0}, {"fps": 50.0, **other}, {"fps": 99.0}))
    assert [[point.value for point in course.points] for course in found] == [[100.0, 99.0], [50.0]]


def test_ap_of_other_images_is_never_joined(file: Path) -> None:
    limited = {"name": "mini", "images": 4, "sha256": "e" * 64, "full_val2017": False, "note": ""}
    found = courses(history.load(write(file, {}, {"dataset": limited})).entries)
    assert [course.measured_on for course in found if course.figure == "AP"] == ["256 of mini", "4 of mini"]


def test_ap_of_several_devices_is_one_course(file: Path) -> None:
    found = courses(history.load(write(file, {}, {"fingerprint": ELSEWHERE})).entries)
    assert [len(course.points) for course in found if course.figure == "AP"] == [2]


def test_invalid_figures_are_left_out_and_counted(file: Path) -> None:
    (course,) = speeds(write(file, {}, {"fps": 10.0, "status": "INVALID"}, {}))
    assert ([point.value for point in course.points], course.left_out) == ([100.0, 100.0], 1)


def test_runs_are_in_the_order_of_their_times_not_of_the_file(file: Path) -> None:
    lines = write(file, {"fps": 1.0}, {"fps": 2.0}).read_text().splitlines()
    file.write_text("\n".join(lines[::-1]) + "\n")
    assert [point.value for point in speeds(file)[0].points] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("values", "bars"), [([1.0, 2.0, 3.0], "▁▅█"), ([5.0, 5.0], "▄▄"), ([3.0], "▄"), ([2.0, 1.0], "█▁")]
)
def test_a_sparkline_goes_from_the_lowest_to_the_highest(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars


# --- the command


def test_a_line_shows_figure_change_verdict_runs_range_course_and_device(
    capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    out = shown(capsys, write(file, {"fps": 100.0}, {"fps": 90.0}))
    line = next(line for line in out.splitlines() if line.startswith("  FPS"))
    assert line.split(maxsplit=7) == ["FPS", "90.00", "-10.0%", "PASS", "2", "90..100", "█▁", f"batch 8 on {HERE}"]


def test_another_device_is_marked_with_its_day_and_what_changed(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    out = shown(capsys, write(file, {}, {"fingerprint": ELSEWHERE, "device": {"cpu": "Z80"}}))
    assert f"  2026-11-02: another device, FPS not compared: {ELSEWHERE} (cpu: EPYC -> Z80)\n" in out


def test_last_shortens_each_course(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    write(file, {"fps": 1.0}, {"fps": 2.0}, {"fps": 3.0})
    found = json.loads(shown(capsys, file, "--last", 2, "--format", "json"))["courses"]
    assert [point["value"] for point in found[1]["points"]] == [2.0, 3.0]


def test_markdown_has_a_row_for_each_course(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    rows = shown(capsys, write(file, {}), "--format", "markdown").splitlines()
    assert [row.split(" | ")[:2] for row in rows[2:]] == [[f"| {CELL}", "AP"], [f"| {CELL}", "FPS"]]


def test_cell_chooses_by_pattern(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    write(file, {}, {"cell": "paa-fp16-tensorrt"})
    assert CELL not in shown(capsys, file, "--cell", "paa-*")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--cell", "gone"], f"--cell 'gone' matches nothing; known: {CELL}"),
        (["--last", "0"], "--last 0: wanted at least 1"),
        (["--plot", "course.gif"], "wanted .png or .svg, found '.gif'"),
    ],
)
def test_a_wrong_choice_is_wrong_input(
    capsys: pytest.CaptureFixture[str], file: Path, words: list[str], told: str
) -> None:
    assert main(["history", str(write(file, {})), *words]) == 4
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_courses_are_drawn(capsys: pytest.CaptureFixture[str], file: Path, suffix: str, start: bytes) -> None:
    picture = file.with_suffix(suffix)
    shown(capsys, write(file, {}, {"status": "REGRESSED"}, {"fingerprint": ELSEWHERE}), "--plot", picture)
    assert picture.read_bytes().startswith(start)


def test_each_device_is_a_line_of_its_own_in_the_picture(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    picture = file.with_suffix(".svg")
    shown(capsys, write(file, {}, {"fingerprint": ELSEWHERE}), "--plot", picture)
    drawn = picture.read_text()
    assert [f"<!-- batch 8 on {name} -->" in drawn for name in (HERE, ELSEWHERE)] == [True, True]
