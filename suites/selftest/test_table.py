"""The table at the end of a run: a row for each check of every cell, whole, plain or coloured."""

import re
from collections.abc import Collection, Mapping
from typing import Any

import pytest

from fixtures.gate import absent_engines
from harness.judge.verdict import Status, Verdict
from harness.report.results import CellResult, Record
from harness.report.table import COLOURS, MINIMUM_WIDTH, render

pytestmark = pytest.mark.selftest

ACCURACY: dict[str, Any] = {
    "map_50_95": 0.33333,
    "map_50": 0.5,
    "status": "PASS",
    "expected": {"map_50_95": 0.333, "map_50": 0.513},
    "tolerance": 0.002,
    "reason": "",
}
PERFORMANCE: dict[str, Any] = {
    "fps": 80.0,
    "latency_ms": {"p50": 100.0, "p90": 100.0, "p99": 100.0},
    "cv": 0.0,
    "status": "PASS",
    "expected": 79.5,
    "tolerance": 0.05,
    "reason": "",
}
DATASET: dict[str, Any] = {"name": "coco2017", "images": 5000, "sha256": "f" * 64, "full_val2017": True}
CHECK: dict[str, Any] = {"reason": "", "figure": None, "expected": None, "tolerance": None}
NOTHING: dict[str, Any] = {"status": "MISSING", "expected": None, "tolerance": None, "reason": ""}


def cell(**changes: Any) -> CellResult:
    names = {"id": "pisa-fp16-tensorrt", "model": "pisa", "precision": "fp16", "engine": "tensorrt"}
    ran = {"batch": 32, "precision_ran": "fp16", "device": "cuda", "start": "checkpoint", "dataset": DATASET}
    return CellResult(**{**names, **ran, **changes})


def rows(*cells: CellResult) -> list[str]:
    """The table's lines below its heading, with single spaces."""
    lines = render(cells, width=300, colour=False).strip().splitlines()[2:]
    return [" ".join(line.split()) for line in lines]


def test_an_accuracy_row_has_figures_expectations_tolerance_verdict_and_data() -> None:
    wanted = "pisa-fp16-tensorrt AP / AP50 0.3333 / 0.5000 0.3330 / 0.5130 −0.002 PASS 5000 of coco2017, batch 32,"
    assert rows(cell(accuracy=ACCURACY)) == [f"{wanted} fp16 on cuda"]


def test_a_performance_row_has_fps_expectation_tolerance_and_verdict() -> None:
    wanted = "pisa-fp16-tensorrt FPS 80.00 FPS 79.50 −5% PASS batch 32, fp16 on cuda"
    assert rows(cell(performance=PERFORMANCE)) == [wanted]


@pytest.mark.parametrize(
    ("second", "wanted"),
    [
        ("PASS", "2 held 2 PASS batch 32, fp16 on cuda"),
        ("INVALID", "1 held 2 INVALID padding"),
        ("MISSING", "1 held 1 PASS batch 32, fp16 on cuda"),
    ],
)
def test_a_conformance_row_counts_what_is_held_and_names_what_is_not(second: str, wanted: str) -> None:
    checks = {"finite": CHECK | {"status": "PASS"}, "padding": CHECK | {"status": second}}
    status = "INVALID" if second == "INVALID" else "PASS"
    part = {"status": status, "reason": "", "checks": checks}
    assert rows(cell(conformance=part)) == [f"pisa-fp16-tensorrt conformance {wanted}"]


def test_options_that_change_what_is_judged_are_told_below_the_table() -> None:
    given = {"--limit": "4", "--runxfail": ""}
    one = cell(accuracy=ACCURACY | {"given": given}, performance=PERFORMANCE | {"given": given})
    assert rows(one, cell(accuracy=ACCURACY))[-1] == "judged with --limit 4 --runxfail (rows: 2)"


def test_accuracy_of_all_cells_comes_before_performance() -> None:
    both = cell(accuracy=ACCURACY, performance=PERFORMANCE)
    checks = ["AP / AP50" in row for row in rows(both, both.model_copy(update={"id": "other"}))]
    assert checks == [True, True, False, False]


def test_a_cell_without_figures_still_has_its_rows() -> None:
    parts = {
        "accuracy": {"map_50_95": None, "map_50": None, **NOTHING},
        "performance": {"fps": None, "latency_ms": None, "cv": None, **NOTHING},
    }
    nothing = cell(id="absent", batch=None, dataset=None, **parts)
    assert rows(nothing) == ["absent AP / AP50 – / – – MISSING", "absent FPS – – MISSING"]


def test_a_figure_without_expectation_shows_none() -> None:
    part = ACCURACY | {"status": "MISSING", "expected": None, "tolerance": None}
    assert "0.3333 / 0.5000 – MISSING" in rows(cell(accuracy=part))[0]


@pytest.mark.parametrize("start", ["random weights", "onnx file", "engine file"])
@pytest.mark.parametrize(
    "part", [{"accuracy": ACCURACY}, {"performance": PERFORMANCE}], ids=["accuracy", "performance"]
)
def test_a_start_other_than_the_checkpoint_is_marked(start: str, part: dict[str, Any]) -> None:
    assert rows(cell(start=start, **part))[0].endswith(start.upper())


@pytest.mark.parametrize(
    ("dataset", "marked"),
    [({}, False), ({"full_val2017": False}, True), ({"name": "mini", "full_val2017": False}, False)],
)
def test_coco_that_is_not_the_full_val2017_is_marked(dataset: dict[str, Any], marked: bool) -> None:
    assert ("NOT the full val2017" in rows(cell(accuracy=ACCURACY, dataset=DATASET | dataset))[0]) is marked


@pytest.mark.parametrize("status", Status)
def test_every_status_is_shown_by_name(status: Status) -> None:
    assert f" {status} " in rows(cell(performance=PERFORMANCE | {"status": status}))[0]


def test_every_status_has_a_colour() -> None:
    assert set(COLOURS) == set(Status)


def test_colour_is_used_when_asked_for() -> None:
    assert re.search(r"\x1b\[[\d;]*mPASS", render([cell(performance=PERFORMANCE)], width=80, colour=True))


def test_plain_text_has_no_escape_codes() -> None:
    assert "\x1b" not in render([cell(performance=PERFORMANCE)], width=80, colour=False)


@pytest.mark.parametrize("width", [40, MINIMUM_WIDTH, 300])
def test_ids_are_never_cut_on_a_narrow_terminal(width: int) -> None:
    name = "a-model-with-a-very-long-name-int8-onnxruntime"
    assert name in render([cell(id=name, accuracy=ACCURACY, performance=PERFORMANCE)], width, colour=False)


def test_what_does_not_fit_goes_on_in_the_next_line() -> None:
    marked = cell(id="x" * 60, accuracy=ACCURACY, start="random weights")
    words = render([marked], width=80, colour=False).split()
    assert {"RANDOM", "WEIGHTS"} <= set(words)


# --- engines that are not here


def test_the_cells_of_an_engine_that_is_not_here_are_one_row() -> None:
    lines = render([], width=140, colour=False, absent={"tensorrt": 12, "igie": 8}).strip().splitlines()[2:]
    found = [" ".join(line.split()) for line in lines]
    assert found == ["*-tensorrt (12 cells) all – – MISSING", "*-igie (8 cells) all – – MISSING"]


def test_rows_of_engines_that_are_not_here_come_last() -> None:
    lines = render([cell(performance=PERFORMANCE)], width=140, colour=False, absent={"igie": 8}).strip().splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["pisa-fp16-tensorrt", "*-igie"]


def test_140_columns_hold_every_row() -> None:
    judged = cell(id="pisa-mini-int8-onnxruntime", accuracy=ACCURACY, performance=PERFORMANCE | {"uncertainty": 0.012})
    table = render([judged], width=MINIMUM_WIDTH, colour=False, absent={"tensorrt": 12})
    assert MINIMUM_WIDTH == 140
    assert max(len(line.rstrip()) for line in table.splitlines()) <= MINIMUM_WIDTH
    assert len(table.strip().splitlines()) == 2 + 2 + 1


CELLS = ("pisa-fp32-igie", "pisa-fp16-igie", "paa-fp32-igie")


def verdicts(statuses: Mapping[str, Status]) -> list[Record]:
    return [
        Record({"engine": name.rpartition("-")[2]}, Verdict(name, "accuracy", "needs", status, "why"), {})
        for name, status in statuses.items()
    ]


def told_as_one(statuses: Mapping[str, Status], required: Collection[str] = (), absent: bool = True) -> set[str]:
    """Those of the cells of `igie` that one row tells of."""
    return absent_engines(verdicts(statuses), lambda name: name in required, lambda _: absent).get("igie", set())


ALL_MISSING = dict.fromkeys(CELLS, Status.MISSING)


def test_all_cells_of_an_engine_that_is_not_here_are_told_as_one() -> None:
    assert told_as_one(ALL_MISSING) == set(CELLS)


def test_cells_of_an_engine_that_is_here_keep_their_rows_whatever_else_is_missing() -> None:
    assert not told_as_one(ALL_MISSING, absent=False)


def test_a_required_cell_keeps_its_row() -> None:
    assert told_as_one(ALL_MISSING, required=CELLS[:1]) == set(CELLS[1:])


def test_one_cell_alone_keeps_its_row() -> None:
    assert not told_as_one(ALL_MISSING, required=CELLS[:2])


@pytest.mark.parametrize("status", sorted(set(Status) - {Status.MISSING}))
def test_an_engine_of_which_any_cell_has_another_verdict_keeps_all_rows(status: Status) -> None:
    assert not told_as_one(ALL_MISSING | {CELLS[1]: status})


def test_engines_are_told_apart() -> None:
    records = verdicts(dict.fromkeys([*CELLS, "pisa-fp32-ixrt", "pisa-fp16-ixrt"], Status.MISSING))
    found = absent_engines(records, lambda _: False, lambda engine: engine == "ixrt")
    assert found == {"ixrt": {"pisa-fp32-ixrt", "pisa-fp16-ixrt"}}
