"""Takes the seconds of single engine calls; gives `Throughput`: FPS, latency percentiles and how sure they are."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from harness.errors import EvaluationError

BLOCKS = 10
NOISY_CV = 0.10
NOISY_INTERVAL = 0.025
"""Half of the default speed tolerance of 5 %: a median less sure than that cannot be judged."""
NOISY_DRIFT = 0.025
_MEASURE_AGAIN = "measure again"

Clock = Callable[[], float]


@dataclass(frozen=True)
class Percentiles:
    """Latency of one call in milliseconds.

    Interpolated linearly between the sorted calls (numpy's `linear`, type 7 of Hyndman and Fan 1996): with fewer
    than about 100 calls p99 is close to the slowest one.
    """

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Throughput:
    """What the timed calls say.

    fps: images per second, batch / median latency. batch: images per call. calls: how many were timed.
    cv: standard deviation / mean of single calls.
    standard_error_of_median_relative: standard error of the median / median; None for fewer than ten calls.
    noise: findings that make the figure doubtful, one phrase each; empty when there are none.
    latency_steps_ms: the shortest call, the longest, and the percentiles between in steps of 5.
    """

    fps: float
    batch: int
    calls: int
    latency_ms: Percentiles
    cv: float
    standard_error_of_median_relative: float | None
    noise: tuple[str, ...]
    latency_steps_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Speeds:
    """All that timing one session says: `compute` is judged, the rest stands beside it.

    compute: inputs and outputs resident where the engine computes, on the host's clock.
    transfer: the same with copies from and to the host; None on a CPU, where there are none to make.
    device: the runs of `compute` on the device's own clock, `device_timer`; None where the runtime has none.
    memory_bytes: held on the device; None where the runtime does not tell.
    """

    compute: Throughput
    transfer: Throughput | None = None
    device: Throughput | None = None
    device_timer: str | None = None
    memory_bytes: int | None = None


def summarise(seconds: Sequence[float], batch: int) -> Throughput:
    """Throughput of `batch` images per call from the durations of the calls, in the order they were made.

    Raises:
        EvaluationError: no calls, a duration that is not a positive finite number, or a batch under 1.
    """
    durations = _checked(seconds, batch)
    p50, p90, p99 = (float(value) for value in np.percentile(durations, [50, 90, 99], method="linear"))
    cv = float(durations.std() / durations.mean())
    blocks = _block_medians(durations)
    error = None if blocks is None else float(blocks.std(ddof=1) / math.sqrt(BLOCKS) / p50)
    return Throughput(
        fps=batch / p50,
        batch=batch,
        calls=len(durations),
        latency_ms=Percentiles(p50 * 1e3, p90 * 1e3, p99 * 1e3),
        cv=cv,
        standard_error_of_median_relative=error,
        noise=_noise(cv, error, blocks),
        latency_steps_ms=tuple(float(step) * 1e3 for step in np.percentile(durations, range(0, 101, 5))),
    )


def warm_up(call: Callable[[], object], seconds: float, clock: Clock = time.perf_counter) -> float:
    """Calls `call`, at least once, until `seconds` have passed; gives the seconds of one warm call.

    That is the median over the second half of the calls: the first ones pay for loading, tuning and clocks.
    """
    start = previous = clock()
    durations: list[float] = []
    while not durations or previous - start < seconds:
        call()
        now = clock()
        durations.append(now - previous)
        previous = now
    return median(durations[len(durations) // 2 :])


def plan_rounds(one_call_s: float, min_seconds: float = 3.0, min_rounds: int = 10) -> int:
    """Calls to time so that they last `min_seconds` and are at least `min_rounds` (trtexec's rule).

    Raises:
        EvaluationError: `one_call_s` is not a positive finite number.
    """
    if not (math.isfinite(one_call_s) and one_call_s > 0):
        raise EvaluationError(f"one call took {one_call_s} s, which cannot be", "look at the clock and the session")
    return max(min_rounds, math.ceil(min_seconds / one_call_s))


def _checked(seconds: Sequence[float], batch: int) -> npt.NDArray[np.float64]:
    durations = np.asarray(seconds, dtype=np.float64)
    if batch < 1:
        raise EvaluationError(f"a call of {batch} images cannot be timed", "give a batch of at least 1")
    if durations.size == 0:
        raise EvaluationError("no calls were timed", _MEASURE_AGAIN)
    wrong = durations[~(np.isfinite(durations) & (durations > 0))]
    if wrong.size:
        raise EvaluationError(
            f"{wrong.size} of {durations.size} calls took no positive finite time, first {wrong[0]} s", _MEASURE_AGAIN
        )
    return durations


def _block_medians(durations: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """Medians of ten contiguous blocks: neighbouring calls are alike, so single calls would look too certain."""
    if len(durations) < BLOCKS:
        return None
    return np.array([np.median(block) for block in np.array_split(durations, BLOCKS)])


def _noise(cv: float, error: float | None, blocks: npt.NDArray[np.float64] | None) -> tuple[str, ...]:
    notes = []
    if cv > NOISY_CV:
        notes.append(f"single calls vary by {cv:.1%}")
    if error is None or blocks is None:
        return (*notes, f"fewer than {BLOCKS} calls: the error of the median is unknown")
    if 1.96 * error > NOISY_INTERVAL:
        notes.append(f"the median is known to ±{1.96 * error:.1%} only")
    drift = float(np.median(blocks[BLOCKS // 2 :]) / np.median(blocks[: BLOCKS // 2])) - 1
    if abs(drift) > NOISY_DRIFT:
        notes.append(f"the second half was {abs(drift):.1%} {'slower' if drift > 0 else 'faster'} than the first")
    return tuple(notes)
