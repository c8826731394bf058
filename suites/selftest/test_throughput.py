"""FPS comes from the median call; what makes it doubtful is said beside it."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from harness.errors import EvaluationError
from harness.measure.throughput import plan_rounds, summarise, warm_up

pytestmark = pytest.mark.selftest


class FakeClock:
    """A clock that only calls move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def call_lasting(self, *seconds: float) -> Callable[[], None]:
        """A call that takes the given seconds one after the other, the last of them from then on."""
        left = list(seconds)

        def call() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def steady(n: int = 200, spread: float = 0.01) -> npt.NDArray[np.float64]:
    return 0.02 * (1 + np.random.default_rng(0).normal(0, spread, n))


def error_of_median(seconds: npt.NDArray[np.float64]) -> float:
    error = summarise(seconds.tolist(), batch=1).standard_error_of_median_relative
    assert error is not None
    return error


def test_fps_is_batch_over_the_median_latency() -> None:
    assert summarise([0.1, 0.2, 5.0], batch=32).fps == pytest.approx(32 / 0.2)


def test_one_slow_call_does_not_move_fps() -> None:
    seconds = [0.2] * 20
    assert summarise([*seconds, 9.0], batch=1).fps == summarise(seconds, batch=1).fps


@pytest.mark.parametrize(("name", "wanted_ms"), [("p50", 51.0), ("p90", 91.0), ("p99", 100.0)])
def test_percentiles_are_interpolated_linearly_in_milliseconds(name: str, wanted_ms: float) -> None:
    latency = summarise([i / 1000 for i in range(1, 102)], batch=1).latency_ms
    assert getattr(latency, name) == pytest.approx(wanted_ms)


def test_p99_of_few_calls_is_close_to_the_slowest() -> None:
    assert summarise([0.01] * 9 + [0.02], batch=1).latency_ms.p99 == pytest.approx(19.1)


def test_cv_is_the_spread_of_single_calls() -> None:
    assert summarise([1.0, 3.0], batch=1).cv == pytest.approx(0.5)


def test_error_of_the_median_comes_from_ten_contiguous_blocks() -> None:
    medians = np.arange(10, 20) / 1000
    seconds = np.repeat(medians, 3).tolist()
    wanted = np.std(medians, ddof=1) / np.sqrt(10) / np.median(seconds)
    assert summarise(seconds, batch=1).standard_error_of_median_relative == pytest.approx(wanted)


def test_error_of_the_median_falls_with_more_calls() -> None:
    assert error_of_median(steady(5000)) < error_of_median(steady(50)) / 3


def test_slow_spells_widen_the_error_where_single_spikes_do_not() -> None:
    spell, spikes = steady(), steady()
    spell[40:100] *= 1.2
    spikes[::10] *= 1.2
    assert error_of_median(spell) > 5 * error_of_median(spikes)


def test_fewer_than_ten_calls_have_no_error_of_the_median() -> None:
    assert summarise([0.1] * 9, batch=1).standard_error_of_median_relative is None


def test_steady_calls_are_not_noisy() -> None:
    assert summarise(steady().tolist(), batch=1).noise == ()


@pytest.mark.parametrize(
    ("seconds", "note"),
    [
        ([0.1] * 9, "fewer than 10 calls"),
        (steady(spread=0.15).tolist(), "single calls vary by 1"),
        (np.repeat([0.02, 0.03] * 5, 5).tolist(), "the median is known to"),
        ((steady() * np.linspace(1, 1.1, 200)).tolist(), "slower than the first"),
        ((steady() * np.linspace(1.1, 1, 200)).tolist(), "faster than the first"),
    ],
    ids=["few", "spread", "uncertain", "slowing", "warming"],
)
def test_noise_is_noted(seconds: list[float], note: str) -> None:
    assert any(note in found for found in summarise(seconds, batch=1).noise)


@pytest.mark.parametrize("seconds", [[], [0.1, 0.0], [0.1, -0.1], [0.1, float("nan")], [float("inf")]], ids=str)
def test_durations_that_cannot_be_are_refused(seconds: list[float]) -> None:
    with pytest.raises(EvaluationError):
        summarise(seconds, batch=1)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(EvaluationError, match="0 images"):
        summarise([0.1], batch=0)


def test_warm_up_goes_on_until_the_time_has_passed() -> None:
    clock = FakeClock()
    warm_up(clock.call_lasting(0.3), seconds=1.0, clock=clock)
    assert clock.now == pytest.approx(101.2)


def test_warm_up_calls_at_least_once() -> None:
    clock = FakeClock()
    assert warm_up(clock.call_lasting(0.5), seconds=0.0, clock=clock) == pytest.approx(0.5)


def test_warm_up_gives_the_time_of_a_warm_call() -> None:
    clock = FakeClock()
    assert warm_up(clock.call_lasting(2.0, 0.5, 0.1), seconds=2.65, clock=clock) == pytest.approx(0.1)


@pytest.mark.parametrize(("one_call_s", "rounds"), [(0.01, 300), (0.7, 10), (100.0, 10), (0.29, 11)])
def test_rounds_fill_three_seconds_and_are_at_least_ten(one_call_s: float, rounds: int) -> None:
    assert plan_rounds(one_call_s) == rounds


@pytest.mark.parametrize("one_call_s", [0.0, -1.0, float("nan"), float("inf")])
def test_rounds_cannot_be_planned_for_an_impossible_call(one_call_s: float) -> None:
    with pytest.raises(EvaluationError):
        plan_rounds(one_call_s)
