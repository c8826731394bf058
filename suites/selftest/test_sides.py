"""Speed of two sides, measured in turns: what is measured, how it is decided, and what is refused."""

import dataclasses
import json
import math
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import EngineError, EvaluationError, UsageError
from harness.judge.sequential import LOOKS, Decision, decide, sign_flip_p
from harness.judge.verdict import Status
from harness.measure.turns import Pair, take_turns
from harness.model.registry import SHIPPED_BASELINES
from harness.report.speed import render
from harness.sides.arguments import Places, asked
from harness.sides.comparison import SpeedComparison, compare, measure, require_comparable
from harness.sides.process import Prepared, Process, prepare
from suites.selftest import slow_side
from suites.selftest.conftest import Command

pytestmark = pytest.mark.selftest

CELL = "pisa-mini-fp32-onnxruntime"
ONES = (1.0, 1.0)
PAIR_SD = 0.016  # seen on two shared cores


# --- taking turns


class Clocked:
    """A side whose calls take what a function of the common clock says."""

    def __init__(self, clock: list[float], order: list[str], name: str, factor: float, drift: float = 0.0) -> None:
        self._clock, self._order, self._name, self._factor, self._drift = clock, order, name, factor, drift

    def _call(self) -> float:
        seconds = 0.01 * self._factor * (1 + self._drift * self._clock[0])
        self._clock[0] += seconds
        return seconds

    def warm_up(self, seconds: float) -> float:
        return self._call()

    def block(self, calls: int) -> float:
        self._order.append(self._name)
        return sum(self._call() for _ in range(calls))


def turns(factor: float, new_first: bool = False, drift: float = 0.0) -> tuple[Pair, list[str]]:
    clock, order = [0.0], list[str]()
    sides = [Clocked(clock, order, name, times, drift) for name, times in (("old", 1.0), ("new", factor))]
    return take_turns(*sides, new_first), order


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.03, 2.0])
def test_a_pair_tells_how_much_longer_a_call_takes(factor: float) -> None:
    assert turns(factor)[0].log_ratio == pytest.approx(math.log(factor), abs=1e-12)


@pytest.mark.parametrize(("new_first", "beginning"), [(False, "old new new old"), (True, "new old old new")])
def test_the_sides_change_places_from_round_to_round(new_first: bool, beginning: str) -> None:
    assert turns(1.0, new_first)[1][:4] == beginning.split()


def test_a_machine_that_slows_down_all_the_time_makes_neither_side_slower() -> None:
    pair, _ = turns(1.0, drift=0.1)
    assert pair.old_s[-1] > 1.2 * pair.old_s[0]
    assert pair.log_ratio == pytest.approx(0, abs=0.002)


def test_a_pair_has_at_least_ten_rounds_however_long_a_call_takes() -> None:
    assert len(turns(100.0)[0].old_s) >= 10


@pytest.mark.parametrize(
    ("old_s", "new_s"),
    [
        ((), ()),
        (ONES, ONES * 2),
        ((1.0,), (1.0,)),
        ((0.0, 1.0), ONES),
        (ONES, (1.0, math.nan)),
        ((1.0, math.inf), ONES),
    ],
)
def test_a_pair_without_a_time_of_both_sides_in_each_round_is_refused(
    old_s: tuple[float, ...], new_s: tuple[float, ...]
) -> None:
    with pytest.raises(EvaluationError, match="wanted a positive time of both sides"):
        Pair(False, old_s, new_s)


def test_a_pair_survives_its_record() -> None:
    pair, _ = turns(1.02, new_first=True)
    assert Pair.from_json(json.loads(json.dumps(pair.as_json()))) == pair


# --- deciding


def decided(log_ratios: "np.ndarray[Any, Any]") -> Decision:
    """The decision of the first look that has one."""
    return next(d for d in (decide(log_ratios[:count]) for count in LOOKS) if d.status)


def shares(slow_down: float, pair_sd: float, comparisons: int = 400) -> dict[Status, float]:
    rng = np.random.default_rng([int(1e4 * (1 + slow_down)), int(1e4 * pair_sd)])
    pairs = rng.normal(math.log1p(slow_down), pair_sd, (comparisons, LOOKS[-1]))
    found = Counter(decided(row).status or Status.INVALID for row in pairs)
    return {status: found[status] / comparisons for status in Status}


@pytest.mark.parametrize("pair_sd", [0.005, PAIR_SD, 0.02])
def test_equal_sides_are_rarely_called_slower_and_nearly_always_pass(pair_sd: float) -> None:
    found = shares(0.0, pair_sd)
    assert found[Status.REGRESSED] <= 0.01
    assert found[Status.PASS] >= 0.98


@pytest.mark.parametrize(("slow_down", "share"), [(0.02, 0.75), (0.03, 0.98), (0.05, 0.995), (0.10, 1.0)])
def test_a_slow_down_is_seen(slow_down: float, share: float) -> None:
    assert shares(slow_down, PAIR_SD)[Status.REGRESSED] >= share


def test_a_speed_up_is_an_improvement() -> None:
    found = shares(-0.05, PAIR_SD)
    assert found[Status.IMPROVED] >= 0.95
    assert found[Status.IMPROVED] + found[Status.PASS] == 1


def test_a_slow_down_of_half_a_percent_is_none_however_sure_it_is() -> None:
    pairs = 0.005 + 1e-4 * np.sin(np.arange(24))
    assert decided(pairs).p_slower < 1e-6
    assert decided(pairs).status is Status.PASS


def test_pairs_that_scatter_too_much_are_inconclusive_after_the_last_look() -> None:
    pairs = np.tile([0.2, -0.2], 12)
    assert decided(pairs).status is Status.INCONCLUSIVE
    assert decided(pairs).pairs == LOOKS[-1]


@pytest.mark.parametrize("count", [0, 1, 5, 7, 23])
def test_between_the_looks_nothing_is_decided(count: int) -> None:
    assert decide([0.5] * count).status is None


def test_pairs_that_are_all_alike_need_no_more_than_the_first_look() -> None:
    assert decided(np.full(24, 0.02)).status is Status.REGRESSED
    assert decided(np.zeros(24)).status is Status.PASS


@pytest.mark.parametrize(("values", "p"), [([1.0, 1.0, 1.0], 1 / 8), ([-1.0, -1.0], 1.0), ([1.0] * 20, 1 / 20_001)])
def test_the_cross_check_counts_sign_patterns(values: list[float], p: float) -> None:
    assert sign_flip_p(values) == pytest.approx(p)


# --- naming a side


@pytest.fixture
def places(session_cache: Path) -> Places:
    return Places(SHIPPED_BASELINES, Path("checkpoints"), session_cache, None)


def test_a_cell_is_run_by_this_python(places: Places) -> None:
    side = asked(CELL, None, ["onnxruntime.threads=1"], places)
    assert (side.cell, side.python) == (("pisa-mini", "fp32", "onnxruntime"), sys.executable)
    assert side.options == {"threads": "1"}


def test_an_engine_file_is_run_as_the_cell_that_is_named(places: Places, tmp_path: Path) -> None:
    file = tmp_path / "engine.onnx"
    file.touch()
    assert asked(str(file), CELL, [], places).engine_file == file


def test_a_virtual_environment_is_run_by_its_own_python(places: Places, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    assert asked(str(tmp_path), CELL, [], places).python == str(python)


@pytest.mark.parametrize(
    ("side", "of", "options", "cause"),
    [
        ("nothing", None, [], "'nothing' is no cell, engine file or virtual environment"),
        ("pisa-mini-fp64-onnxruntime", None, [], "there is no precision 'fp64', only fp32"),
        ("pisa-mini-fp32-nobody", None, [], "there is no engine 'nobody', only torch"),
        (".", CELL, [], "is no virtual environment"),
        (__file__, None, [], "does not say which cell it runs"),
        (CELL, None, ["openvino.threads=1"], "an option of openvino was given, but this side runs onnxruntime"),
    ],
)
def test_a_side_that_names_nothing_to_run_is_refused(
    side: str, of: str | None, options: list[str], cause: str, places: Places
) -> None:
    with pytest.raises(UsageError, match=cause) as refused:
        asked(side, of, options, places)
    assert refused.value.remedy


def test_sides_on_different_devices_are_refused() -> None:
    old: dict[str, Any] = {"fingerprint": "a", "device": {"cpu": "one"}, "batch": 8}
    with pytest.raises(UsageError, match="cpu: one -> other"):
        require_comparable(old, {**old, "fingerprint": "b", "device": {"cpu": "other"}})


def test_sides_with_different_batches_are_refused() -> None:
    old: dict[str, Any] = {"fingerprint": "a", "device": {}, "batch": 8}
    with pytest.raises(UsageError, match="the old side takes 8 images a call, the new one 4"):
        require_comparable(old, {**old, "batch": 4})


# --- real processes


@pytest.fixture(scope="module")
def side(session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    places = Places(SHIPPED_BASELINES, Path("checkpoints"), session_cache, None)
    return prepare(asked(CELL, None, [], places), tmp_path_factory.mktemp("sides") / "old")


def test_a_side_says_what_ran(side: Prepared) -> None:
    assert side.facts["cell"] == CELL
    assert (side.facts["precision_ran"], side.facts["device_ran"]) == ("fp32", "cpu")
    assert len(side.facts["artifacts"]["engine"]) == 64


@pytest.mark.slow
def test_a_real_engine_that_takes_a_third_longer_is_a_regression(
    side: Prepared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(slow_side.VARIABLE, "0.33")
    lines: list[str] = []
    found = measure(side, side, lines.append, seconds=0.2, module=slow_side.__name__)
    assert found.status is Status.REGRESSED
    assert len(lines) == len(found.pairs) == found.decision.pairs
    found.save(tmp_path / "speed.json")
    record = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert decide([Pair.from_json(pair).log_ratio for pair in record["pairs"]]) == found.decision


def test_a_side_that_dies_is_named_with_its_last_words() -> None:
    with (
        closing(Process([sys.executable, "-c", "raise SystemExit('out of memory')"], "the new engine")) as process,
        pytest.raises(EngineError, match="the new engine: its process ended: out of memory"),
    ):
        process.warm_up(0.1)


def test_a_side_that_cannot_be_built_says_why(places: Places, tmp_path: Path) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"garbage" * 100)
    with pytest.raises(UsageError, match="engine-file"):
        prepare(asked(str(file), CELL, [], places), tmp_path / "old")


def test_a_python_that_does_not_start_is_named(places: Places, tmp_path: Path) -> None:
    nowhere = dataclasses.replace(asked(CELL, None, [], places), python=str(tmp_path / "python"))
    with pytest.raises(UsageError, match="cannot start"):
        prepare(nowhere, tmp_path / "old")


@pytest.mark.slow
def test_a_cell_beside_itself_passes(places: Places) -> None:
    one = asked(CELL, None, [], places)
    found: SpeedComparison = compare(one, one, print)
    assert found.status is Status.PASS


# --- the command


@pytest.mark.slow
def test_the_command_judges_two_cells_and_keeps_every_pair(
    python_command: Command, session_cache: Path, tmp_path: Path
) -> None:
    record = tmp_path / "speed.json"
    words = ["compare", "--speed", "pisa-mini-int8-openvino", CELL, "--seconds", "0.1", "--format", "json"]
    found = python_command("-m", "harness", *words, "--pairs", record, "--cache-dir", session_cache)
    assert found.returncode == 1, found.stderr  # fp32 beside int8 takes more than twice as long
    kept = json.loads(record.read_text(encoding="utf-8"))
    assert json.loads(found.stdout) == kept
    assert kept["decision"]["status"] == "REGRESSED"
    assert len(kept["pairs"]) == kept["decision"]["pairs"] in LOOKS
    assert [pair["new_first"] for pair in kept["pairs"][:4]] == [False, True, False, True]


def test_the_lines_of_a_comparison_name_verdict_interval_and_what_differs(side: Prepared) -> None:
    other = dataclasses.replace(side, facts={**side.facts, "versions": {"onnxruntime": "1.0"}})
    pair = Pair(False, (1.0,) * 10, (1.05,) * 10)
    old, new = ({"label": one.asked.label, **one.facts} for one in (side, other))
    found = SpeedComparison(old, new, (pair,) * 6, decide([pair.log_ratio] * 6))
    lines = render(found, "table").splitlines()
    assert lines[0].startswith(f"REGRESSED {CELL} beside {CELL}: a call takes +5.00% [+5.00%, +5.00%] after 6 pairs")
    assert any(line.startswith("versions: ") and "-> 1.0" in line for line in lines)


@pytest.mark.parametrize("words", [[CELL, "nothing"], [CELL, CELL, "--old-option", "x"]])
def test_the_command_refuses_what_names_no_side(words: list[str], harness_command: Command) -> None:
    found = harness_command("compare", "--speed", *words)
    assert found.returncode == 4
    assert "mend it:" in found.stderr
    assert "Traceback" not in found.stderr
