"""Takes pairs of processes, an old and a new one; gives what each rule says of them: ours and the rivals'."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.judge.sequential import LOOKS, decide
from harness.judge.verdict import Status
from harness.measure.turns import Pair
from suites.selftest.speeds.pool import Entry

P_RIVAL = 0.05
PYTEST_BENCHMARK_LIMIT = 0.05
# Its default is the fewest even number from five on; ten is what our rule may use on average when nothing changed.
BENCHMATRIX_PAIRS = 10
BENCHMATRIX_CONFIDENCE = 0.95
RESAMPLES = 2000
RAMP = 0.03

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Item:
    """An old and a new process.

    old_s, new_s: seconds of one call in each round. old_at, new_at: when each round began, from 0 to 1, where 0 is the
    begin of the item and 1 that of the next. new_first: the new side began.
    """

    new_first: bool
    old_s: Seconds
    new_s: Seconds
    old_at: Seconds
    new_at: Seconds


Judged = tuple[Status | None, int]


@dataclass(frozen=True)
class Rule:
    """A rule for telling whether the new side is slower.

    says: what it is, for the record. items: what it compares, of the pairs of one slow-down in a pool. judge: its
    verdict and how many of the items it took, None where they are too few. fewest, most: items that it may take.
    """

    says: str
    items: Callable[[Sequence[Entry], int], Iterator[Item]]
    judge: Callable[[Sequence[Item]], Judged]
    fewest: int = 1
    most: int = 1


# --- what is compared


def in_turns(entries: Sequence[Entry], slow_down: int) -> Iterator[Item]:
    """The pairs as they were recorded: two processes that took turns."""
    for entry in entries:
        if entry.slow_down == slow_down:
            old_s, new_s = _times(entry)
            rounds = np.arange(len(old_s))
            new_second = (rounds + entry.pair.new_first) % 2 == 0
            old_at, new_at = ((2 * rounds + later) / (2 * len(rounds)) for later in (~new_second, new_second))
            yield Item(entry.pair.new_first, old_s, new_s, old_at, new_at)


def after_earlier(entries: Sequence[Entry], slow_down: int) -> Iterator[Item]:
    """Each new side after the old side of the pair recorded just before; then of the one before that, and so on."""
    for lag in range(1, len(entries)):
        for place in range(lag, len(entries)):
            if entries[place].slow_down == slow_down:
                yield _in_a_row(entries[place - lag], entries[place], new_first=False)


def neighbours(entries: Sequence[Entry], slow_down: int) -> Iterator[Item]:
    """Each new side with the old side of a neighbouring pair, in turn of the one before (AB) and the one after (BA)."""
    for place, entry in enumerate(entries):
        other = place + (1 if entry.pair.new_first else -1)
        if entry.slow_down == slow_down and 0 <= other < len(entries):
            yield _in_a_row(entries[other], entry, entry.pair.new_first)


def _in_a_row(old: Entry, new: Entry, new_first: bool) -> Item:
    old_s, new_s = _times(old)[0], _times(new)[1]
    old_at, new_at = (np.arange(len(seconds)) / (2 * len(seconds)) for seconds in (old_s, new_s))
    return Item(new_first, old_s, new_s, old_at + (0.5 if new_first else 0), new_at + (0 if new_first else 0.5))


def _times(entry: Entry) -> tuple[Seconds, Seconds]:
    return np.array(entry.pair.old_s), np.array(entry.pair.new_s)


# --- what is said of it


def _detgate(items: Sequence[Item]) -> Judged:
    pairs = [Pair(item.new_first, tuple(item.old_s), tuple(item.new_s)) for item in items]
    ratios = [pair.log_ratio for pair in pairs]
    for look in LOOKS:
        if look <= len(ratios) and (status := decide(ratios[:look]).status):
            return status, look
    return None, len(ratios)


def _failing(fails: Callable[[Seconds, Seconds], bool]) -> Callable[[Sequence[Item]], Judged]:
    """A rule for one old and one new process that knows of failing or not."""

    def judge(items: Sequence[Item]) -> Judged:
        if not items:
            return None, 0
        return Status.REGRESSED if fails(items[0].old_s, items[0].new_s) else Status.PASS, 1

    return judge


def _mean_over_limit(old_s: Seconds, new_s: Seconds) -> bool:
    return bool(new_s.mean() / old_s.mean() - 1 > PYTEST_BENCHMARK_LIMIT)


def _u_test(old_s: Seconds, new_s: Seconds) -> bool:
    return bool(stats.mannwhitneyu(new_s, old_s, alternative="greater").pvalue < P_RIVAL)


def _welch(old_s: Seconds, new_s: Seconds) -> bool:
    return bool(stats.ttest_ind(new_s, old_s, equal_var=False, alternative="greater").pvalue < P_RIVAL)


def _benchmatrix(threshold: float) -> Callable[[Sequence[Item]], Judged]:
    def judge(items: Sequence[Item]) -> Judged:
        if len(items) < BENCHMATRIX_PAIRS:
            return None, len(items)
        means = np.array([(item.old_s.mean(), item.new_s.mean()) for item in items[:BENCHMATRIX_PAIRS]]).T
        low, high = _interval_of_medians(*means)
        status = Status.INCONCLUSIVE
        if low > threshold:
            status = Status.REGRESSED
        elif high < -threshold:
            status = Status.IMPROVED
        elif -threshold <= low and high <= threshold:
            status = Status.PASS
        return status, BENCHMATRIX_PAIRS

    return judge


def _interval_of_medians(old_s: Seconds, new_s: Seconds) -> tuple[float, float]:
    """Interval of the ratio of medians minus 1: BCa bootstrap of the pairs, by percentiles where that has none."""

    def slow_down(old: Seconds, new: Seconds, axis: int = -1) -> Seconds:
        ratio: Seconds = np.median(new, axis=axis) / np.median(old, axis=axis) - 1
        return ratio

    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        for method in ("BCa", "percentile"):
            found = stats.bootstrap(
                (old_s, new_s),
                slow_down,
                paired=True,
                n_resamples=RESAMPLES,
                confidence_level=BENCHMATRIX_CONFIDENCE,
                method=method,
                rng=np.random.default_rng(0),
            ).confidence_interval
            if np.isfinite([found.low, found.high]).all():
                break
    return float(found.low), float(found.high)


def warming(rule: Rule) -> Rule:
    """The rule on a machine whose calls take longer as it gets warm: by up to `RAMP`, growing over `fewest` items."""

    def judge(items: Sequence[Item]) -> Judged:
        return rule.judge([_warmed(item, place, rule.fewest) for place, item in enumerate(items)])

    return dataclasses.replace(rule, judge=judge)


def _warmed(item: Item, place: int, over: int) -> Item:
    old_s, new_s = (
        seconds * (1 + RAMP * np.minimum(1, (place + at) / over))
        for seconds, at in ((item.old_s, item.old_at), (item.new_s, item.new_at))
    )
    return dataclasses.replace(item, old_s=old_s, new_s=new_s)


_EARLIER = "one process's rounds against those of a process of the pair recorded before it"
_BENCHMATRIX = (
    f"written from the documentation of benchmatrix 1.2.1: {BENCHMATRIX_PAIRS} AB/BA pairs of processes that run one "
    "after the other (a new side and the old side of a neighbouring pair); the ratio of the medians of the processes' "
    f"means with a {BENCHMATRIX_CONFIDENCE:.0%} BCa bootstrap interval over pairs ({RESAMPLES} resamples, without its "
    "strata of AB and BA); regressed where all of it lies beyond the threshold, unchanged where all of it lies "
    "within, else inconclusive; threshold "
)
RULES = {
    "detgate": Rule(
        "harness.judge.sequential.decide on pairs that took turns", in_turns, _detgate, LOOKS[0], LOOKS[-1]
    ),
    "pytest-benchmark mean:5%": Rule(f"mean over 5 % higher; {_EARLIER}", after_earlier, _failing(_mean_over_limit)),
    "U-test": Rule(f"one-sided Mann-Whitney U, p < {P_RIVAL}; {_EARLIER}", after_earlier, _failing(_u_test)),
    "Welch t": Rule(f"one-sided, p < {P_RIVAL}; {_EARLIER}", after_earlier, _failing(_welch)),
    **{
        f"benchmatrix {threshold:.0%}": Rule(
            f"{_BENCHMATRIX}{threshold:.0%}",
            neighbours,
            _benchmatrix(threshold),
            BENCHMATRIX_PAIRS,
            BENCHMATRIX_PAIRS,
        )
        for threshold in (0.05, 0.01)
    },
}
