"""The proof of the speed gate: pairs are recorded as asked, and each rule says of known pairs what it must."""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.errors import EngineError, ResultsError
from harness.judge.sequential import LOOKS
from harness.judge.verdict import Status
from harness.measure.turns import Pair
from suites.selftest import slow_side
from suites.selftest.conftest import CHECKOUT, Command
from suites.selftest.speeds import pool, rules
from suites.selftest.speeds import record as recorder
from suites.selftest.speeds.__main__ import OUT
from suites.selftest.speeds.pool import Entry, Pool
from suites.selftest.speeds.proof import SEEN, Proof, prove, tables
from suites.selftest.speeds.record import PARTS, PLAN, Stop, measured, order, record
from suites.selftest.speeds.rules import RULES, Item, Rule, after_earlier, in_turns, neighbours, warming
from suites.selftest.speeds.shares import Shares, shares

pytestmark = pytest.mark.selftest

HEADER = {
    "schema": 1,
    "kind": "speed pool",
    "fingerprint": "a",
    "core": 1,
    "note": "idle",
    "artifacts": {"onnx": "c", "engine": "e"},
}
ROUNDS = 14
PART = sum(PLAN.values()) // PARTS


def entry(slow_down: int, new_first: bool, old_s: Sequence[float], new_s: Sequence[float]) -> Entry:
    pair = Pair(new_first, tuple(old_s), tuple(new_s))
    return Entry(slow_down, float(slow_down) if slow_down else None, pair, "2026-01-01T00:00:00+00:00", 5.0, 0.5)


def steady(slow_down: int, new_first: bool) -> Entry:
    """A pair without noise."""
    return entry(slow_down, new_first, [0.02] * ROUNDS, [round(0.02 * (1 + slow_down / 100), 7)] * ROUNDS)


def synthetic(pairs: int, pair_sd: float, slow_downs: Sequence[int] = tuple(PLAN)) -> Pool:
    """Pairs in the recorder's order, of processes that differ by 0.8 % and rounds that differ by 1.5 %."""
    rng = np.random.default_rng(11)

    def noisy(slow_down: int, new_first: bool) -> Entry:
        process = 0.02 * math.exp(rng.normal(0, 0.008))
        slower = (1 + slow_down / 100) * math.exp(rng.normal(0, pair_sd))
        old_s, new_s = (process * times * np.exp(rng.normal(0, 0.015, ROUNDS)) for times in (1, slower))
        return entry(slow_down, new_first, old_s, new_s)

    return Pool((HEADER,), tuple(noisy(*one) for one in itertools.islice(order(slow_downs), pairs)))


# --- recording


def test_each_part_of_the_order_has_every_slow_down_in_the_plans_proportions() -> None:
    part = [slow_down for slow_down, _ in itertools.islice(order(list(PLAN)), PART, 2 * PART)]
    assert {percent: part.count(percent) * PARTS for percent in PLAN} == PLAN


def test_slow_downs_come_in_random_order() -> None:
    parts = [slow_down for slow_down, _ in itertools.islice(order(list(PLAN)), 2 * PART)]
    assert parts[:PART] != parts[PART:] != sorted(parts[PART:])


def test_pairs_of_one_slow_down_begin_in_turn_with_the_old_and_the_new_side() -> None:
    begins = [new_first for slow_down, new_first in itertools.islice(order(list(PLAN)), 5 * PART) if slow_down == 2]
    assert begins == [turn % 2 == 1 for turn in range(len(begins))]


def recorded(path: Path, pairs: int, stop: Callable[[], bool] = lambda: False) -> list[str]:
    """Lines of progress of a recording that goes on where the pool ends."""
    lines: list[str] = []
    done = pool.begin(path, HEADER)
    record(path, steady, order(list(PLAN)), done, pairs, stop, lines.append)
    return lines


def test_a_pool_survives_its_file(tmp_path: Path) -> None:
    recorded(tmp_path / "pool.jsonl", 30)
    expected = [steady(*one) for one in itertools.islice(order(list(PLAN)), 30)]
    assert pool.read(tmp_path / "pool.jsonl") == Pool((HEADER,), tuple(expected))


def test_times_are_kept_to_a_tenth_of_a_microsecond(tmp_path: Path) -> None:
    pool.begin(tmp_path / "pool.jsonl", HEADER)
    pool.append(tmp_path / "pool.jsonl", entry(0, False, [0.02000004] * 2, [0.02000006] * 2))
    (kept,) = pool.read(tmp_path / "pool.jsonl").entries
    assert (kept.pair.old_s[0], kept.pair.new_s[0]) == (0.02, 0.0200001)


def test_progress_says_what_was_found_and_how_long_it_takes_yet(tmp_path: Path) -> None:
    lines = recorded(tmp_path / "pool.jsonl", 3)
    assert lines[-1].startswith("pair 3 of 3: ")
    assert lines[-1].endswith("5.0 s; 0:00:00 left")


@pytest.mark.parametrize("torn", ["", '{"slow_down": 3, "old'])
def test_a_recording_goes_on_where_it_was_killed(tmp_path: Path, torn: str) -> None:
    recorded(tmp_path / "whole.jsonl", 12)
    recorded(tmp_path / "pool.jsonl", 5)
    with (tmp_path / "pool.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(torn)
    assert len(recorded(tmp_path / "pool.jsonl", 12)) == 7
    assert (tmp_path / "pool.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(("field", "value"), [("fingerprint", "b"), ("core", None), ("artifacts", {"onnx": "d"})])
def test_a_pool_that_was_recorded_otherwise_is_not_gone_on_with(tmp_path: Path, field: str, value: Any) -> None:
    recorded(tmp_path / "pool.jsonl", 2)
    with pytest.raises(ResultsError, match=f"recorded otherwise: {field}: .* -> {value}"):
        pool.begin(tmp_path / "pool.jsonl", {**HEADER, field: value})


@pytest.mark.parametrize("change", [{"note": "others at work"}, {"artifacts": {"onnx": "c", "engine": "built again"}}])
def test_another_note_or_build_begins_a_part_that_says_so(tmp_path: Path, change: dict[str, Any]) -> None:
    recorded(tmp_path / "pool.jsonl", 2)
    assert pool.begin(tmp_path / "pool.jsonl", {**HEADER, **change}) == 2
    assert pool.begin(tmp_path / "pool.jsonl", {**HEADER, **change}) == 2
    assert pool.read(tmp_path / "pool.jsonl").headers == (HEADER, {**HEADER, **change})


@pytest.mark.parametrize(
    "text", ["", "{}\n", "[]\n", "no JSON\n", json.dumps({**HEADER, "schema": 2}) + "\n", json.dumps(HEADER) + "\n{}\n"]
)
def test_what_is_no_pool_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "pool.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ResultsError, match=r"pool\.jsonl"):
        pool.begin(tmp_path / "pool.jsonl", HEADER)
    assert (tmp_path / "pool.jsonl").read_text(encoding="utf-8") == text


def test_a_recording_ends_between_pairs(tmp_path: Path) -> None:
    answers = iter([False, False, True])
    recorded(tmp_path / "pool.jsonl", 10, stop=lambda: next(answers))
    assert len(pool.read(tmp_path / "pool.jsonl").entries) == 2


def dying(slow_down: int, new_first: bool) -> Entry:
    raise EngineError("its process ended", "mend it")


def test_a_pair_that_the_stopping_signal_reached_as_well_is_dropped(tmp_path: Path) -> None:
    answers = iter([False, True])
    record(tmp_path / "pool.jsonl", dying, order([0]), 0, 1, lambda: next(answers), print)
    assert not (tmp_path / "pool.jsonl").exists()


def test_an_engine_that_dies_by_itself_ends_the_recording(tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        record(tmp_path / "pool.jsonl", dying, order([0]), 0, 1, lambda: False, print)


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> dict[int, Callable[..., None]]:
    """The handlers that were installed; this process keeps its own."""
    handlers: dict[int, Callable[..., None]] = {}
    monkeypatch.setattr(recorder.signal, "signal", handlers.__setitem__)
    return handlers


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_asks_to_stop(signals: dict[int, Callable[..., None]], name: str) -> None:
    stop = Stop(None)
    assert not stop()
    signals[getattr(recorder.signal, name)]()
    assert stop()


def test_nothing_is_measured_while_the_file_is_there(
    signals: dict[int, Callable[..., None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pause").touch()
    monkeypatch.setattr(recorder.time, "sleep", lambda seconds: (tmp_path / "pause").unlink())
    assert not Stop(tmp_path / "pause")()
    assert not (tmp_path / "pause").exists()


def test_a_signal_ends_a_pause(signals: dict[int, Callable[..., None]], tmp_path: Path) -> None:
    (tmp_path / "pause").touch()
    stop = Stop(tmp_path / "pause")
    signals[recorder.signal.SIGTERM]()
    assert stop()


# --- slow-downs


class Ticking:
    """Clocks of which each reading takes a microsecond."""

    def __init__(self) -> None:
        self.now_ns = 0

    def clock_gettime_ns(self, clock: int) -> int:
        self.now_ns += 1000
        return self.now_ns

    def perf_counter(self) -> float:
        return self.clock_gettime_ns(0) / 1e9


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1])
def test_a_delayed_call_takes_longer_by_the_fraction(fraction: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ticking()
    monkeypatch.setattr(slow_side, "time", clock)

    def call() -> None:
        clock.now_ns += 20_000_000

    delayed = slow_side.Delayed(call, fraction)
    delayed()
    assert clock.now_ns == pytest.approx(20e6 * (1 + fraction), rel=5e-4)
    assert delayed.realised == pytest.approx(fraction, abs=5e-4)


class FakeProcess:
    """A side of 20 ms a call, and the delay where it is the slow one, which leaves its report when it is closed."""

    def __init__(self, slow: bool) -> None:
        self._delay = float(os.environ[slow_side.VARIABLE]) if slow else 0.0
        self._report = Path(os.environ[slow_side.REPORT]) if slow else None

    def warm_up(self, seconds: float) -> float:
        return self.block(1)

    def block(self, calls: int) -> float:
        return calls * 0.02 * (1 + self._delay)

    def close(self) -> None:
        if self._report is not None:
            self._report.write_text(json.dumps(self._delay))


def fake_side() -> Any:
    return SimpleNamespace(start=lambda module="": FakeProcess(module == slow_side.__name__))


@pytest.mark.parametrize("slow_down", [1, 10])
def test_a_pair_keeps_what_its_delay_came_to(slow_down: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (slow_side.VARIABLE, slow_side.REPORT):
        monkeypatch.setenv(name, "")
    found = measured(fake_side(), slow_down, new_first=True)
    assert (found.slow_down, found.pair.new_first) == (slow_down, True)
    assert found.realised == pytest.approx(slow_down)
    assert math.exp(found.pair.log_ratio) == pytest.approx(1 + slow_down / 100)


def test_sides_of_an_identical_pair_run_the_same_module(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (slow_side.VARIABLE, slow_side.REPORT):
        monkeypatch.setenv(name, "")
    found = measured(fake_side(), 0, new_first=False)
    assert (found.realised, found.pair.log_ratio) == (None, 0.0)


@pytest.mark.slow
def test_a_pair_of_a_real_engine_is_recorded(python_command: Command, session_cache: Path, tmp_path: Path) -> None:
    words = ["record", "--pool", tmp_path / "pool.jsonl", "--pairs", "1", "--slow-downs", "10", "--note", "a test"]
    found = python_command("-m", "suites.selftest.speeds", *words, "--cache-dir", session_cache)
    assert found.returncode == 0, found.stderr
    kept = pool.read(tmp_path / "pool.jsonl")
    assert (kept.header["threads"], kept.header["pair_s"], kept.header["note"]) == (1, 3.0, "a test")
    assert [one.slow_down for one in kept.entries] == [10]
    assert kept.entries[0].realised is not None
    assert kept.entries[0].realised > 9  # a busy machine can only lengthen it


# --- what the rules compare


PLACES = [steady(0, False), steady(3, False), steady(0, True), steady(3, True), steady(0, False)]


def marked(entries: Sequence[Entry]) -> list[Entry]:
    """The pairs with their place in the times: old 1, 2, 3 …, new 101, 102, 103 …."""
    return [
        entry(one.slow_down, one.pair.new_first, [place] * ROUNDS, [100 + place] * ROUNDS)
        for place, one in enumerate(entries, start=1)
    ]


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (in_turns, [(2, 102), (4, 104)]),
        (after_earlier, [(1, 102), (3, 104), (2, 104), (1, 104)]),
        (neighbours, [(1, 102), (5, 104)]),
    ],
)
def test_a_rule_compares_the_processes_it_would_have_had(
    items: Callable[..., Any], expected: list[tuple[int, int]]
) -> None:
    assert [(item.old_s[0], item.new_s[0]) for item in items(marked(PLACES), 3)] == expected


@pytest.mark.parametrize(
    ("new_first", "old_at", "new_at"), [(False, [0, 3 / 4], [1 / 4, 1 / 2]), (True, [1 / 4, 1 / 2], [0, 3 / 4])]
)
def test_sides_that_take_turns_change_places(new_first: bool, old_at: list[float], new_at: list[float]) -> None:
    (item,) = in_turns([entry(0, new_first, [1.0] * 2, [1.0] * 2)], 0)
    assert (item.old_at.tolist(), item.new_at.tolist()) == (old_at, new_at)


@pytest.mark.parametrize(("place", "earlier"), [(1, "old_at"), (3, "new_at")])
def test_neighbours_run_one_after_the_other(place: int, earlier: str) -> None:
    item = list(neighbours(PLACES, 3))[place // 2]
    assert getattr(item, earlier).max() < 0.5
    assert max(item.old_at.max(), item.new_at.max()) >= 0.5


# --- what the rules say


def one(old_s: Sequence[float], new_s: Sequence[float], new_first: bool = False) -> Item:
    times = [np.array(seconds, dtype=float) for seconds in (old_s, new_s)]
    at = [np.arange(len(seconds)) / len(seconds) for seconds in times]
    return Item(new_first, *times, *at)


STEPS = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07]


@pytest.mark.parametrize(
    ("rule", "old_s", "new_s", "status"),
    [
        ("pytest-benchmark mean:5%", [1.0, 1.0], [1.04, 1.07], Status.REGRESSED),
        ("pytest-benchmark mean:5%", [1.0, 1.0], [1.04, 1.05], Status.PASS),
        ("pytest-benchmark mean:5%", [1.0] * 8, [1.0] * 7 + [1.5], Status.REGRESSED),
        ("U-test", STEPS, [step + 0.045 for step in STEPS], Status.REGRESSED),
        ("U-test", STEPS, STEPS[::-1], Status.PASS),
        ("U-test", STEPS, [step - 0.045 for step in STEPS], Status.PASS),
        ("U-test", STEPS, [*STEPS[:-1], 9.0], Status.PASS),
        ("Welch t", STEPS, [step + 0.045 for step in STEPS], Status.REGRESSED),
        ("Welch t", STEPS, STEPS[::-1], Status.PASS),
        ("Welch t", STEPS, [step - 0.045 for step in STEPS], Status.PASS),
        ("Welch t", [1.0] * 7 + [1.01], [1.02] * 7 + [1.03], Status.REGRESSED),
    ],
)
def test_a_rule_for_two_processes(rule: str, old_s: list[float], new_s: list[float], status: Status) -> None:
    assert RULES[rule].judge([one(old_s, new_s)]) == (status, 1)


SCATTER = [0.9, 1.1, 0.95, 1.05, 0.98, 1.02, 0.92, 1.08, 0.97, 1.03]


@pytest.mark.parametrize(
    ("rule", "ratios", "status"),
    [
        ("benchmatrix 5%", [1.06] * 10, Status.REGRESSED),
        ("benchmatrix 5%", [1.04] * 10, Status.PASS),
        ("benchmatrix 5%", [0.9] * 10, Status.IMPROVED),
        ("benchmatrix 5%", SCATTER, Status.INCONCLUSIVE),
        ("benchmatrix 5%", [1.06] * 9 + [0.5], Status.REGRESSED),
        ("benchmatrix 1%", [1.02] * 10, Status.REGRESSED),
        ("benchmatrix 1%", [1.005] * 10, Status.PASS),
        ("benchmatrix 1%", [1.005 * value for value in SCATTER], Status.INCONCLUSIVE),
    ],
)
def test_benchmatrix_judges_the_interval_of_ten_pairs(rule: str, ratios: list[float], status: Status) -> None:
    assert RULES[rule].judge([one([1.0], [ratio]) for ratio in ratios]) == (status, 10)


@pytest.mark.parametrize(("slow_down", "judged"), [(0, (Status.PASS, LOOKS[0])), (2, (Status.REGRESSED, LOOKS[0]))])
def test_our_rule_looks_at_the_pairs_in_turn(slow_down: int, judged: tuple[Status, int]) -> None:
    items = list(in_turns([steady(slow_down, turn % 2 == 1) for turn in range(24)], slow_down))
    assert RULES["detgate"].judge(items) == judged


def test_our_rule_takes_all_pairs_where_they_scatter() -> None:
    items = [one([1.0] * 2, [1 + (-1) ** turn * 0.2] * 2) for turn in range(24)]
    assert RULES["detgate"].judge(items) == (Status.INCONCLUSIVE, 24)


@pytest.mark.parametrize("rule", RULES)
def test_too_few_pairs_are_no_verdict(rule: str) -> None:
    assert RULES[rule].judge([])[0] is None


# --- a machine that gets warm


@pytest.mark.parametrize("rule", ["detgate", "benchmatrix 1%"])
def test_a_warming_machine_does_not_fool_rules_that_change_the_order(rule: str) -> None:
    items = list(RULES[rule].items([steady(0, turn % 2 == 1) for turn in range(30)], 0))
    assert warming(RULES[rule]).judge(items[: RULES[rule].most])[0] is Status.PASS


@pytest.mark.parametrize("rule", ["U-test", "Welch t"])
def test_a_warming_machine_fools_rules_that_run_old_before_new(rule: str) -> None:
    items = list(RULES[rule].items([steady(0, turn % 2 == 1) for turn in range(2)], 0))
    assert warming(RULES[rule]).judge(items)[0] is Status.REGRESSED


def test_the_ramp_rises_over_the_fewest_pairs_and_stays() -> None:
    seen: list[float] = []

    def judge(items: Sequence[Item]) -> rules.Judged:
        seen.extend(float(item.old_s[0]) for item in items)
        return None, 0

    warming(Rule("", in_turns, judge, fewest=3)).judge([one([1.0], [1.0])] * 5)
    assert seen == pytest.approx([1.0, 1.01, 1.02, 1.03, 1.03])


# --- shares


def test_comparisons_are_contiguous_first_and_then_resampled() -> None:
    found = shares(RULES["detgate"], [steady(0, turn % 2 == 1) for turn in range(27)], 0, comparisons=10)
    assert (found.comparisons, found.contiguous, found.passed, found.mean_pairs) == (10, 4, 10, 6.0)


def test_resampled_comparisons_keep_the_order_of_the_sides() -> None:
    drawn: list[list[bool]] = []

    def judge(items: Sequence[Item]) -> rules.Judged:
        drawn.append([item.new_first for item in items])
        return (Status.PASS, 4) if len(drawn) > 1 else (None, 0)

    shares(Rule("", in_turns, judge, most=4), [steady(0, turn % 2 == 1) for turn in range(9)], 0, comparisons=3)
    assert drawn[1:] == [[False, True, False, True]] * 3


def test_contiguous_regressions_are_counted_by_themselves() -> None:
    entries = [steady(3, turn % 2 == 1) for turn in range(24)]
    found = shares(RULES["detgate"], entries, 3, comparisons=20)
    assert (found.regressed, found.contiguous, found.contiguous_regressed) == (20, 4, 4)


@pytest.mark.parametrize("count", [0, 23])
def test_a_slow_down_with_too_few_pairs_is_refused(count: int) -> None:
    with pytest.raises(ResultsError, match=f"wanted at least 24 pairs of a slow-down of 0 %, found {count}"):
        shares(RULES["detgate"], [steady(0, turn % 2 == 1) for turn in range(count)], 0)


def said(regressed: int, mean_pairs: float = 6.0, comparisons: int = 1000) -> Shares:
    return Shares(comparisons, regressed, comparisons - regressed, 0, mean_pairs, 0, 0, 0)


@pytest.mark.parametrize(
    ("regressed", "pairs", "bound"), [(0, 360, 1 - 0.05 ** (1 / 60)), (1000, 360, 1.0), (500, 12, 0.9746794)]
)
def test_the_bound_is_that_of_the_independent_comparisons(regressed: int, pairs: int, bound: float) -> None:
    assert said(regressed).upper_bound(pairs) == pytest.approx(bound)


# --- the proof


@pytest.fixture(scope="module")
def proof() -> Proof:
    """Of synthetic pools with steady pairs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "RESAMPLES", 200)
        return prove(synthetic(12 * PART, 0.008), synthetic(96, 0.008, [0]), print, comparisons=60)


def test_our_rule_sees_slow_downs_of_a_synthetic_pool_and_nothing_else(proof: Proof) -> None:
    seen = {percent: row.regressed_share for percent, row in proof.rules["detgate"].items()}
    assert seen[0] == 0
    assert [percent for percent, share in SEEN.items() if seen[percent] < share] == []
    assert proof.rules["detgate"][0].mean_pairs < 10


@pytest.mark.parametrize("rule", ["U-test", "Welch t"])
def test_tests_on_rounds_cry_wolf_over_a_synthetic_pool(proof: Proof, rule: str) -> None:
    assert proof.rules[rule][0].regressed_share > 0.1


@pytest.mark.parametrize("rule", ["pytest-benchmark mean:5%", "benchmatrix 5%"])
def test_limits_of_five_percent_miss_three_in_a_synthetic_pool(proof: Proof, rule: str) -> None:
    assert proof.rules[rule][3].regressed_share < 0.2


def test_the_record_has_a_row_for_each_rule_and_slow_down(proof: Proof) -> None:
    written = json.loads(json.dumps(proof.as_json()))
    assert set(written["rules"]) == set(RULES)
    for rows in written["rules"].values():
        assert list(rows) == ["0", "1", "2", "3", "5", "10"]
        for row in rows.values():
            assert row["regressed"] + row["passed"] + row["inconclusive"] == row["comparisons"] == 60
    assert written["fingerprint"] == "a"
    assert written["slow_downs"]["5"]["realised_percent"] == 5
    assert written["pair_sd"] == pytest.approx(0.009, abs=0.003)


def test_the_tables_have_every_rule_and_condition(proof: Proof) -> None:
    lines = tables(proof.as_json()).splitlines()
    assert lines[0].endswith("| 10 % | 0 %, warming | 0 %, CPU hog |")
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2 : 2 + len(RULES)]] == list(RULES)


def test_the_documentation_shows_the_tables_of_the_kept_proof() -> None:
    kept = json.loads(OUT.read_text(encoding="utf-8"))
    assert tables(kept) in (CHECKOUT / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert tables(kept).split("\n\n")[0] in (CHECKOUT / "README.md").read_text(encoding="utf-8")


def test_the_kept_proof_meets_every_target_and_says_so() -> None:
    targets = json.loads(OUT.read_text(encoding="utf-8"))["targets"]
    assert [target["wanted"] for target in targets if not target["met"]] == []


@pytest.fixture
def perfect() -> Proof:
    """A proof that meets every target, with nothing to spare."""
    entries = [steady(slow_down, turn % 2 == 1) for slow_down, count in PLAN.items() for turn in range(count)]
    ours = {0: said(10, mean_pairs=10.0)} | {percent: said(round(1000 * share)) for percent, share in SEEN.items()}
    everything = Pool((HEADER,), tuple(entries))
    return Proof(everything, everything, {"detgate": ours}, {"detgate": said(10)}, {"detgate": said(10)})


def missed(proof: Proof) -> list[str]:
    return [f"{target.wanted}; {target.found}" for target in proof.targets() if not target.met]


def test_figures_at_the_limits_meet_every_target(perfect: Proof) -> None:
    assert missed(perfect) == []


@pytest.mark.parametrize("percent", SEEN)
def test_a_slow_down_seen_too_rarely_misses_its_target(perfect: Proof, percent: int) -> None:
    perfect.rules["detgate"][percent] = said(round(1000 * SEEN[percent]) - 1)
    (found,) = missed(perfect)
    assert f"of slow-downs of {percent} % REGRESSED; {SEEN[percent] - 0.001:.1%}" in found


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"ramp": {"detgate": said(11)}}, "warming ramp; 1.1%, under"),
        ({"hog": {"detgate": said(11)}}, "CPU hog; 1.1%, under"),
        ({"hog": None}, "CPU hog; not recorded"),
    ],
)
def test_false_alarms_under_each_condition_miss_a_target(perfect: Proof, changed: dict[str, Any], found: str) -> None:
    (line,) = missed(dataclasses.replace(perfect, **changed))
    assert found in line


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (said(11), "as recorded; 1.1%"),
        (said(0, mean_pairs=10.1), "pairs for identical sides; 10.1"),
        (said(0, comparisons=299), "comparisons of each; 299"),
    ],
)
def test_what_identical_pairs_show_misses_a_target(perfect: Proof, row: Shares, found: str) -> None:
    perfect.rules["detgate"][0] = row
    (line,) = missed(perfect)
    assert found in line


def with_entries(proof: Proof, change: Callable[[int, Entry], Entry | None]) -> Proof:
    changed = (change(place, entry) for place, entry in enumerate(proof.pool.entries))
    return dataclasses.replace(proof, pool=Pool((HEADER,), tuple(one for one in changed if one is not None)))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda place, one: None if place == 0 else one, "recorded; 0 %: 399, 1 %: 150"),
        (lambda place, one: None if place == 400 else one, "recorded; 0 %: 400, 1 %: 149"),
        (
            lambda place, one: dataclasses.replace(one, realised=2.12) if one.slow_down == 2 else one,
            "independent clock; 1 %: 1.00 %, 2 %: 2.12 %",
        ),
        (
            lambda place, one: entry(0, False, [1.0] * 2, [1 + 0.05 * (place % 2)] * 2) if not one.slow_down else one,
            "pair sd of at most 2%; 2.4",
        ),
    ],
)
def test_a_pool_that_is_not_what_was_wanted_misses_a_target(
    perfect: Proof, change: Callable[[int, Entry], Entry | None], found: str
) -> None:
    (line,) = missed(with_entries(perfect, change))
    assert found in line


def test_the_command_says_what_to_record_where_there_is_no_pool(python_command: Command, tmp_path: Path) -> None:
    found = python_command("-m", "suites.selftest.speeds", "judge", "--pool", tmp_path / "none.jsonl")
    assert found.returncode == 4
    assert "record one: python -m suites.selftest.speeds record" in found.stderr
