"""`python -m harness compare RUN_A RUN_B`: what a person and a script read of it, and how it ends."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.detect.detections import Detections
from harness.judge import record as records
from harness.judge.record import DETECTIONS, RECORD
from harness.measure.compare import Comparison, Difference
from suites.selftest.conftest import CHECKOUT, RECORDS, Said

pytestmark = pytest.mark.selftest

FP32, INT8 = "pisa-mini-fp32-onnxruntime", "pisa-mini-int8-onnxruntime"
WIDTH = 100


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


@pytest.fixture(scope="module", autouse=True)
def resampled_once() -> Iterator[None]:
    """The same two runs are compared over and over here: each interval is computed the first time."""
    known: dict[tuple[str, str, tuple[int, ...]], dict[str, Difference]] = {}
    resample = Comparison._bootstrapped

    def once(comparison: Comparison, categories: list[int]) -> dict[str, Difference]:
        runs = records.sha256_of(comparison.before), records.sha256_of(comparison.after)
        key = (*runs, tuple(categories))
        if key not in known:
            known[key] = resample(comparison, categories)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Comparison, "_bootstrapped", once)
        yield


def written(folder: Path, change: Callable[[Detections], Detections], cell: str = FP32) -> Path:
    """A shipped record with other detections."""
    run = records.load(RECORDS / cell)
    found = change(run.detections)
    folder.mkdir(parents=True)
    found.save(folder / DETECTIONS)
    record = run.record.model_copy(update={"detections": records.sha256_of(found)})
    (folder / RECORD).write_text(record.model_dump_json(by_alias=True))
    return folder


@pytest.fixture(scope="module")
def worse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both cells: fp32 with a raised score threshold, int8 as shipped."""
    run = tmp_path_factory.mktemp("worse")
    written(run / FP32, lambda found: found.above(0.2))
    shutil.copytree(RECORDS / INT8, run / INT8)
    return run


# --- what it says


def test_the_shipped_records_of_fp32_and_int8_are_compared(said: Callable[..., Said]) -> None:
    code, text = said(RECORDS / FP32, RECORDS / INT8)
    assert code == 0
    assert "96 images of mini; judged as: other precision" in text
    assert "  precision: fp32 -> int8" in text


END = [
    f"PASS {FP32} -> {INT8}",
    "  AP     0.4385 -> 0.4331  -0.0054 (95 %: -0.0104 to -0.0003)",
    "         beyond its margin of 0.005, but p < 0.01 is wanted: may be chance",
    "  AP50   0.6657 -> 0.6646  -0.0011 (95 %: -0.0067 to +0.0045)",
    "  boxes  973 -> 1052  +79 (score > 0.3)",
    "  class  0.5849 -> 0.5660  -0.0190 red disc, the most",
]


@pytest.mark.parametrize("columns", [80, 120])
def test_it_ends_in_verdict_and_what_changed_by_how_much(
    said: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert said(RECORDS / FP32, RECORDS / INT8)[1].splitlines()[-len(END) :] == END


def test_the_readme_shows_that_end() -> None:
    assert "\n".join(END) in (CHECKOUT / "README.md").read_text(encoding="utf-8")


def test_what_is_worse_ends_in_the_checks_that_failed(said: Callable[..., Said], worse: Path) -> None:
    code, text = said(RECORDS / FP32, worse / FP32)
    end = text[text.rindex("REGRESSED pisa") :]
    assert code == 1
    assert "  count: boxes by score: 2532 -> 0 from 0 to 0.1" in end


def test_no_line_is_wider_than_the_terminal(said: Callable[..., Said]) -> None:
    assert max(len(line) for line in said(RECORDS / FP32, RECORDS / INT8)[1].splitlines()) <= WIDTH


@pytest.mark.parametrize("count", [0, 2])
def test_as_many_classes_and_images_are_listed_as_asked_for(said: Callable[..., Said], count: int) -> None:
    content = json.loads(said(RECORDS / FP32, RECORDS / INT8, "--images", count, "--format", "json")[1])
    assert [len(content["cells"][0][name]) for name in ("classes", "images")] == [count, count]


def test_classes_and_images_that_changed_most_come_first(said: Callable[..., Said]) -> None:
    (cell,) = json.loads(said(RECORDS / FP32, RECORDS / INT8, "--format", "json")[1])["cells"]
    changes = [abs(one["after"] - one["before"]) for one in cell["classes"]]
    boxes = [one["lost"] + one["won"] for one in cell["images"]]
    assert (changes, boxes) == (sorted(changes, reverse=True), sorted(boxes, reverse=True))
    assert (cell["classes"][0]["name"], cell["images"][0]["file_name"]) == ("red disc", "000000002655.jpg")


def test_json_holds_figures_checks_and_provenance(said: Callable[..., Said], worse: Path) -> None:
    code, text = said(RECORDS, worse, "--format", "json")
    content = json.loads(text)
    cell, same = content["cells"]
    assert (code, cell["id"], cell["status"], same["status"]) == (1, FP32, "REGRESSED", "PASS")
    found = cell["accuracy"]["map_50_95"]
    assert found["interval"][0] < found["change"] == found["after"] - found["before"] < found["interval"][1] < 0
    assert {check["check"]: check["status"] for check in cell["checks"]}["count"] == "REGRESSED"
    assert [check["check"] for check in same["checks"]] == ["identical"]
    assert cell["boxes"] == {"score_above": 0.3, "before": 973, "after": 973}


def test_markdown_is_tables_of_equal_rows(said: Callable[..., Said]) -> None:
    text = said(RECORDS / FP32, RECORDS / INT8, "--format", "markdown")[1]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "| cell | verdict | AP | change | AP50 | change | failed |"
    assert "what made them differs in:\n\n- engine file: " in text
    assert rows[2].startswith(f"| {FP32} -> {INT8} | PASS | 0.4385 -> 0.4331 | -0.0054 (95 %: -0.0104 to -0.0003) |")
    tables = [table.splitlines() for table in text.split("\n\n") if table.startswith("|")]
    assert [len({row.count("|") for row in table}) for table in tables] == [1, 1, 1, 1]


def test_the_same_run_has_the_same_bits(said: Callable[..., Said]) -> None:
    code, text = said(RECORDS, RECORDS)
    assert (code, text.count("made of the same")) == (0, 2)
    assert text.splitlines()[-3:] == [
        f"PASS {FP32}: all 9458 detections have the same bits (AP 0.4385)",
        f"PASS {INT8}: all 9473 detections have the same bits (AP 0.4331)",
        "2 cells: 2 PASS",
    ]


def test_what_is_worse_comes_last(said: Callable[..., Said], worse: Path) -> None:
    text = said(RECORDS, worse)[1]
    assert text.rindex(f"PASS {INT8}") < text.rindex(f"REGRESSED {FP32}: map_50_95, ")
    assert text.endswith("2 cells: 1 PASS, 1 REGRESSED\n")


def test_cells_of_one_run_only_are_named(said: Callable[..., Said], tmp_path: Path) -> None:
    shutil.copytree(RECORDS / FP32, tmp_path / FP32)
    text = said(RECORDS, tmp_path)[1]
    assert f"only in {RECORDS}: {INT8}" in text.replace("\n", " ").replace("  ", " ")


def test_lost_images_are_invalid(said: Callable[..., Said], tmp_path: Path) -> None:
    def lost(found: Detections) -> Detections:
        rest = found.images[:-1]
        kept = np.isin(found.image_id, rest)
        columns = {name: getattr(found, name)[kept] for name in ("image_id", "xywh", "score", "category_id")}
        return replace(found, images=rest, **columns)

    code, text = said(RECORDS / FP32, written(tmp_path / "lost", lost))
    assert (code, text.splitlines()[-1].strip()) == (1, f"integrity: {FP32} lost 1 of 96 images and has 0 unknown ones")


# --- wrong input


def edited(folder: Path, **changes: Any) -> Path:
    content = json.loads((RECORDS / FP32 / RECORD).read_text())
    shutil.copytree(RECORDS / FP32, folder)
    (folder / RECORD).write_text(json.dumps(content | changes))
    return folder


def cut_short(folder: Path) -> Path:
    shutil.copytree(RECORDS / FP32, folder)
    (folder / DETECTIONS).write_bytes((folder / DETECTIONS).read_bytes()[:1000])
    return folder


def without_detections(folder: Path) -> Path:
    shutil.copytree(RECORDS / FP32, folder)
    (folder / DETECTIONS).unlink()
    return folder


OTHER_DATA = {"name": "mini", "images": 96, "sha256": "0" * 64}
COCO = {"name": "coco2017", "images": 5000, "sha256": "0" * 64}
WRONG: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "another data set": (lambda folder: edited(folder, dataset=OTHER_DATA), "wanted the same data", "--data-dir"),
    "a truncated record": (cut_short, "is cut short or of another run", "copy the whole folder again"),
    "a missing file": (without_detections, "cannot read", "make the record again"),
    "a newer schema": (lambda folder: edited(folder, schema=7), "is of schema 7", "update detgate"),
    "no run": (lambda folder: folder, "no run at", "pytest -m accuracy --results FILE"),
    "no record": (lambda folder: folder.parent, "no record in", "pytest -m accuracy --record DIR"),
}


@pytest.mark.parametrize(("make", "cause", "remedy"), WRONG.values(), ids=list(WRONG))
def test_wrong_input_exits_4_with_cause_and_remedy(
    said: Callable[..., Said], tmp_path: Path, make: Callable[[Path], Path], cause: str, remedy: str
) -> None:
    code, text = said(RECORDS / FP32, make(tmp_path / "run"))
    first, last = text.strip().splitlines()
    assert (code, cause in first, remedy in last) == (4, True, True)


def test_runs_without_a_common_cell_exit_4(said: Callable[..., Said], tmp_path: Path) -> None:
    run = edited(tmp_path / "run" / "a", id="paa-mini-fp32-torch").parent
    code, text = said(RECORDS, run)
    assert (code, "no cell in common" in text, "name one cell's folder of each" in text) == (4, True, True)


def test_data_that_changed_since_exits_4(said: Callable[..., Said], tmp_path: Path) -> None:
    one, other = (edited(tmp_path / name, dataset=OTHER_DATA) for name in ("a", "b"))
    code, text = said(one, other)
    assert (code, f"{FP32} was run on mini, 96 images, 000000000000…; found mini" in text) == (4, True)


def test_coco_that_is_not_there_exits_4(said: Callable[..., Said], tmp_path: Path) -> None:
    one, other = (edited(tmp_path / name, dataset=COCO) for name in ("a", "b"))
    code, text = said(one, other, "--data-dir", tmp_path / "coco")
    assert (code, "COCO not found at" in text, "python -m harness fetch coco2017-val" in text) == (4, True, True)


@pytest.mark.parametrize("count", ["-1", "many"])
def test_a_count_that_is_none_exits_4(said: Callable[..., Said], count: str) -> None:
    code, text = said(RECORDS, RECORDS, f"--images={count}")
    assert (code, f"wanted a whole number, found '{count}'" in text) == (4, True)
