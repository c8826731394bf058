"""Takes recorded pools; gives the proof of the speed gate: what each rule says, and which of the targets are met."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.report.grid import markdown_table
from suites.selftest.speeds.pool import Entry, Pool
from suites.selftest.speeds.rules import RAMP, RULES, warming
from suites.selftest.speeds.shares import COMPARISONS, DRAWN, Shares, shares

SCHEMA = 1
OURS = "detgate"
# Slow-down in percent -> share of comparisons that have to end in REGRESSED.
SEEN = {1: 0.15, 2: 0.75, 3: 0.98, 5: 0.995, 10: 1.0}
FALSE_ALARMS = 0.01
PAIR_SD = 0.02
MEAN_PAIRS = 10
IDENTICAL_PAIRS, SLOWER_PAIRS, LEAST_COMPARISONS = 400, 150, 300
REALISED = 0.05
"""How far a slow-down may be from what was wanted, as a fraction of it."""

OUTCOMES = {"regressed": "REGRESSED", "passed": "PASS", "inconclusive": "INCONCLUSIVE"}

Tell = Callable[[str], None]
Table = dict[str, dict[int, Shares]]


@dataclass(frozen=True)
class Target:
    """What was wanted and found, in words."""

    wanted: str
    found: str
    met: bool


@dataclass(frozen=True)
class Proof:
    """What the rules say of the pools.

    rules: of every slow-down. ramp, hog: of identical pairs while the machine gets warm, and beside a busy process;
    hog is None where it was not recorded.
    """

    pool: Pool
    hog_pool: Pool | None
    rules: Table
    ramp: dict[str, Shares]
    hog: dict[str, Shares] | None

    def false_alarms(self) -> dict[str, tuple[Shares, int]]:
        """Our rule on identical pairs under each condition, and from how many pairs its comparisons were drawn."""
        found = {"as recorded": (self.rules[OURS][0], _count(self.pool, 0))}
        found["warming ramp"] = (self.ramp[OURS], _count(self.pool, 0))
        if self.hog is not None and self.hog_pool is not None:
            found["CPU hog"] = (self.hog[OURS], _count(self.hog_pool, 0))
        return found

    def targets(self) -> list[Target]:
        """GATE's targets, one by one."""
        alarms, ours = self.false_alarms(), self.rules[OURS]
        found = [_pairs_target(self.pool), _comparisons_target(self.rules), _realised_target(self.pool)]
        for condition in ("as recorded", "warming ramp", "CPU hog"):
            wanted = f"at most {FALSE_ALARMS:.0%} of identical pairs' comparisons REGRESSED, {condition}"
            if condition not in alarms:
                found.append(Target(wanted, "not recorded: record --hog", met=False))
                continue
            one, pairs = alarms[condition]
            said = f"{one.regressed_share:.1%}, under {one.upper_bound(pairs):.1%} at 95 %"
            found.append(Target(wanted, said, one.regressed_share <= FALSE_ALARMS))
        for percent, share in SEEN.items():
            seen = ours[percent].regressed_share
            found.append(Target(f"{share:.1%} of slow-downs of {percent} % REGRESSED", f"{seen:.1%}", seen >= share))
        spread, used = spread_of(self.pool, 0), ours[0].mean_pairs
        found.append(Target(f"pair sd of at most {PAIR_SD:.0%}", f"{spread:.2%}", spread <= PAIR_SD))
        found.append(Target(f"at most {MEAN_PAIRS} pairs for identical sides", f"{used:.1f}", used <= MEAN_PAIRS))
        return found

    def as_json(self) -> dict[str, Any]:
        """The record of the proof."""
        return {
            "schema": SCHEMA,
            "rules": {
                rule: {str(percent): row.as_json() for percent, row in rows.items()}
                for rule, rows in self.rules.items()
            },
            "pair_sd": spread_of(self.pool, 0),
            "fingerprint": self.pool.header["fingerprint"],
            "ramp": {"rise": RAMP, "rules": {rule: row.as_json() for rule, row in self.ramp.items()}},
            "hog": self._hog_json(),
            "false_alarms": {
                condition: {
                    "regressed": row.regressed_share,
                    "pairs": pairs,
                    "independent": row.independent(pairs),
                    "upper_bound_95": row.upper_bound(pairs),
                }
                for condition, (row, pairs) in self.false_alarms().items()
            },
            "slow_downs": {str(percent): _slow_down_json(self.pool, percent) for percent in self.rules[OURS]},
            "drawn": DRAWN,
            "rules_are": {name: rule.says for name, rule in RULES.items()},
            "targets": [vars(target) for target in self.targets()],
            "recorded": self.pool.headers,
        }

    def _hog_json(self) -> dict[str, Any] | None:
        if self.hog is None or self.hog_pool is None:
            return None
        return {
            "rules": {rule: row.as_json() for rule, row in self.hog.items()},
            "pair_sd": spread_of(self.hog_pool, 0),
            "recorded": self.hog_pool.headers,
        }


def tables(kept: dict[str, Any]) -> str:
    """Two tables in Markdown of a proof's record: the shares that each rule calls slower, and all that ours says."""
    rules, hog = kept["rules"], kept["hog"] or {"rules": {}}
    slow_downs = list(rules[OURS])
    conditions = {"0 %, warming": kept["ramp"]["rules"], "0 %, CPU hog": hog["rules"]}
    heads = ["`REGRESSED` at", *(f"{percent} %" for percent in slow_downs), *conditions]
    shares_of = [
        [rule, *rows.values(), *(found.get(rule) for found in conditions.values())] for rule, rows in rules.items()
    ]
    rows = [[rule, *map(_regressed, found)] for rule, *found in shares_of]
    ours = [
        [f"{percent} %", *(f"{row[name] / row['comparisons']:.3f}" for name in OUTCOMES), f"{row['mean_pairs']:.1f}"]
        for percent, row in rules[OURS].items()
    ]
    titles = [OURS, *(f"`{name}`" for name in OUTCOMES.values()), "pairs"]
    return f"{markdown_table(heads, rows)}\n\n{markdown_table(titles, ours)}"


def _regressed(row: dict[str, Any] | None) -> str:
    return "–" if row is None else f"{row['regressed'] / row['comparisons']:.3f}"


def prove(pool: Pool, hog_pool: Pool | None, tell: Tell, comparisons: int = COMPARISONS) -> Proof:
    """Every rule on every slow-down.

    Raises:
        ResultsError: a slow-down has too few pairs.
    """
    rules: Table = {}
    for name, rule in RULES.items():
        tell(f"{name}: {comparisons} comparisons of each slow-down")
        rules[name] = {percent: shares(rule, pool.entries, percent, comparisons) for percent in (0, *SEEN)}
    ramp = {name: shares(warming(rule), pool.entries, 0, comparisons) for name, rule in RULES.items()}
    hog = None
    if hog_pool is not None:
        hog = {name: shares(rule, hog_pool.entries, 0, comparisons) for name, rule in RULES.items()}
    return Proof(pool, hog_pool, rules, ramp, hog)


def spread_of(pool: Pool, slow_down: int) -> float:
    """Standard deviation of the log ratios of the pairs of one slow-down."""
    return float(np.std([one.pair.log_ratio for one in _those(pool, slow_down)], ddof=1))


def _those(pool: Pool, slow_down: int) -> Sequence[Entry]:
    return [entry for entry in pool.entries if entry.slow_down == slow_down]


def _count(pool: Pool, slow_down: int) -> int:
    return len(_those(pool, slow_down))


def _realised(pool: Pool, slow_down: int) -> list[float]:
    return [entry.realised for entry in _those(pool, slow_down) if entry.realised is not None]


def _slow_down_json(pool: Pool, slow_down: int) -> dict[str, Any]:
    found = {
        "pairs": _count(pool, slow_down),
        "pair_sd": spread_of(pool, slow_down),
        "found_percent": 100 * float(np.expm1(np.mean([one.pair.log_ratio for one in _those(pool, slow_down)]))),
    }
    if realised := _realised(pool, slow_down):
        quantiles = np.percentile(realised, [5, 50, 95]).tolist()
        found |= dict(zip(("realised_p5", "realised_percent", "realised_p95"), quantiles, strict=True))
    return found


def _pairs_target(pool: Pool) -> Target:
    counts = {percent: _count(pool, percent) for percent in (0, *SEEN)}
    met = counts[0] >= IDENTICAL_PAIRS and all(counts[percent] >= SLOWER_PAIRS for percent in SEEN)
    wanted = f"{IDENTICAL_PAIRS} identical pairs and {SLOWER_PAIRS} of each slow-down recorded"
    return Target(wanted, ", ".join(f"{percent} %: {count}" for percent, count in counts.items()), met)


def _comparisons_target(rules: Table) -> Target:
    fewest = min(row.comparisons for rows in rules.values() for row in rows.values())
    return Target(f"{LEAST_COMPARISONS} comparisons of each", str(fewest), fewest >= LEAST_COMPARISONS)


def _realised_target(pool: Pool) -> Target:
    medians = {percent: float(np.median(_realised(pool, percent))) for percent in SEEN}
    met = all(abs(found - percent) <= REALISED * percent for percent, found in medians.items())
    wanted = f"slow-downs within {REALISED:.0%} of what was wanted, by the independent clock"
    return Target(wanted, ", ".join(f"{percent} %: {found:.2f} %" for percent, found in medians.items()), met)
