"""Records that `compare --speed --pairs` keeps: read again, compared two by two, and refused with the reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.judge.sequential import decide, decide_between
from harness.judge.verdict import Status
from harness.measure.turns import Pair
from harness.sides.comparison import SpeedComparison
from harness.sides.kept import load
from suites.selftest.conftest import RECORDS, Said

pytestmark = pytest.mark.selftest

CELL = "pisa-mini-fp32-onnxruntime"
FACTS: dict[str, Any] = {
    "label": CELL,
    "cell": CELL,
    "batch": 8,
    "start": "checkpoint",
    "fingerprint": "0123456789ab",
    "device": {"cpu": "EPYC", "threads": "2"},
    "engine_version": "1.32.0",
    "artifacts": {"weights": "a" * 64, "engine": "b" * 64},
    "flags": {},
    "versions": {"onnxruntime": "1.32.0"},
    "precision_ran": "fp32",
    "device_ran": "cpu",
}
NEWER = FACTS | {"engine_version": "1.33.0", "versions": {"onnxruntime": "1.33.0"}}
ACCURACY = RECORDS / CELL

Edit = Callable[[dict[str, Any]], object]


def measured(slow_down: float) -> SpeedComparison:
    """Six pairs around a slow-down, a hundredth apart."""
    pairs = tuple(
        Pair(bool(turn % 2), (1.0, 1.0), (1 + slow_down + shift,) * 2)
        for turn, shift in enumerate((-0.01, 0.01, -0.005, 0.005, 0.0, 0.0))
    )
    return SpeedComparison(FACTS, NEWER, pairs, decide([pair.log_ratio for pair in pairs]))


def kept(path: Path, slow_down: float, edit: Edit = lambda _content: None) -> Path:
    content = measured(slow_down).as_json()
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A record whose new side is as fast as the old one."""
    return kept(tmp_path / "first.json", 0.0)


def test_a_kept_comparison_is_read_as_it_was_measured(first: Path) -> None:
    assert load(first) == measured(0.0)


@pytest.mark.parametrize(
    ("slow_down", "verdict", "code"), [(0.1, "REGRESSED", 1), (0.001, "PASS", 0), (-0.1, "IMPROVED", 0)]
)
def test_the_second_new_side_is_judged_by_the_first(
    first: Path, tmp_path: Path, said: Callable[..., Said], slow_down: float, verdict: str, code: int
) -> None:
    found, text = said(first, kept(tmp_path / "second.json", slow_down))
    assert (found, text.startswith(f"{verdict} {CELL} now, {CELL} before: a call takes {slow_down:+.2%} [")) == (
        code,
        True,
    )


def test_both_slow_downs_are_told(tmp_path: Path, said: Callable[..., Said]) -> None:
    records = [kept(tmp_path / f"{slow_down}.json", slow_down) for slow_down in (0.02, 0.1)]
    before, now = said(*records)[1].splitlines()[2:4]
    assert (before.split(" [")[0], now.split(" [")[0]) == ("before: a call takes +2.00%", "now: a call takes +10.00%")


def test_json_holds_the_judgement_and_both_records(first: Path, said: Callable[..., Said]) -> None:
    code, text = said(first, first, "--speed", "--format", "json")
    content = json.loads(text)
    assert (code, content["kind"], content["decision"]["status"]) == (0, "speed records", "PASS")
    assert content["first"] == content["second"] == json.loads(first.read_text())


@pytest.mark.parametrize(
    ("second", "status"),
    [
        ([0.05, 0.06, 0.04, 0.05, 0.05, 0.05], Status.REGRESSED),
        ([0.005, 0.006, 0.004, 0.005, 0.005, 0.005], Status.PASS),
        ([0.2, -0.2, 0.3, -0.3, 0.1, 0.1], Status.INCONCLUSIVE),
        ([0.02] * 6, Status.REGRESSED),
    ],
)
def test_two_comparisons_are_judged_by_the_limits_of_one(second: list[float], status: Status) -> None:
    assert decide_between([0.0] * 6, second).status is status


def test_the_p_of_two_comparisons_is_welchs() -> None:
    from scipy import stats

    one, other = [0.0, 0.01, -0.01, 0.02], [0.03, 0.0, 0.05, 0.01, 0.04, 0.02]
    wanted = stats.ttest_ind(other, one, equal_var=False, alternative="greater").pvalue
    assert decide_between(one, other).p_slower == pytest.approx(wanted)


# --- refused


def of(side: str, **changes: Any) -> Edit:
    return lambda content: content.update({side: content[side] | changes})


def without_times(content: dict[str, Any]) -> None:
    del content["pairs"][0]["new_s"]


def negative_time(content: dict[str, Any]) -> None:
    content["pairs"][0]["new_s"][0] = -1.0


REFUSED: dict[str, tuple[Edit, str, str]] = {
    "another device": (
        of("old", fingerprint="ba9876543210", device={"cpu": "EPYC", "threads": "4"}),
        "first.json and SECOND were measured on different devices (threads: 2 -> 4)",
        "compare on one machine",
    ),
    "another batch": (
        of("old", batch=1),
        "first.json takes 8 images a call, SECOND 1",
        "give both the same: --batch-size N",
    ),
    "another old engine": (
        of("old", artifacts={"engine": "c" * 64}),
        "were measured beside different old engines",
        "beside the same old one",
    ),
    "another old runtime": (of("old", engine_version="1.0"), "beside different old engines", "beside the same old one"),
    "a newer schema": (lambda content: content.update(schema=7), "is of schema 7; detgate", "update detgate"),
    "a verdict of other pairs": (
        lambda content: content["decision"].update(status="REGRESSED"),
        "its 6 pairs say PASS, its decision REGRESSED",
        "copy the whole file again",
    ),
    "pairs that were taken out": (lambda content: content["pairs"].clear(), "key 'pairs'", "measure again"),
    "a pair without times": (without_times, "lacks its times: 'new_s'", "measure again"),
    "a time that is none": (negative_time, "1 times that are none", "measure again"),
    "a side that says too little": (lambda content: content["old"].pop("batch"), "key 'old.batch'", "measure again"),
}


@pytest.mark.parametrize(("edit", "cause", "remedy"), REFUSED.values(), ids=list(REFUSED))
def test_a_second_record_is_refused_with_cause_and_remedy(
    first: Path, tmp_path: Path, said: Callable[..., Said], edit: Edit, cause: str, remedy: str
) -> None:
    second = kept(tmp_path / "second.json", 0.0, edit)
    code, text = said(first, second)
    told, mend = text.replace(str(second), "SECOND").replace(str(first), "first.json").strip().splitlines()
    assert (code, cause in told, remedy in mend) == (4, True, True), text


def test_a_truncated_record_is_refused(first: Path, tmp_path: Path, said: Callable[..., Said]) -> None:
    short = tmp_path / "short.json"
    short.write_text(first.read_text()[:500])
    for pair in ((first, short), (short, first)):
        code, text = said(*pair)
        assert (code, f"{short} is cut short or was edited" in text, "copy the whole file again" in text) == (
            4,
            True,
            True,
        )


@pytest.mark.parametrize("swapped", [False, True])
def test_a_record_of_speed_beside_one_of_accuracy_is_refused(
    first: Path, said: Callable[..., Said], swapped: bool
) -> None:
    code, text = said(*((ACCURACY, first) if swapped else (first, ACCURACY)))
    assert (code, f"{first} is a record of speed; wanted one of an accuracy run" in text) == (4, True)
    assert "mend it: give a record folder" in text
