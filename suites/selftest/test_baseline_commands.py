"""`baseline ratchet | diff`, and `baseline accept --speed --history`: what they print, write and exit with."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main
from harness.environment import collect
from harness.judge import baseline
from harness.judge.baseline import Accuracy, Speed, SpeedKey, load_recorded
from harness.model.registry import load_models
from harness.report import history
from harness.report.results import CellResult

pytestmark = pytest.mark.selftest

MODEL, DATA = "pisa-mini", "f" * 64
TORCH, ORT = f"{MODEL}-fp32-torch", f"{MODEL}-fp32-onnxruntime"
WEIGHTS = load_models()[MODEL].checkpoint.sha256[:8]


def cell(name: str, ap: float = 0.4, fps: float = 100.0, status: str = "PASS", **changes: Any) -> dict[str, Any]:
    """A cell of a results file, both parts with the same verdict."""
    model, precision, engine = name.rsplit("-", 2)
    part = {"status": status, "expected": None, "tolerance": None, "reason": ""}
    return {
        **{"id": name, "model": model, "precision": precision, "engine": engine, "batch": 8},
        "dataset": {"name": "mini", "images": 256, "sha256": DATA, "full_val2017": False},
        "artifacts": {"engine": "cc"},
        "accuracy": part | {"map_50_95": ap, "map_50": 0.6},
        "performance": part | {"fps": fps, "latency_ms": None, "cv": None, "uncertainty": 0.01},
        **changes,
    }


class Place:
    """A baselines directory and the results of a last run."""

    def __init__(self, root: Path, baselines: Path) -> None:
        self.baselines, self.results, self.history = baselines, root / "results.json", root / "history.jsonl"

    def measured(self, *cells: dict[str, Any]) -> None:
        content = {"schema": 1, "environment": collect().as_json(), "cells": cells}
        self.results.write_text(json.dumps(content))

    def accept(self, ap: float = 0.4, fps: float = 100.0) -> None:
        figures = {"precision": "fp32", "dataset": DATA, "weights": WEIGHTS, "dataset_name": "mini", "images": 256}
        figures |= {"map_50_95": ap, "map_50": 0.6}
        baseline.accept_accuracy(self.baselines, MODEL, ORT, figures, "the old runtime")
        environment = collect()
        speed = {"cell": ORT, "batch": 8, "fingerprint": environment.fingerprint, "device": environment.device}
        baseline.accept_speed(self.baselines, MODEL, speed | {"fps": fps}, 0.01, "the old runtime")

    def ran(self, fps: list[float]) -> None:
        """A history of runs of the same engine file."""
        for figure in fps:
            history.append(self.history, [CellResult(**cell(ORT, fps=figure))], self.baselines)

    def run(self, *words: object) -> int:
        action = ["baseline", *map(str, words), "--baselines", str(self.baselines)]
        return main([*action, "--results", str(self.results)])

    @property
    def accuracy(self) -> Accuracy:
        (entry,) = load_recorded(self.baselines, MODEL).accuracy
        return entry

    @property
    def speed(self) -> Speed:
        found = load_recorded(self.baselines, MODEL).find_speed(SpeedKey(ORT, 8, collect().fingerprint))
        assert found is not None
        return found


@pytest.fixture
def place(tmp_path: Path, baselines: Path) -> Place:
    made = Place(tmp_path, baselines)
    made.accept()
    return made


WHY = ("--reason", "the new runtime")


# --- ratchet


def test_what_improved_is_accepted(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.measured(cell(ORT, ap=0.45, status="IMPROVED"))
    assert place.run("ratchet", *WHY) == 0
    assert capsys.readouterr().out == f"{MODEL} fp32 on mini: AP 0.4000 -> 0.4500, AP50 0.6000 -> 0.6000\n"
    assert (place.accuracy.map_50_95, place.accuracy.accepted.reason) == (0.45, "the new runtime")


def test_a_faster_speed_is_accepted(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.measured(cell(ORT, fps=120.0, status="IMPROVED"))
    assert place.run("ratchet", *WHY, "--speed") == 0
    assert capsys.readouterr().out == f"{ORT}: 100.00 -> 120.00 FPS at batch 8, tolerance 5%\n"
    assert (place.speed.fps, place.accuracy.map_50_95) == (120.0, 0.4)


@pytest.mark.parametrize("status", ["PASS", "REGRESSED", "INVALID", "RECORDED", "MISSING", "INCONCLUSIVE"])
@pytest.mark.parametrize("speed", [[], ["--speed"]], ids=["accuracy", "speed"])
def test_nothing_else_is_accepted(
    place: Place, capsys: pytest.CaptureFixture[str], status: str, speed: list[str]
) -> None:
    place.measured(cell(ORT, ap=0.5, fps=200.0, status=status))
    assert place.run("ratchet", *WHY, *speed) == 0
    assert capsys.readouterr().out.startswith("nothing to ratchet: no ")
    assert (place.accuracy.map_50_95, place.speed.fps) == (0.4, 100.0)


def test_a_figure_that_fell_beside_one_that_improved_stays(place: Place) -> None:
    improved = cell(ORT, ap=0.45, status="IMPROVED")
    improved["accuracy"]["map_50"] = 0.599
    place.measured(improved)
    place.run("ratchet", *WHY)
    assert (place.accuracy.map_50_95, place.accuracy.map_50) == (0.45, 0.6)


def test_an_accuracy_rises_to_the_lowest_of_the_engines_that_share_it(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.measured(cell(ORT, ap=0.45, status="IMPROVED"), cell(TORCH, ap=0.43, status="IMPROVED"))
    place.run("ratchet", *WHY)
    wanted = "AP 0.4000 -> 0.4300, AP50 0.6000 -> 0.6000 (the lowest of onnxruntime, torch)"
    assert capsys.readouterr().out == f"{MODEL} fp32 on mini: {wanted}\n"


def test_an_accuracy_stays_where_another_engine_is_worse(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.measured(cell(ORT, ap=0.45, status="IMPROVED"), cell(TORCH, ap=0.3, status="REGRESSED"))
    assert place.run("ratchet", *WHY) == 0
    assert "stays at AP 0.4000, for not all of onnxruntime, torch are better" in capsys.readouterr().out
    assert place.accuracy.accepted.reason == "the old runtime"


def test_only_the_chosen_cells_are_ratcheted(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.measured(cell(ORT, ap=0.45, status="IMPROVED"), cell(TORCH))
    assert place.run("ratchet", "*-torch", *WHY) == 0
    assert "nothing to ratchet" in capsys.readouterr().out


def test_a_published_row_is_not_ratcheted(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    full = {"name": "coco2017", "images": 5000, "sha256": DATA, "full_val2017": True}
    place.measured(cell("pisa-fp16-tensorrt", ap=0.34, status="IMPROVED", dataset=full))
    assert place.run("ratchet", *WHY) == 0
    assert "judged by its published row, which no acceptance changes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["gone-*", *WHY], "'gone-*' matches no cell of"),
        (["--reason", "WHY"], "--reason 'WHY' says nothing"),
        ([], "the following arguments are required: --reason"),
    ],
    ids=["no such cell", "placeholder", "no reason"],
)
def test_a_wrong_ratchet_is_wrong_input(
    place: Place, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    place.measured(cell(ORT))
    assert place.run("ratchet", *words) == 4
    assert told in capsys.readouterr().err


# --- speed with its spread


def test_a_history_gives_the_median_and_the_tolerance_of_its_spread(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.ran([96.0, 98.0, 100.0, 102.0, 104.0] * 2)
    place.measured(cell(ORT, fps=97.0))
    assert place.run("accept", ORT, *WHY, "--speed", "--history", place.history) == 0
    assert "100.00 FPS (median of 10 runs, spread 3.0%) at batch 8, tolerance 8.94%" in capsys.readouterr().out
    assert (place.speed.spread, place.speed.fps) == (baseline.Spread(processes=10, deviation=0.029814), 100.0)


def test_the_tolerance_of_a_small_spread_is_the_default(place: Place) -> None:
    place.ran([100.0, 101.0] * 5)
    place.measured(cell(ORT))
    place.run("accept", ORT, *WHY, "--speed", "--history", place.history)
    assert place.speed.tolerance == 0.05


@pytest.mark.parametrize(
    ("fps", "other", "told"),
    [
        ([100.0] * 9, {}, "of at least 10 runs of this engine file on this device, found 9"),
        ([100.0] * 10, {"artifacts": {"engine": "another"}}, "found 0"),
        ([100.0] * 10, {"batch": 1}, "found 0"),
        ([100.0, 120.0] * 5, {}, "varies by 9.6% from process to process, wanted at most 5%"),
    ],
    ids=["too few", "another engine file", "another batch", "too noisy"],
)
def test_a_spread_that_is_not_known_is_not_accepted(
    place: Place, capsys: pytest.CaptureFixture[str], fps: list[float], other: dict[str, Any], told: str
) -> None:
    place.ran(fps)
    place.measured(cell(ORT, **other))
    assert place.run("accept", ORT, *WHY, "--speed", "--history", place.history) == 4
    assert told in capsys.readouterr().err
    assert place.speed.accepted.reason == "the old runtime"


def test_an_accepted_speed_keeps_its_versions(place: Place) -> None:
    place.measured(cell(ORT))
    place.run("accept", ORT, *WHY, "--speed")
    assert place.speed.versions == collect().versions


def test_a_history_is_for_speed_alone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.run("accept", ORT, *WHY, "--history", place.history) == 4
    assert "--history is for speed alone" in capsys.readouterr().err


# --- diff


def rows(place: Place, capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    place.run("diff", "--format", "json", *words)
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rows"]
    return found


def test_a_row_says_what_was_accepted_found_and_tolerated_and_who_accepted_it(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.measured(cell(ORT, ap=0.41))
    accepted = place.accuracy.accepted
    assert rows(place, capsys)[0] == {
        "name": ORT,
        "check": "AP",
        "accepted": 0.4,
        "found": 0.41,
        "difference": 0.01,
        "tolerance": 0.002,
        "why": f"{accepted.when[:10]} {accepted.by}: the old runtime",
        "differs": True,
    }


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ({}, 0),
        ({"ap": 0.398, "fps": 95.0}, 0),
        ({"ap": 0.3979}, 1),
        ({"ap": 0.4021}, 1),
        ({"fps": 94.9}, 1),
        ({"fps": 105.1}, 1),
    ],
    ids=str,
)
def test_diff_exits_with_1_where_a_figure_is_beyond_its_tolerance(
    place: Place, found: dict[str, float], code: int
) -> None:
    place.measured(cell(ORT, **found))
    assert place.run("diff") == code


def test_the_table_marks_what_differs_and_says_why_it_was_accepted_once(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.measured(cell(ORT, ap=0.45))
    place.run("diff")
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert f"{ORT} AP 0.4000 0.4500 +0.0500 0.002 DIFFERS [1]" in lines
    assert out.count("the old runtime") == 1


def test_markdown_has_a_row_for_each_figure(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.measured(cell(ORT))
    place.run("diff", "--format", "markdown")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["AP", "AP50", "FPS"]


def test_accepted_figures_that_were_not_run_are_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.measured(cell(TORCH))
    place.run("diff")
    assert f"not in the results: {ORT} at batch 8 on {collect().fingerprint}" in capsys.readouterr().out


def test_a_figure_without_an_accepted_one_is_shown_and_does_not_differ(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.measured(cell(TORCH))
    speed = rows(place, capsys)[-1]
    assert (speed["check"], speed["accepted"], speed["found"], speed["differs"]) == ("FPS", None, 100.0, False)


def test_nothing_to_compare_is_wrong_input(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.measured(cell("paa-mini-fp32-torch"))
    assert place.run("diff") == 4
    assert "nothing is accepted in" in capsys.readouterr().err


def test_the_published_row_stands_beside_the_full_val2017(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    full = {"name": "coco2017", "images": 5000, "sha256": DATA, "full_val2017": True}
    place.measured(cell("pisa-fp16-tensorrt", ap=0.333, dataset=full))
    row = rows(place, capsys)[0]
    assert (row["accepted"], row["why"].startswith("published for igie: ")) == (0.333, True)


# --- another directory


@pytest.fixture
def other(place: Place, tmp_path: Path) -> Place:
    """A second directory, with the same figures."""
    copy = tmp_path / "other"
    for path in place.baselines.rglob("*.json"):
        target = copy / path.relative_to(place.baselines)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
    return Place(tmp_path, copy)


def test_the_same_directory_twice_has_no_difference(place: Place, other: Place) -> None:
    assert place.run("diff", "--against", other.baselines) == 0


def test_a_figure_accepted_there_is_found_with_its_reason(
    place: Place, other: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    other.measured(cell(ORT, ap=0.45, status="IMPROVED"))
    other.run("ratchet", *WHY)
    capsys.readouterr()
    row = rows(place, capsys, "--against", other.baselines)[0]
    assert (row["accepted"], row["found"], row["why"].endswith(": the new runtime")) == (0.4, 0.45, True)


def test_a_figure_that_only_one_directory_has_differs(place: Place, other: Place) -> None:
    (other.baselines / "recorded" / f"{MODEL}.json").unlink()
    assert place.run("diff", "--against", other.baselines) == 1
    assert other.run("diff", "--against", place.baselines) == 1


def test_a_looser_tolerance_differs(place: Place, other: Place, capsys: pytest.CaptureFixture[str]) -> None:
    path = other.baselines / "models" / "pisa.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tolerance": {"fp16": 0.004}}))
    assert place.run("diff", "--against", other.baselines) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "pisa fp16 tolerance 0.0020 0.0040 +0.0020 0 DIFFERS –" in lines
