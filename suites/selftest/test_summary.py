"""What a CI shows of a run: the Markdown of its page, the annotations of a GitHub job, the properties of JUnit."""

from typing import Any

import pytest

from fixtures.gate import properties
from harness.judge.verdict import Status, Verdict
from harness.report.annotations import annotations, error
from harness.report.grid import code, plain
from harness.report.results import CellResult
from harness.report.summary import OUTCOMES, SHOWN, Lack, Summary, markdown
from suites.selftest.test_table import ACCURACY, PERFORMANCE, cell

pytestmark = pytest.mark.selftest

CELL = "pisa-fp16-tensorrt"
WORSE = Verdict(CELL, "accuracy", "map_50_95", Status.REGRESSED, "0.1, expected 0.3: 0.2 lower", remedy="pytest -m x")
LOST = Verdict(CELL, "accuracy", "map_50", Status.INVALID, "NaN | lost", remedy="see <the> layer")


def page(exit_code: int = 1, cells: tuple[CellResult, ...] = (), **changes: Any) -> str:
    return markdown(Summary(exit_code, cells, **changes))


# --- the page


@pytest.mark.parametrize(("exit_code", "said"), OUTCOMES.items())
def test_the_first_line_says_how_the_run_ended(exit_code: int, said: str) -> None:
    assert page(exit_code).splitlines()[0] == f"## detgate: {said}"


def test_the_first_line_counts_verdicts_the_gravest_first() -> None:
    cells = (cell(accuracy=ACCURACY), cell(accuracy=ACCURACY | {"status": "REGRESSED"}, performance=PERFORMANCE))
    assert page(1, cells, absent={"ixrt": 6}).startswith("## detgate: failed (1 REGRESSED, 6 MISSING, 2 PASS)\n")


def test_what_failed_stands_before_the_cells() -> None:
    text = page(1, (cell(accuracy=ACCURACY),), failing=[WORSE])
    assert text.index("### What failed") < text.index("**REGRESSED**") < text.index("### Cells")


def test_a_failure_names_cell_check_figures_and_the_next_command() -> None:
    wanted = f"- **REGRESSED** `{CELL}` map\\_50\\_95: 0.1, expected 0.3: 0.2 lower<br>next: `pytest -m x`"
    assert wanted in page(failing=[WORSE])


def test_the_gravest_failure_comes_first() -> None:
    text = page(failing=[LOST, WORSE])
    assert text.index("**REGRESSED**") < text.index("**INVALID**")


def test_signs_of_markdown_and_html_in_a_message_are_shown_as_they_are() -> None:
    assert "NaN \\| lost<br>next: see \\<the\\> layer" in page(failing=[LOST])


def test_more_failures_than_a_page_should_hold_are_counted() -> None:
    text = page(failing=[WORSE] * (SHOWN + 3))
    assert text.count("**REGRESSED**") == SHOWN
    assert "… and 3 more" in text


def test_a_green_run_has_no_failures() -> None:
    assert "What failed" not in page(0, (cell(accuracy=ACCURACY),))


def test_the_table_has_a_row_for_each_check_and_one_for_an_engine_that_is_not_here() -> None:
    text = page(0, (cell(accuracy=ACCURACY, performance=PERFORMANCE),), absent={"ixrt": 6})
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[1] for line in lines[2:]] == ["AP / AP50", "FPS", "all"]
    assert len({line.count("|") for line in lines}) == 1


def test_grave_verdicts_are_set_off_in_the_table() -> None:
    text = page(1, (cell(accuracy=ACCURACY | {"status": "INVALID", "known": "map_50: why"}),))
    assert "| **INVALID** (known) |" in text


def test_what_is_missing_is_folded_with_what_mends_it() -> None:
    text = page(0, lacks=[Lack("*-ixrt (6 cells)", "not installed", "pip install ixrt")])
    folded = text[text.index("<details>") : text.index("</details>")]
    assert "- `*-ixrt (6 cells)`: not installed<br>next: `pip install ixrt`" in folded


def test_options_that_change_what_is_judged_and_notes_are_told() -> None:
    text = page(0, (cell(accuracy=ACCURACY | {"given": {"--limit": "4"}}),), notes=["results: a_b.json"])
    assert "judged with --limit 4 (rows: 1)" in text
    assert text.endswith("- results: a\\_b.json\n")


@pytest.mark.parametrize(("text", "shown"), [("a`b", "``a`b``"), ("`a", "`` `a ``"), ("", ""), ("*x*", "`*x*`")])
def test_code_is_fenced_by_more_backticks_than_it_holds(text: str, shown: str) -> None:
    assert code(text) == shown


def test_plain_text_is_one_line() -> None:
    assert plain("a\n b_c") == "a b\\_c"


# --- annotations


def test_a_cell_is_annotated_once_with_the_messages_of_all_its_checks() -> None:
    (line,) = annotations([LOST, WORSE])
    assert line.startswith(f"::error title=REGRESSED {CELL}::INVALID {CELL} map_50: NaN | lost%0A  next: see")
    assert line.endswith("0.2 lower%0A  next: pytest -m x")


def test_what_else_made_a_run_red_is_annotated_too() -> None:
    assert annotations([], ["required but not run: x"]) == ["::error title=detgate::required but not run: x"]


def test_signs_that_would_end_a_title_or_a_line_are_escaped() -> None:
    assert error("a:b,c%\n", "50 %\r\n::warning::x") == "::error title=a%3Ab%2Cc%25%0A::50 %25%0D%0A::warning::x"


# --- properties of JUnit


def test_properties_are_verdict_and_what_ran() -> None:
    verdict = Verdict(CELL, "accuracy", "map_50", Status.PASS, "", figure=0.5, expected=0.4, tolerance=0.002)
    found = dict(properties(verdict, {"precision_ran": "fp32", "batch": 8, "accuracy": {"map_50": 0.5}}))
    assert found == {
        "cell": CELL,
        "kind": "accuracy",
        "check": "map_50",
        "status": "PASS",
        "figure": "0.5",
        "expected": "0.4",
        "tolerance": "0.002",
        "precision_ran": "fp32",
        "batch": "8",
    }
