"""Takes a rule and what it compares; gives `Shares`: how often it says what, over comparisons drawn from a pool."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from scipy import stats

from harness.errors import ResultsError
from harness.judge.verdict import Status
from suites.selftest.speeds.pool import Entry
from suites.selftest.speeds.rules import Item, Judged, Rule

COMPARISONS = 1000
SEED = 5
DRAWN = (
    "contiguous comparisons first: each takes up the recorded pairs of its slow-down where the one before ended; then "
    "random ones, each of pairs drawn without replacement from all of its slow-down, half with the new side first, "
    f"seed {SEED}, until there are {COMPARISONS}. Rules for two single processes: each new side with the old side of "
    "the pair recorded before it, then of the one before that, and so on. A round is a block of calls of a tenth of a "
    "second (pytest-benchmark's iterations). Independent comparisons: pairs / mean pairs used; the bound of the false "
    "alarms is Clopper and Pearson's, one-sided, of that many comparisons with the share found."
)


@dataclass(frozen=True)
class Shares:
    """How often a rule said what.

    passed: it does not fail; so many of them improved. mean_pairs: pairs of processes that a comparison took.
    contiguous, contiguous_regressed: comparisons whose pairs were recorded one after the other.
    """

    comparisons: int
    regressed: int
    passed: int
    inconclusive: int
    mean_pairs: float
    improved: int
    contiguous: int
    contiguous_regressed: int

    @property
    def regressed_share(self) -> float:
        """Of all comparisons."""
        return self.regressed / self.comparisons

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def independent(self, pairs: int) -> float:
        """Comparisons that `pairs` pairs are enough for, each used once."""
        return pairs / self.mean_pairs

    def upper_bound(self, pairs: int, confidence: float = 0.95) -> float:
        """Clopper and Pearson's one-sided bound of the share regressed, for the independent comparisons."""
        count = self.independent(pairs)
        regressed = self.regressed_share * count
        return 1.0 if regressed >= count else float(stats.beta.ppf(confidence, regressed + 1, count - regressed))


def shares(rule: Rule, entries: Sequence[Entry], slow_down: int, comparisons: int = COMPARISONS) -> Shares:
    """What the rule says of the pairs of one slow-down, in percent.

    Raises:
        ResultsError: too few pairs for one comparison.
    """
    items = list(islice(rule.items(entries, slow_down), comparisons * rule.most))
    of_order = [sum(item.new_first is new_first for item in items) for new_first in (False, True)]
    if not items or min(of_order) < rule.most // 2:
        raise ResultsError(
            f"wanted at least {rule.most} pairs of a slow-down of {slow_down} %, found {len(items)}",
            "record more: python -m suites.selftest.speeds record",
        )
    contiguous = list(islice(_contiguous(rule, items), comparisons))
    judged = list(islice(chain(contiguous, _resampled(rule, items)), comparisons))
    found = Counter(status for status, _ in judged)
    return Shares(
        comparisons=len(judged),
        regressed=found[Status.REGRESSED],
        passed=found[Status.PASS] + found[Status.IMPROVED],
        inconclusive=found[Status.INCONCLUSIVE],
        mean_pairs=float(np.mean([used for _, used in judged])),
        improved=found[Status.IMPROVED],
        contiguous=len(contiguous),
        contiguous_regressed=sum(status is Status.REGRESSED for status, _ in contiguous),
    )


def _contiguous(rule: Rule, items: Sequence[Item]) -> Iterator[Judged]:
    start = 0
    while (judged := rule.judge(items[start : start + rule.most]))[0] is not None:
        yield judged
        start += judged[1]


def _resampled(rule: Rule, items: Sequence[Item]) -> Iterator[Judged]:
    rng = np.random.default_rng(SEED)
    by_order = [[item for item in items if item.new_first is new_first] for new_first in (False, True)]
    while rule.most > 1:
        halves = [rng.choice(len(those), rule.most // 2, replace=False) for those in by_order]
        yield rule.judge(
            [those[place] for pair in zip(*halves, strict=True) for those, place in zip(by_order, pair, strict=True)]
        )
