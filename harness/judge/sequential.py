"""Takes the pairs of a speed comparison so far; gives the decision, or that more pairs are needed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from harness.judge.verdict import Status

# Pairs after which the figures are looked at. Four looks at this p keep false alarms under 1 %.
LOOKS = (6, 12, 18, 24)
P_REGRESSED = 0.003
LEAST_SLOW_DOWN = 0.01
WORST_SLOW_DOWN = 0.03
CONFIDENCE = 0.99
FLIPS = 20_000


@dataclass(frozen=True)
class Decision:
    """What the pairs say of a call of the new side against one of the old.

    status: None while more pairs are needed.
    slow_down: how much longer it takes, as a fraction; negative where it is faster. low, high: its one-sided bounds.
    p_slower: of a one-sided t test that it is not slower.
    """

    status: Status | None
    pairs: int
    slow_down: float
    low: float
    high: float
    p_slower: float


def decide(log_ratios: Sequence[float]) -> Decision:
    """Judge the pairs' log ratios (new / old seconds of a call), in the order they were measured.

    `REGRESSED`: slower by at least 1 %, p < 0.003. `IMPROVED`: faster by at least 1 %, p < 0.003. `PASS`: the 99 %
    bound lies under 3 % slower. `INCONCLUSIVE`: none of these after the last look. Between looks there is no status.
    """
    values = np.asarray(log_ratios, dtype=np.float64)
    count = len(values)
    mean = float(values.mean()) if count else 0.0
    if count < 2:
        return Decision(None, count, math.expm1(mean), -math.inf, math.inf, 1.0)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    reach = float(stats.t.ppf(CONFIDENCE, count - 1)) * error
    p_slower = _p_greater(mean, error, count - 1)
    found = Decision(
        status=None,
        pairs=count,
        slow_down=math.expm1(mean),
        low=math.expm1(mean - reach),
        high=math.expm1(mean + reach),
        p_slower=p_slower,
    )
    if count not in LOOKS:
        return found
    return _with_status(found, p_faster=_p_greater(-mean, error, count - 1))


def decide_between(first: Sequence[float], second: Sequence[float]) -> Decision:
    """Judge two comparisons with the same old side: how much longer a call of the second's new side takes.

    By Welch's t on the log ratios of their pairs, with the limits of `decide` and no further look.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    parts = [values.var(ddof=1) / len(values) for values in (one, other)]
    mean, error = float(other.mean() - one.mean()), math.sqrt(sum(parts))
    spread = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (one, other), strict=True))
    freedom = error**4 / spread if spread else 1.0
    reach = float(stats.t.ppf(CONFIDENCE, freedom)) * error
    found = Decision(
        status=None,
        pairs=len(one) + len(other),
        slow_down=math.expm1(mean),
        low=math.expm1(mean - reach),
        high=math.expm1(mean + reach),
        p_slower=_p_greater(mean, error, freedom),
    )
    decided = _with_status(found, _p_greater(-mean, error, freedom))
    return replace(decided, status=decided.status or Status.INCONCLUSIVE)


def _with_status(found: Decision, p_faster: float) -> Decision:
    status = None
    if found.p_slower < P_REGRESSED and found.slow_down >= LEAST_SLOW_DOWN:
        status = Status.REGRESSED
    elif p_faster < P_REGRESSED and found.slow_down <= -LEAST_SLOW_DOWN:
        status = Status.IMPROVED
    elif found.high < WORST_SLOW_DOWN:
        status = Status.PASS
    elif found.pairs == LOOKS[-1]:
        status = Status.INCONCLUSIVE
    return replace(found, status=status)


def _p_greater(mean: float, error: float, freedom: float) -> float:
    """One-sided p of a mean over zero, by Student's t."""
    if error == 0:
        return 0.0 if mean > 0 else 1.0
    return float(stats.t.sf(mean / error, freedom))


def sign_flip_p(log_ratios: Sequence[float]) -> float:
    """One-sided p that assumes no normal distribution: the share of sign patterns whose mean is at least the one found.

    A cross-check, never a verdict: six pairs cannot come under 1/64. Exact up to 14 pairs, else by random patterns.
    """
    values = np.asarray(log_ratios, dtype=np.float64)
    count = len(values)
    if 2**count <= FLIPS:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((signs @ values >= values.sum() - 1e-12).mean())
    signs = np.random.default_rng(0).choice((-1, 1), (FLIPS, count))
    return float((1 + (signs @ values >= values.sum()).sum()) / (1 + FLIPS))
