"""The page of a run: what is read first, every cell, every gap with its remedy; safe, small, for everyone."""

import itertools
import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.judge.verdict import Status
from harness.report import history
from harness.report.page import sources as page_sources
from harness.report.page.charts import stages
from harness.report.page.gather import ROOM_BYTES, Room, gather
from harness.report.page.shown import Page
from harness.report.page.sources import OTHER_RUN, Request, gather_sources
from harness.report.page.words import status_of
from harness.report.page.write import MOST_BYTES, write_page
from harness.report.results import CellResult, StageResult
from suites.selftest.pages import (
    BEFORE,
    HOSTILE,
    WORSE,
    Element,
    Place,
    Tree,
    accuracy,
    cell,
    curves,
    missing,
    record,
    results,
    speed,
)

pytestmark = pytest.mark.selftest

LINKS = ("src", "href", "xlink:href", "action", "srcset", "poster", "data", "background")


def request_of(place: Path, target: Path, against: Path | None = None, data: Path = Path("coco")) -> Request:
    return Request((place,), target, "-o FILE", data, against=against)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def shown(place: Place) -> Page:
    """What the page of the run shows, beside the earlier one."""
    request = request_of(place.results, place.root / "page.html", place.before)
    return gather(gather_sources(request), request.data_dir, Room(ROOM_BYTES))


@pytest.fixture(scope="module")
def text(place: Place) -> str:
    target = place.root / "page.html"
    write_page(request_of(place.results, target, place.before))
    return target.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(text: str) -> Element:
    return Tree(text).root


def one(shown: Page, name: str) -> object:
    return next(view for view in shown.cells if view.id == name)


def page_of(tmp_path: Path, *cells: dict[str, object]) -> Page:
    request = request_of(results(tmp_path / "results.json", *cells), tmp_path / "page.html")
    return gather(gather_sources(request), request.data_dir, Room(ROOM_BYTES))


# --- what is read first


def test_the_first_sentence_says_what_is_wrong(tree: Element) -> None:
    (heading,) = tree.all("h1")
    assert heading.text == "▼ 1 cell got worse, 1 cannot be trusted"
    assert "1 held, 1 improved, 2 missing" in tree.all("header")[0].text


def test_a_red_cell_says_what_it_lost_where_and_whether_to_believe_it(tree: Element) -> None:
    (found,) = tree.where(cls="is-regressed")[1:2]
    assert found.tag == "li"
    for words in (
        WORSE,
        "below the expected 0.4",
        "Only on onnxruntime",
        "red disc the most",
        "95 % interval −0.0104 to",
    ):
        assert words in found.text


def test_an_invalid_cell_is_not_to_be_believed(shown: Page) -> None:
    (_, finding) = shown.findings
    assert (finding.cell, finding.status) == ("paa-mini-fp32-openvino", Status.INVALID)
    assert finding.believe.startswith("Do not believe its figures")


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        ([cell("a", "fp32", "x", accuracy=accuracy("PASS", 0.4, 0.4))], "Nothing got worse"),
        ([missing("a", "fp32", "x", "pip install x")], "Nothing was judged"),
        ([cell("a", "fp32", "x", accuracy=accuracy("REGRESSED", 0.1, 0.4))] * 1, "1 cell got worse"),
        ([cell("a", p, "x", accuracy=accuracy("INVALID")) for p in ("fp32", "fp16")], "2 cells cannot be trusted"),
        ([cell("a", "fp32", "x", accuracy=accuracy("MISSING", 0.4, fails=True))], "1 cell lacks what is required"),
    ],
)
def test_each_outcome_has_its_sentence(tmp_path: Path, cells: list[dict[str, object]], wanted: str) -> None:
    assert page_of(tmp_path, *cells).verdict == wanted


def test_a_failure_that_is_known_is_shown_and_not_counted_as_red(tmp_path: Path) -> None:
    known = accuracy("REGRESSED", 0.1, 0.4, fails=False, known="map_50_95: upstream #7")
    page = page_of(tmp_path, cell("a", "fp32", "x", accuracy=known))
    assert (page.verdict, page.beside) == ("Nothing got worse", "1 known to fail")
    assert page.matrix.rows[0].tiles[0].known


def test_a_file_of_an_older_detgate_is_judged_by_its_statuses(tmp_path: Path) -> None:
    page = page_of(tmp_path, cell("a", "fp32", "x", accuracy=accuracy("REGRESSED", 0.1, 0.4, fails=None)))
    assert page.verdict == "1 cell got worse"


@pytest.mark.parametrize(
    ("parts", "wanted"),
    [
        ({"accuracy": accuracy("PASS", 0.4, 0.4), "performance": speed("RECORDED")}, Status.PASS),
        ({"accuracy": accuracy("IMPROVED", 0.5, 0.4), "performance": speed("RECORDED")}, Status.IMPROVED),
        ({"accuracy": accuracy("MISSING"), "performance": speed("RECORDED")}, Status.RECORDED),
        ({"accuracy": accuracy("IMPROVED", 0.5, 0.4), "performance": speed("INVALID")}, Status.INVALID),
    ],
)
def test_a_cell_shows_what_matters_most(parts: dict[str, object], wanted: Status) -> None:
    assert status_of(CellResult(**cell("a", "fp32", "x", **parts)))[0] is wanted


def test_the_same_bits_as_before_are_not_a_detector_that_got_worse(tmp_path: Path) -> None:
    kept = record(tmp_path / "record", WORSE, 0.5)
    now = cell("pisa-mini", "int8", "onnxruntime", artifacts=kept["artifacts"])
    now |= {"dataset": {**kept["dataset"], "full_val2017": False}}
    now |= {"accuracy": accuracy("REGRESSED", kept["metrics"]["map_50_95"], 0.6)}
    request = request_of(results(tmp_path / "results.json", now), tmp_path / "page.html", tmp_path / "record")
    (finding,) = gather(gather_sources(request), Path("coco"), Room(0)).findings
    assert "to the bit: what is expected has changed" in finding.believe


# --- the matrix, and what is missing


def test_the_matrix_has_every_cell_in_words_and_leads_to_it(tree: Element) -> None:
    tiles = [link for matrix in tree.where(cls="matrix") for link in matrix.all("a")]
    ids = {one.attributes["id"] for one in tree.all() if "id" in one.attributes}
    assert sorted(tile.where(cls="unseen")[0].text for tile in tiles) == [
        "paa-mini-fp32-openvino",
        "paa-mini-fp32-tensorrt",
        "paa-mini-int8-openvino",
        "paa-mini-int8-tensorrt",
        WORSE,
        "pisa-mini-int8-openvino",
    ]
    assert all(tile.attributes["href"].removeprefix("#") in ids for tile in tiles)
    assert all(any(str(status) in tile.text for status in Status) for tile in tiles)


def test_combinations_that_were_not_run_say_so(tree: Element) -> None:
    assert [one.text for one in tree.where(cls="none")] == ["not run"] * 3


def test_an_engine_that_is_not_here_is_one_row_with_its_remedy(shown: Page) -> None:
    (row,) = shown.absent
    assert (row.cells, row.reason, row.remedy) == (
        "*-tensorrt (2 cells)",
        "tensorrt is not installed",
        "pip install tensorrt",
    )


def test_engines_that_are_not_here_stand_last(shown: Page) -> None:
    assert shown.matrix.engines == ("onnxruntime", "openvino", "tensorrt")


def test_the_same_engine_of_two_files_has_two_columns(tmp_path: Path) -> None:
    same = cell("a", "fp32", "x", accuracy=accuracy("PASS", 0.4, 0.4))
    runs = tuple(results(tmp_path / name / "results.json", same) for name in ("one", "two"))
    request = Request(runs, tmp_path / "page.html", "-o FILE", Path("coco"))
    page = gather(gather_sources(request), Path("coco"), Room(0))
    assert [str(tmp_path / name) in engine for name, engine in zip(("one", "two"), page.matrix.engines, strict=True)]
    assert [tile.status for tile in page.matrix.rows[0].tiles] == [Status.PASS] * 2


# --- a cell


def test_figures_stand_beside_what_they_are_held_to_and_what_they_were(shown: Page) -> None:
    row = shown.cells[0].figures[0]
    assert (row.name, row.tolerance, row.interval) == ("mAP@0.5:0.95", "−0.005", "−0.0104 to −0.0003")
    assert float(row.found) - float(row.before) == pytest.approx(float(row.change.replace("−", "-")), abs=1e-9)


def test_charts_have_curves_latency_and_stages(shown: Page) -> None:
    words = [chart.alternative for chart in shown.cells[0].charts]
    assert [alternative.partition(" ")[0] for alternative in words] == ["Precision", "Time", "Error"]
    assert "at IoU 0.5 0.250" in words[0]
    assert "the earlier run's: at IoU 0.5:0.95 0.450" in words[0]
    assert "half took at most 105.00 ms" in words[1]
    assert "int8 graph -> onnxruntime 0.5, tolerance 0.35" in words[2]


def test_classes_that_changed_most_come_first(shown: Page) -> None:
    (table,) = [table for table in shown.cells[0].bars if table.title.startswith("By class")]
    assert next((bar.name, bar.before, bar.change) for bar in table.shown) == ("red disc", "0.450", "−0.350")


def test_sizes_stand_beside_the_earlier_runs(shown: Page) -> None:
    (table,) = [table for table in shown.cells[0].bars if table.title.startswith("By size")]
    assert [bar.name for bar in table.shown] == ["all sizes", "small (under 32² px)", "medium", "large (over 96² px)"]
    assert all(bar.before for bar in table.shown)


def test_images_that_changed_show_ground_truth_and_both_runs(shown: Page) -> None:
    picture = shown.cells[0].pictures[0]
    lost, won = map(int, re.findall(r"(\d+) lost, (\d+) new", picture.caption)[0])
    truth, before, after = picture.panels
    assert {box.kind for box in truth.boxes} == {"truth"}
    assert (sum(box.kind == "lost" for box in before.boxes), sum(box.kind == "won" for box in after.boxes)) == (
        lost,
        won,
    )
    assert lost + won > 0


def test_boxes_lie_within_their_picture(shown: Page) -> None:
    for picture in shown.cells[0].pictures:
        for box in picture.panels[0].boxes:
            assert 0 <= box.x <= box.x + box.width <= picture.width + 1
            assert 0 <= box.y <= box.y + box.height <= picture.height + 1


def test_a_history_gives_courses_and_the_speed_of_the_run_before(tmp_path: Path) -> None:
    runs = [cell("a", "fp32", "x", performance=speed("RECORDED", fps)) for fps in (80.0, 100.0)]
    file = tmp_path / "history.jsonl"
    for run in runs:
        history.append(file, [CellResult(**run)], tmp_path)
    request = Request(
        (results(tmp_path / "results.json", runs[-1]),), tmp_path / "page.html", "-o FILE", Path("coco"), history=file
    )
    (view,) = gather(gather_sources(request), Path("coco"), Room(ROOM_BYTES)).cells
    assert view.charts[-1].alternative == "History of FPS: 2 runs, from 80.00 to 100.00, the last 100.00."
    assert [(row.before, row.change) for row in view.figures] == [("80.00", "+25.0%")]


def test_a_drawing_takes_its_colours_from_the_page_and_its_labels_as_they_are() -> None:
    chart = stages(
        [StageResult(name="<b>$x$ -> y", relative=0.5, tolerance=0.1, map_change=0, matched=1, broken="")], "s"
    )
    assert "&lt;b&gt;$x$ -&gt; y" in chart.svg
    assert "var(--bad)" in chart.svg  # it is beyond its tolerance
    assert not re.search(r"#0[0-9a-f]{5}", chart.svg)
    assert all(name.startswith("s-") for name in re.findall(r' id="([^"]+)"', chart.svg))


def test_a_hop_that_broke_is_told_in_words() -> None:
    hop = StageResult(name="a -> b", relative=None, tolerance=0.1, map_change=None, matched=None, broken="NaN")
    assert stages([hop], "s").alternative == "Error of each stage: a -> b: NaN."


def test_a_cell_names_what_repeats_it_and_what_it_was_made_of(shown: Page) -> None:
    cell_view = shown.cells[0]
    assert ("repeat accuracy", "pytest -m accuracy") in cell_view.commands
    assert any(command.startswith("python -m harness blame") for _, command in cell_view.commands)
    names = [name for name, _ in cell_view.facts]
    assert {"precision that ran", "SHA-256 of engine", "data set", "device's fingerprint"} <= set(names)


def test_red_cells_come_first_and_are_open(tree: Element) -> None:
    cells = [one for one in tree.all("details") if one.attributes.get("class", "").startswith("cell")]
    assert ["open" in one.attributes for one in cells] == [True, True, False, False]
    assert WORSE in cells[0].text


# --- what is not there


def test_images_that_are_not_at_hand_are_told(tmp_path: Path) -> None:
    kept = record(tmp_path / "now" / "record", WORSE, 0.5)
    record(tmp_path / "before", BEFORE, 0.9)
    for folder in (tmp_path / "now" / "record", tmp_path / "before"):
        file = folder / WORSE / "record.json"
        content = json.loads(file.read_text())
        content["dataset"]["name"] = "coco2017"
        file.write_text(json.dumps(content))
    now = cell("pisa-mini", "int8", "onnxruntime", artifacts=kept["artifacts"])
    now |= {"dataset": {**kept["dataset"], "name": "coco2017", "full_val2017": False}}
    now |= {"accuracy": accuracy("PASS", kept["metrics"]["map_50_95"], 0.4)}
    file = results(tmp_path / "now" / "results.json", now)
    request = request_of(file, tmp_path / "page.html", tmp_path / "before", tmp_path / "nowhere")
    (view,) = gather(gather_sources(request), request.data_dir, Room(ROOM_BYTES)).cells
    assert view.pictures == ()
    assert f"COCO not found at {tmp_path / 'nowhere'}" in view.pictures_note


def test_a_record_of_another_run_is_not_shown_as_this_ones(tmp_path: Path) -> None:
    kept = record(tmp_path / "record", WORSE, 0.5)
    now = cell("pisa-mini", "int8", "onnxruntime", artifacts={"engine": "another"})
    now |= {"dataset": {**kept["dataset"], "full_val2017": False}}
    now |= {"accuracy": accuracy("PASS", kept["metrics"]["map_50_95"], 0.4)}
    page = page_of(tmp_path, now)
    assert page.cells[0].notes == (OTHER_RUN,)
    assert page.cells[0].charts == ()


def test_an_earlier_run_is_asked_for_where_there_is_none(tmp_path: Path, place: Place) -> None:
    request = request_of(place.results, tmp_path / "page.html")
    page = gather(gather_sources(request), Path("coco"), Room(ROOM_BYTES))
    assert "--against RUN" in page.cells[0].pictures_note


# --- safe, small, for everyone


def test_nothing_is_asked_of_anyone(tree: Element, text: str) -> None:
    links = [one.attributes[name] for one in tree.all() for name in LINKS if name in one.attributes]
    assert links
    assert [link for link in links if not link.startswith(("#", "data:image/jpeg;base64,"))] == []
    assert not tree.all("script", "link", "iframe", "object", "embed", "img")
    assert not re.search(r"@import|url\((?!#)", text)


def test_what_comes_from_files_is_escaped(tree: Element, text: str) -> None:
    assert "<script" not in text
    assert HOSTILE in tree.text  # the class in the bars, and the reason of the cell that is INVALID


def test_every_picture_says_in_words_what_it_shows(tree: Element) -> None:
    drawings = tree.all("svg")
    assert len(drawings) > 3
    assert all(one.attributes["role"] == "img" and one.attributes["aria-label"] for one in drawings)
    assert all(figure.all("figcaption") for figure in tree.all("figure"))


def test_headings_leave_out_no_level(tree: Element) -> None:
    levels = [int(one.tag[1]) for one in tree.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_table_headings_say_what_they_head(tree: Element) -> None:
    assert all(one.attributes.get("scope") in ("col", "row", "rowgroup") for one in tree.all("th"))


def test_what_scrolls_can_be_reached_and_has_a_name(tree: Element) -> None:
    boxes = tree.where(cls="wide")
    assert boxes
    for box in boxes:
        assert box.attributes["tabindex"] == "0"
        assert box.attributes["role"] == "group"
        assert box.attributes.get("aria-label") or box.attributes["aria-labelledby"]


def test_no_id_stands_twice(tree: Element) -> None:
    ids = [one.attributes["id"] for one in tree.all() if "id" in one.attributes]
    assert len(ids) == len(set(ids))


def test_verdicts_are_words_wherever_they_are_colours(tree: Element) -> None:
    badges = [one for one in tree.all("span") if one.attributes.get("class", "").startswith("badge")]
    assert badges
    assert all(any(str(status) in badge.text for status in Status) for badge in badges)


def luminance(colour: str) -> float:
    """Relative luminance; source: WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_in_light_and_dark(scheme: int) -> None:
    style = (files(page_sources.__package__) / "page.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]))
    tones = [name for name in colours if name.startswith("is-")]
    pairs = [(name, ground) for name in ("ink", "faint", "link", *tones) for ground in ("paper", "panel")]
    pairs += [("on", tone) for tone in tones]
    assert {
        pair: contrast(*(colours[name] for name in pair))
        for pair in pairs
        if contrast(*(colours[n] for n in pair)) < 4.5
    } == {}
    assert len(tones) == len(Status)


def test_many_cells_stay_under_the_limit(tmp_path: Path) -> None:
    names = {f"class number {at}": 0.5 for at in range(80)}
    cells = [
        cell(f"m{at}", precision, "x", accuracy=accuracy("PASS", 0.4, 0.4, per_class=names))
        for at in range(100)
        for precision in ("fp32", "fp16", "int8")
    ]
    size = write_page(request_of(results(tmp_path / "results.json", *cells), tmp_path / "page.html"))
    assert size < MOST_BYTES


def test_where_room_is_short_what_is_large_is_left_out_and_told(place: Place) -> None:
    request = request_of(place.results, place.root / "page.html", place.before)
    view = gather(gather_sources(request), request.data_dir, Room(0)).cells[0]
    assert (view.charts, view.pictures) == ((), ())
    assert "left out" in " ".join(view.notes)
    assert "left out" in view.pictures_note


def test_curves_without_any_ground_truth_are_no_curve(tmp_path: Path) -> None:
    from harness.report.page.tables import precision_at

    absent = curves(0.5)
    absent.precision[:] = -1
    assert precision_at(absent, 0.5) == []


# --- the command


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main(["report", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out + err


def test_the_command_writes_the_page(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, place.results, "-o", tmp_path / "new" / "page.html")
    assert (code, text.startswith(f"wrote {tmp_path / 'new' / 'page.html'}, 0.")) == (0, True)
    assert "got worse" in (tmp_path / "new" / "page.html").read_text()


def test_wrong_input_is_one_line_of_cause_and_one_of_remedy(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newer, broken, empty = (tmp_path / name for name in ("newer.json", "broken.json", "empty.json"))
    newer.write_text(place.results.read_text().replace('"schema": 1', '"schema": 2', 1))
    broken.write_text("{")
    results(empty)
    page = tmp_path / "page.html"
    cases: dict[str, tuple[object, ...]] = {
        "cannot read": (tmp_path / "none.json", "-o", page),
        "schema": (newer, "-o", page),
        "not valid JSON": (broken, "-o", page),
        "nothing to show": (empty, "-o", page),
        "wanted a file that ends in .html": (place.results, "-o", tmp_path / "page.pdf"),
        "cannot write": (place.results, "-o", broken / "page.html"),
        "no run": (place.results, "-o", page, "--against", tmp_path / "none"),
        "-o/--output": (place.results,),
    }
    for words, arguments in cases.items():
        code, text = said(capsys, *arguments)
        assert code == 4, words
        assert words in text
        assert re.search(r"\n  mend it: \S", text), text
        assert len(text.strip().splitlines()) == 2, text
    assert not page.exists()
