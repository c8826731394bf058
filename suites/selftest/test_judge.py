"""Every verdict at its boundary, what its message says, and which accepted figures hold for which run."""

import getpass
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from harness.errors import BaselineError, InvalidRun, SpecError
from harness.judge import accuracy, baseline, speed
from harness.judge.accuracy import Expectation, Metric
from harness.judge.baseline import Accuracy, AccuracyKey, Recorded, Speed, Spread
from harness.judge.speed import Context
from harness.judge.verdict import GREEN, Status, Verdict, gravest
from harness.measure.throughput import Throughput, summarise
from harness.model.registry import SHIPPED_BASELINES, ModelSpec, Precision, load_models

pytestmark = pytest.mark.selftest

CELL = "pisa-fp16-tensorrt"
RERUN = "pytest -m accuracy --model pisa"
KEY = AccuracyKey(precision="fp16", dataset="a" * 64, weights="b" * 8)
FIGURES: dict[str, Any] = {
    **KEY.model_dump(),
    "dataset_name": "mini",
    "images": 12,
    "map_50_95": 0.5,
    "map_50": 0.7,
}
SPEED: dict[str, Any] = {
    "cell": CELL,
    "batch": 8,
    "fingerprint": "0123456789ab",
    "device": {"cpu": "EPYC"},
    "fps": 100.0,
}
SPEED_KEY = baseline.SpeedKey(CELL, 8, "0123456789ab")


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    """PISA, published as 0.333 / 0.513 in fp16."""
    return load_models(SHIPPED_BASELINES)["pisa"]


# --- verdict


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("required", [False, True])
def test_which_statuses_fail(status: Status, required: bool) -> None:
    excusable = status in (Status.MISSING, Status.RECORDED)
    fails = required if excusable else status not in (Status.PASS, Status.IMPROVED)
    assert Verdict(CELL, "accuracy", "map_50", status, "").fails(required) is fails


def test_a_blocking_missing_fails_where_nothing_is_required() -> None:
    assert Verdict(CELL, "accuracy", "map_50", Status.MISSING, "", blocking=True).fails(required=False)


def test_green_is_exactly_what_passes() -> None:
    passing = {status for status in Status if not Verdict(CELL, "accuracy", "", status, "").fails(required=False)}
    assert passing - {Status.MISSING} == GREEN


def test_a_message_names_status_cell_check_reason_and_next_command() -> None:
    verdict = Verdict(CELL, "accuracy", "map_50", Status.REGRESSED, "0.1 lower", remedy=RERUN)
    assert verdict.message() == f"REGRESSED {CELL} map_50: 0.1 lower\n  next: {RERUN}"


def test_a_message_without_remedy_is_one_line() -> None:
    assert Verdict(CELL, "accuracy", "map_50", Status.PASS, "0.5").message() == f"PASS {CELL} map_50: 0.5"


def test_a_verdict_survives_json() -> None:
    verdict = Verdict(CELL, "performance", "fps", Status.INVALID, "noise", 1.0, 2.0, 0.05, RERUN, True, True)
    assert Verdict.from_json(json.loads(json.dumps(verdict.as_json()))) == verdict


def test_a_verdict_as_json_holds_plain_types_only() -> None:
    # pytest-xdist refuses subclasses of str.
    data = Verdict(CELL, "performance", "fps", Status.INVALID, "noise", 1.0).as_json()
    assert {type(value) for value in data.values()} <= {str, float, bool, type(None)}


@pytest.mark.parametrize(
    ("statuses", "worst"),
    [
        ([Status.PASS], Status.PASS),
        ([Status.PASS, Status.IMPROVED], Status.IMPROVED),
        ([Status.MISSING, Status.PASS], Status.MISSING),
        ([Status.INVALID, Status.REGRESSED, Status.PASS], Status.REGRESSED),
        ([Status.INCONCLUSIVE, Status.INVALID], Status.INVALID),
        (list(Status), Status.REGRESSED),
    ],
)
def test_a_cell_shows_the_gravest_of_its_checks(statuses: list[Status], worst: Status) -> None:
    assert gravest(statuses) is worst


# --- accuracy


EXPECTED = Expectation(0.5, 0.7, 0.25, "published for igie fp16")


@pytest.mark.parametrize(
    ("figure", "status"),
    [
        (0.2499, Status.REGRESSED),
        (0.25, Status.PASS),
        (0.5, Status.PASS),
        (0.75, Status.PASS),
        (0.7501, Status.IMPROVED),
        (-1.0, Status.REGRESSED),
    ],
)
def test_ap_is_judged_against_the_expectation_less_its_tolerance(figure: float, status: Status) -> None:
    assert accuracy.judge(CELL, "map_50_95", figure, EXPECTED, RERUN).status is status


@pytest.mark.parametrize(("figure", "status"), [(0.331, Status.PASS), (0.33099, Status.REGRESSED)])
def test_decimal_figures_are_not_judged_by_their_binary_rounding(figure: float, status: Status) -> None:
    assert accuracy.judge(CELL, "map_50_95", figure, Expectation(0.333, 0.513, 0.002, ""), RERUN).status is status


@pytest.mark.parametrize(("metric", "wanted"), [("map_50_95", 0.5), ("map_50", 0.7)])
def test_each_metric_has_its_own_expectation(metric: Metric, wanted: float) -> None:
    assert accuracy.judge(CELL, metric, 0.6, EXPECTED, RERUN).expected == wanted


def test_a_regression_says_figure_expectation_source_tolerance_and_gap() -> None:
    verdict = accuracy.judge(CELL, "map_50", 0.4, EXPECTED, RERUN)
    assert verdict.reason == "0.4000, expected 0.7000 (published for igie fp16), tolerance 0.25: 0.3000 lower"
    assert verdict.remedy == RERUN


def test_an_improvement_says_by_how_much_and_asks_for_nothing() -> None:
    verdict = accuracy.judge(CELL, "map_50", 0.98, EXPECTED, RERUN)
    assert (verdict.reason.rpartition(": ")[2], verdict.remedy) == ("0.2800 higher", "")


def test_a_missing_baseline_blocks_and_names_the_accept_command() -> None:
    verdict = accuracy.no_baseline(CELL, "map_50", 0.4, "mini, 12 images", "accept it")
    assert (verdict.status, verdict.blocking, verdict.remedy) == (Status.MISSING, True, "accept it")
    assert verdict.reason.startswith("0.4000, but no baseline is accepted")


@pytest.mark.parametrize(
    ("precision", "wanted"),
    [("fp16", (0.333, 0.513, 0.002)), ("fp32", (0.333, 0.513, 0.002)), ("int8", None)],
)
def test_the_published_row_holds_on_the_full_val2017(
    spec: ModelSpec, precision: Precision, wanted: tuple[float, float, float] | None
) -> None:
    key = KEY.model_copy(update={"precision": precision})
    found = accuracy.expectation(spec, precision, True, key, Recorded(model="pisa"))
    assert (found and (found.map_50_95, found.map_50, found.tolerance)) == wanted


def test_the_published_row_says_which_engine_and_precision_it_is_from(spec: ModelSpec) -> None:
    found = accuracy.expectation(spec, "fp32", True, KEY, Recorded(model="pisa"))
    assert found is not None
    assert found.source == "published for igie fp16"


def test_off_the_full_val2017_only_recorded_figures_hold(spec: ModelSpec) -> None:
    assert accuracy.expectation(spec, "fp16", False, KEY, Recorded(model="pisa")) is None


def recorded_accuracy(**changes: Any) -> Accuracy:
    return Accuracy(**{**FIGURES, **changes}, accepted=baseline.acceptance(CELL, "checked", None))


def test_recorded_figures_hold_with_the_models_tolerance(spec: ModelSpec) -> None:
    recorded = Recorded(model="pisa", accuracy=(recorded_accuracy(precision="int8"),))
    key = KEY.model_copy(update={"precision": "int8"})
    found = accuracy.expectation(spec, "int8", False, key, recorded)
    assert found is not None
    assert (found.map_50_95, found.map_50, found.tolerance) == (0.5, 0.7, spec.tolerance.int8)
    assert re.fullmatch(r"recorded \d{4}-\d{2}-\d{2}", found.source)


@pytest.mark.parametrize("change", [{"precision": "fp32"}, {"dataset": "c" * 64}, {"weights": "c" * 8}])
def test_recorded_figures_hold_for_no_other_precision_data_or_weights(spec: ModelSpec, change: dict[str, str]) -> None:
    recorded = Recorded(model="pisa", accuracy=(recorded_accuracy(),))
    key = KEY.model_copy(update=change)
    assert accuracy.expectation(spec, key.precision, False, key, recorded) is None


def test_a_proposal_lacks_only_its_acceptance() -> None:
    proposal = accuracy.proposal(KEY, "mini", 12, 0.12345678, 0.7)
    missing = set(Accuracy.model_fields) - set(proposal)
    assert (missing, proposal["map_50_95"]) == ({"accepted"}, 0.123457)


@pytest.mark.parametrize(
    ("processed", "found"),
    [
        ([1, 2], "found 2 processed, 1 lost (first 3), 0 doubled or unknown"),
        ([], "found 0 processed, 3 lost (first 1, 2, 3), 0 doubled or unknown"),
        ([1, 2, 3, 3], "found 4 processed, 0 lost, 1 doubled or unknown"),
        ([1, 2, 3, 9], "found 4 processed, 0 lost, 1 doubled or unknown"),
    ],
)
def test_lost_doubled_and_unknown_images_are_named(processed: list[int], found: str) -> None:
    with pytest.raises(InvalidRun, match=re.escape(f"{CELL}: wanted each of 3 images once, {found}")):
        accuracy.require_every_image(CELL, [1, 2, 3], processed)


def test_a_run_on_no_images_is_invalid() -> None:
    with pytest.raises(InvalidRun):
        accuracy.require_every_image(CELL, [], [])


def test_every_image_once_in_any_order_is_right() -> None:
    accuracy.require_every_image(CELL, [1, 2, 3], [3, 1, 2])


# --- speed


CONTEXT = Context(notes=(), rerun=RERUN, accept="accept it")


SPREAD = Spread(processes=10, deviation=0.05)


def accepted_speed(fps: float = 100.0, tolerance: float = 0.125, spread: Spread | None = SPREAD, **more: Any) -> Speed:
    accepted = baseline.acceptance(CELL, "checked", None)
    return Speed(**SPEED | {"fps": fps}, tolerance=tolerance, spread=spread, accepted=accepted, **more)


def measured(fps: float = 100.0, error: float | None = 0.0, noise: tuple[str, ...] = ()) -> Throughput:
    steady = summarise([0.01] * 20, batch=1)
    return replace(steady, fps=fps, batch=8, standard_error_of_median_relative=error, noise=noise)


@pytest.mark.parametrize(
    ("fps", "status"),
    [
        (87.4, Status.REGRESSED),
        (87.5, Status.PASS),
        (100.0, Status.PASS),
        (112.5, Status.PASS),
        (112.6, Status.IMPROVED),
    ],
)
def test_fps_is_judged_against_the_accepted_less_its_tolerance(fps: float, status: Status) -> None:
    assert speed.judge(CELL, measured(fps), accepted_speed(), CONTEXT).status is status


def test_slower_says_figure_expectation_tolerance_and_gap() -> None:
    verdict = speed.judge(CELL, measured(70.0), accepted_speed(), CONTEXT)
    day = accepted_speed().accepted.when[:10]
    assert verdict.reason == f"70.00 FPS, expected 100.00 (accepted {day}), tolerance 12%: 30.0% slower"
    assert verdict.remedy == RERUN


def test_faster_says_by_how_much_and_asks_for_nothing() -> None:
    verdict = speed.judge(CELL, measured(150.0), accepted_speed(), CONTEXT)
    assert (verdict.reason.rpartition(": ")[2], verdict.remedy) == ("50.0% faster", "")


@pytest.mark.parametrize(
    ("error", "noisy"),
    [(0.0, False), (0.125 / 1.96 - 1e-6, False), (0.125 / 1.96 + 1e-6, True), (None, True)],
)
def test_a_median_less_sure_than_half_the_tolerance_is_too_noisy(error: float | None, noisy: bool) -> None:
    assert speed.too_noisy(measured(error=error), 0.25) is noisy


@pytest.mark.parametrize("fps", [10.0, 100.0, 1000.0])
def test_noise_is_invalid_whatever_the_figure(fps: float) -> None:
    verdict = speed.judge(CELL, measured(fps, error=0.1), accepted_speed(), CONTEXT)
    assert (verdict.status, verdict.remedy) == (Status.INVALID, RERUN)
    assert "the median is uncertain by ±19.6%" in verdict.reason


def test_too_few_calls_are_infinitely_uncertain() -> None:
    assert speed.uncertainty(measured(error=None)) == math.inf


def test_speed_without_a_baseline_is_recorded_with_its_noise_and_notes() -> None:
    context = replace(CONTEXT, notes=("RANDOM WEIGHTS: speed only",))
    verdict = speed.record(CELL, measured(noise=("single calls vary by 12.0%",)), context)
    wanted = "no speed accepted on this device at batch 8; single calls vary by 12.0%; RANDOM WEIGHTS: speed only"
    assert verdict.reason == f"100.00 FPS, {wanted}"
    assert (verdict.status, verdict.remedy) == (Status.RECORDED, "accept it")


def test_notes_stand_beside_a_judged_figure_too() -> None:
    verdict = speed.judge(CELL, measured(), accepted_speed(), replace(CONTEXT, notes=("a note",)))
    assert verdict.reason.endswith("; a note")


def device_changed(_device: object) -> list[str]:
    return ["cpu: Z80 -> EPYC"]


@pytest.mark.parametrize(
    ("random", "elsewhere", "wanted"),
    [
        (False, None, ()),
        (True, None, ("RANDOM WEIGHTS: speed only",)),
        (False, accepted_speed(fps=50.0), ("2.00 x the speed accepted on another device (cpu: Z80 -> EPYC)",)),
    ],
)
def test_notes_name_random_weights_and_the_speed_of_another_device(
    random: bool, elsewhere: Speed | None, wanted: tuple[str, ...]
) -> None:
    assert speed.notes(random, elsewhere, measured(), device_changed) == wanted


def test_changed_versions_stand_beside_a_speed() -> None:
    found = speed.notes(False, None, measured(), device_changed, ["openvino: 2026.3 -> 2026.4"])
    assert found == ("versions changed since it was accepted (openvino: 2026.3 -> 2026.4)",)


@pytest.mark.parametrize(
    ("spread", "loosest"),
    [(None, 0.05), (0.001, 0.05), (0.02, 0.06), (0.05, 0.15)],
)
def test_a_speeds_tolerance_is_at_most_5_percent_or_three_times_its_spread(
    spread: float | None, loosest: float
) -> None:
    known = None if spread is None else Spread(processes=10, deviation=spread)
    assert accepted_speed(tolerance=loosest, spread=known).tolerance == loosest
    with pytest.raises(ValidationError, match="tolerance"):
        accepted_speed(tolerance=loosest + 0.001, spread=known)


def test_ten_runs_give_a_spread() -> None:
    assert baseline.spread_of([99.0, 101.0] * 5) == Spread(processes=10, deviation=0.010541)


@pytest.mark.parametrize(
    ("fps", "told"),
    [([100.0] * 9, "at least 10 runs .* found 9"), ([90.0, 110.0] * 5, "varies by 10.5% .* wanted at most 5%")],
)
def test_few_or_scattered_runs_give_no_spread(fps: list[float], told: str) -> None:
    with pytest.raises(BaselineError, match=told):
        baseline.spread_of(fps)


def test_the_same_device_at_another_batch_is_not_compared() -> None:
    assert speed.notes(False, accepted_speed(), measured(), lambda _device: []) == ()


# --- baseline


@pytest.fixture
def baselines(tmp_path: Path) -> Path:
    return tmp_path


def accept(baselines: Path, reason: str = "checked", **changes: Any) -> Accuracy:
    return baseline.accept_accuracy(baselines, "pisa", CELL, {**FIGURES, **changes}, reason)


def accept_fps(baselines: Path, **changes: Any) -> Speed:
    return baseline.accept_speed(baselines, "pisa", {**SPEED, **changes}, 0.01, "checked")


def stored(baselines: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(baseline.recorded_file(baselines, "pisa").read_text())
    return content


def test_a_model_without_a_file_has_no_accepted_figures(baselines: Path) -> None:
    assert baseline.load_recorded(baselines, "pisa") == Recorded(model="pisa")


def test_an_accepted_accuracy_is_found_by_its_key(baselines: Path) -> None:
    entry = accept(baselines)
    assert baseline.load_recorded(baselines, "pisa").find_accuracy(KEY) == entry


def test_an_acceptance_says_who_when_why_and_for_which_cell(baselines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    accepted = accept(baselines, reason=" checked by hand ").accepted
    assert (accepted.by, accepted.reason, accepted.cell, accepted.previous) == ("ada", "checked by hand", CELL, None)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", accepted.when)


@pytest.mark.parametrize("error", [OSError, KeyError])
def test_a_user_without_a_name_is_unknown(
    baselines: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def nobody() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert accept(baselines).accepted.by == "unknown"


@pytest.mark.parametrize("reason", ["", "  \n", "WHY"])
def test_a_figure_is_not_accepted_without_a_reason(baselines: Path, reason: str) -> None:
    with pytest.raises(BaselineError, match="says nothing"):
        accept(baselines, reason=reason)
    assert not baseline.recorded_file(baselines, "pisa").exists()


def test_a_second_acceptance_replaces_the_first_and_keeps_its_figures(baselines: Path) -> None:
    accept(baselines)
    entry = accept(baselines, map_50_95=0.4)
    assert entry.accepted.previous == {"map_50_95": 0.5, "map_50": 0.7}
    assert [row["map_50_95"] for row in stored(baselines)["accuracy"]] == [0.4]


def test_acceptances_for_other_keys_stand_side_by_side(baselines: Path) -> None:
    accept(baselines)
    accept(baselines, precision="int8")
    assert [row["precision"] for row in stored(baselines)["accuracy"]] == ["fp16", "int8"]


def test_accepting_accuracy_leaves_speed_alone(baselines: Path) -> None:
    entry = accept_fps(baselines)
    accept(baselines)
    assert baseline.load_recorded(baselines, "pisa").speed == (entry,)


def test_an_accepted_speed_has_the_default_tolerance(baselines: Path) -> None:
    assert accept_fps(baselines).tolerance == 0.05


def test_an_accepted_speed_replaces_that_of_the_same_batch_and_device_only(baselines: Path) -> None:
    accept_fps(baselines)
    accept_fps(baselines, batch=1, fps=30.0)
    entry = accept_fps(baselines, fps=90.0)
    assert entry.accepted.previous == {"fps": 100.0}
    assert [row["fps"] for row in stored(baselines)["speed"]] == [30.0, 90.0]


@pytest.mark.parametrize(
    "change",
    [
        {"cell": "other-fp16-tensorrt"},
        {"batch": 1},
        {"fingerprint": "ba9876543210"},
        {"options": (("provider", "cuda"),)},
    ],
    ids=str,
)
def test_an_accepted_speed_holds_for_no_other_cell_batch_or_device(baselines: Path, change: dict[str, Any]) -> None:
    accept_fps(baselines)
    recorded = baseline.load_recorded(baselines, "pisa")
    assert recorded.find_speed(SPEED_KEY) is not None
    assert recorded.find_speed(SPEED_KEY._replace(**change)) is None


@pytest.mark.parametrize("uncertainty", [None, 0.026])
def test_a_speed_too_noisy_to_judge_by_is_not_accepted(baselines: Path, uncertainty: float | None) -> None:
    with pytest.raises(BaselineError, match=r"wanted at most ±2\.5%"):
        baseline.accept_speed(baselines, "pisa", SPEED, uncertainty, "checked")
    assert not baseline.recorded_file(baselines, "pisa").exists()


def test_the_speed_of_another_device_is_found_for_information(baselines: Path) -> None:
    entry = accept_fps(baselines)
    recorded = baseline.load_recorded(baselines, "pisa")
    here = SPEED_KEY._replace(fingerprint="ba9876543210")
    found = [recorded.speed_elsewhere(key) for key in (here, SPEED_KEY, here._replace(batch=1))]
    assert found == [entry, None, None]


def test_of_several_other_devices_the_last_accepted_is_found() -> None:
    def entry(name: str, day: int) -> Speed:
        accepted = baseline.acceptance(CELL, "checked", None).model_copy(update={"when": f"2026-01-0{day}T00:00:00Z"})
        return accepted_speed().model_copy(update={"fingerprint": name * 12, "accepted": accepted})

    recorded = Recorded(model="pisa", speed=tuple(entry(name, day) for name, day in (("a", 1), ("b", 3), ("c", 2))))
    found = recorded.speed_elsewhere(SPEED_KEY)
    assert found is not None
    assert found.fingerprint == "b" * 12


@pytest.mark.parametrize("missing", list(FIGURES))
def test_an_incomplete_proposal_is_not_accepted(baselines: Path, missing: str) -> None:
    figures = {name: value for name, value in FIGURES.items() if name != missing}
    with pytest.raises(BaselineError, match=f"the proposal for {CELL} is incomplete: .*{missing}"):
        baseline.accept_accuracy(baselines, "pisa", CELL, figures, "checked")


@pytest.mark.parametrize(
    "change", [{"map_50_95": 1.2}, {"map_50": "high"}, {"images": 0}, {"weights": "XYZ"}, {"surplus": 1}], ids=str
)
def test_a_proposal_with_impossible_figures_is_not_accepted(baselines: Path, change: dict[str, Any]) -> None:
    with pytest.raises(BaselineError, match="incomplete"):
        accept(baselines, **change)


@pytest.mark.parametrize("ap", [0.0, 0.000499])
def test_an_ap_of_zero_is_not_accepted(baselines: Path, ap: float) -> None:
    with pytest.raises(BaselineError, match=r"wanted an AP that is not 0\.000, found 0\.000") as refused:
        accept(baselines, map_50_95=ap)
    assert "--engine torch" in refused.value.remedy
    assert not baseline.recorded_file(baselines, "pisa").exists()


def test_an_ap_that_is_just_more_than_zero_is_accepted(baselines: Path) -> None:
    assert accept(baselines, map_50_95=0.0005).map_50_95 == 0.0005


def test_a_baseline_that_cannot_be_written_is_an_error(baselines: Path) -> None:
    (baselines / "recorded").write_text("a file where the folder should be")
    with pytest.raises(BaselineError, match=r"cannot write .*pisa\.json"):
        accept(baselines)


def double(content: dict[str, Any]) -> None:
    content["accuracy"] *= 2


def double_speed(content: dict[str, Any]) -> None:
    content["speed"] *= 2


def unknown_key(content: dict[str, Any]) -> None:
    content["comment"] = "edited by hand"


def no_reason(content: dict[str, Any]) -> None:
    content["accuracy"][0]["accepted"]["reason"] = ""


def looser_speed(content: dict[str, Any]) -> None:
    content["speed"][0]["tolerance"] = 0.1


def far_looser_speed(content: dict[str, Any]) -> None:
    content["speed"][0] |= {"tolerance": 0.3, "spread": {"processes": 10, "deviation": 0.1}}


def few_processes(content: dict[str, Any]) -> None:
    content["speed"][0] |= {"tolerance": 0.12, "spread": {"processes": 3, "deviation": 0.04}}


def found_nothing(content: dict[str, Any]) -> None:
    content["accuracy"][0]["map_50_95"] = 0.0


def wrong_type(content: dict[str, Any]) -> None:
    content["speed"][0]["fps"] = "fast"


def other_schema(content: dict[str, Any]) -> None:
    content["schema"] = 2


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (double, "two entries hold for the same run"),
        (double_speed, "two entries hold for the same run"),
        (unknown_key, "key 'comment': unknown key"),
        (no_reason, "key 'accuracy.0.accepted.reason'"),
        (wrong_type, "key 'speed.0.fps'"),
        (found_nothing, "key 'accuracy.0.map_50_95': Input should be greater than or equal to 0.0005"),
        (looser_speed, "tolerance: wanted at most 5.0% (the spread is not measured), found 10.0%"),
        (far_looser_speed, "key 'speed.0.tolerance': Input should be less than or equal to 0.15"),
        (few_processes, "key 'speed.0.spread.processes': Input should be greater than or equal to 10"),
        (other_schema, "key 'schema'"),
    ],
)
def test_a_damaged_baseline_names_file_key_and_remedy(
    baselines: Path, damage: Callable[[dict[str, Any]], None], named: str
) -> None:
    accept(baselines)
    accept_fps(baselines)
    content = stored(baselines)
    damage(content)
    baseline.recorded_file(baselines, "pisa").write_text(json.dumps(content))
    with pytest.raises(SpecError, match=re.escape(named)) as caught:
        baseline.load_recorded(baselines, "pisa")
    assert caught.value.remedy.startswith("who edited it: restore it from version control")


def test_a_baseline_that_is_not_json_is_an_error(baselines: Path) -> None:
    baseline.recorded_file(baselines, "pisa").parent.mkdir()
    baseline.recorded_file(baselines, "pisa").write_text("{")
    with pytest.raises(SpecError, match="is not valid JSON"):
        baseline.load_recorded(baselines, "pisa")


def test_a_proposal_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = baseline.write_proposal(tmp_path / "proposed", "pisa", {CELL: FIGURES})
    assert baseline.load_proposal(path).accuracy == {CELL: FIGURES}


def test_a_proposal_that_is_not_there_names_the_run_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(BaselineError) as caught:
        baseline.load_proposal(tmp_path / "pisa.json")
    assert "pytest -m accuracy --model MODEL" in caught.value.remedy


@pytest.mark.parametrize("text", ["{", "{}", '{"schema": 9, "model": "pisa", "accuracy": {}}'])
def test_a_file_that_is_no_proposal_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "pisa.json").write_text(text)
    with pytest.raises(BaselineError, match="is not a proposal of this version"):
        baseline.load_proposal(tmp_path / "pisa.json")


def test_no_temporary_file_is_left_beside_a_baseline(baselines: Path) -> None:
    accept(baselines)
    assert [path.name for path in (baselines / "recorded").iterdir()] == ["pisa.json"]


# --- figures that are no figures


def test_a_figure_that_is_no_number_is_invalid(spec: ModelSpec) -> None:
    expected = accuracy.Expectation(0.333, 0.513, 0.002, "published")
    with pytest.raises(InvalidRun, match="map_50 is nan"):
        accuracy.judge(CELL, "map_50", float("nan"), expected, "again")
