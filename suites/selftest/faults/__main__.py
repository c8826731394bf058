"""`python -m suites.selftest.faults [--part PART]`: the proof that the accuracy checks catch faults and nothing else.

Runs every fault on each mini model and engine it applies to, several hundred harmless changes, and the coverage of the
corrected interval, and writes each part to baselines/proof/accuracy.json as it ends. About 20 minutes on two cores.
"""

import argparse
import json
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from scipy import stats

from harness.cache import default_directory
from harness.environment import collect
from harness.files import write_atomically
from harness.judge import previous
from harness.judge.previous import Pair
from harness.model.registry import SHIPPED_BASELINES, Precision
from harness.pipeline import Cell
from harness.report.grid import markdown_table
from suites.selftest.faults import harmless
from suites.selftest.faults.catalogue import FAULTS, IN_THE_ENGINE, MINI, Fault
from suites.selftest.faults.multinomial import Matches
from suites.selftest.faults.multinomial import changes as resampled
from suites.selftest.faults.prove import Bench, caught_by

OUT = SHIPPED_BASELINES / "proof" / "accuracy.json"
PARTS = ("faults", "harmless", "coverage")
CONFIDENCE = 0.95
TEXT_COLUMNS = 125
PAIRS: tuple[tuple[Precision, Precision], ...] = (("fp32", "fp16"), ("fp32", "int8"))


def faults(bench: Bench) -> list[dict[str, Any]]:
    """Each fault on each model and engine, and what caught it."""
    return [
        _caught(fault, Cell(model, fault.precision, engine), bench)
        for fault in FAULTS
        for model in fault.models
        for engine in fault.engines
    ]


def _caught(fault: Fault, cell: Cell, bench: Bench) -> dict[str, Any]:
    kept = bench.folder / "faults" / f"{cell.id} {fault.name}.json"
    if kept.is_file():
        row: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return row
    row = _row(fault, cell, caught_by(fault, cell, bench))
    write_atomically(kept, json.dumps(row))
    return row


def _row(fault: Fault, cell: Cell, found: list[str]) -> dict[str, Any]:
    caught = fault.check in found
    said = f"{'caught' if caught else 'MISSED'} {fault.name} ({cell.id}): wanted {fault.check}"
    print(f"{said}, failed {', '.join(found) or 'nothing'}", flush=True)
    return {
        "name": fault.name,
        "model": cell.model,
        "engine": cell.engine,
        "precision": cell.precision,
        "named_check": fault.check,
        "caught_by": found,
        "caught": caught,
    }


def harmless_runs(changes: Iterable[harmless.Change]) -> dict[str, Any]:
    """How many harmless changes fail a check, with the 95 % upper bound of that share: were they all independent, and
    of those that are."""
    done = [_judged(change) for change in changes]
    failures = [row for row in done if row["checks"]]
    independent = [row for row in done if row["independent"]]
    return {
        "runs": len(done),
        "identical": sum(row["identical"] for row in done),
        "failed": len(failures),
        "upper_bound": upper_bound(len(failures), len(done)),
        "independent": len(independent),
        "independent_and_different": sum(not row["identical"] for row in independent),
        "dependent": len(done) - len(independent),
        "upper_bound_of_independent": upper_bound(sum(row["independent"] for row in failures), len(independent)),
        "failures": failures,
    }


def _judged(change: harmless.Change) -> dict[str, Any]:
    """A change, and the reasons of the checks that fail it."""
    (verdicts,) = previous.judge_all([change.pair])
    checks = {verdict.check: verdict.reason for verdict in verdicts if verdict.fails(required=False)}
    if checks:
        print(f"harmless, yet failed: {change.name}: {', '.join(checks)}", flush=True)
    return {
        "change": change.name,
        "identical": change.identical,
        "independent": change.independent,
        "checks": checks,
    }


def upper_bound(failed: int, runs: int) -> float:
    """Of the share that fails, one-sided, exact (Clopper and Pearson)."""
    return round(float(stats.binomtest(failed, runs, alternative="less").proportion_ci(CONFIDENCE, "exact").high), 5)


def coverage(bench: Bench, resamples: int) -> dict[str, Any]:
    """Share of multinomial resamples' changes of AP that lie in the corrected interval, for pairs of real cells."""
    found = [
        covered(bench, Cell(model, before, engine), Cell(model, after, engine), resamples)
        for model in MINI
        for engine in IN_THE_ENGINE
        for before, after in PAIRS
    ]
    mean = sum(one["observed"] for one in found) / len(found)
    return {"nominal": CONFIDENCE, "observed": round(mean, 4), "resamples": resamples, "pairs": found}


def covered(bench: Bench, before: Cell, after: Cell, resamples: int) -> dict[str, Any]:
    """The share for one pair of cells; both standard errors, ours and that of the resamples."""
    dataset, runs = bench.dataset(before), [bench.clean(cell) for cell in (before, after)]
    difference = Pair(dataset, *runs, "").comparison.differences["map_50_95"]
    low, high = difference.interval(CONFIDENCE)
    matches = [Matches(dataset, run.detections) for run in runs]
    drawn = resampled(*matches, images=len(dataset.images), resamples=resamples)
    inside = float(((low <= drawn) & (drawn <= high)).mean())
    print(f"coverage {before.id} -> {after.id}: {inside:.4f}", flush=True)
    return {
        "before": before.id,
        "after": after.id,
        "observed": round(inside, 4),
        "change": round(difference.change, 6),
        "standard_error": round(difference.standard_error, 7),
        "plain_standard_error": round(float(drawn.std(ddof=1)), 7),
    }


def findings(proof: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """By part: what it found, in a few words, and whether that is what is wanted."""
    rows, quiet, coverage = proof["faults"], proof["harmless"], proof["coverage"]
    caught = _caught_of(rows)
    return {
        "faults": (f"{caught} of {len(rows)} faults caught by the check they name", caught == len(rows)),
        "harmless": (
            f"{quiet['failed']} of {quiet['runs']} harmless changes failed, {quiet['identical']} had the same bits",
            quiet["runs"] >= 300 and 4 * quiet["identical"] <= quiet["runs"] and 100 * quiet["failed"] <= quiet["runs"],
        ),
        "coverage": (
            f"the {CONFIDENCE:.0%} interval holds {coverage['observed']:.1%} of {coverage['resamples']} resamples",
            0.93 <= coverage["observed"] <= 0.97 and coverage["resamples"] >= 2000,
        ),
    }


def table(proof: dict[str, Any]) -> str:
    """Markdown for docs/statistics.md: which faults each check caught, and of how many runs of models and engines."""
    by_check: dict[str, list[dict[str, Any]]] = {}
    for row in proof["faults"]:
        by_check.setdefault(row["named_check"], []).append(row)
    rows = [
        (f"`{check}`", "; ".join(dict.fromkeys(row["name"] for row in found)), f"{_caught_of(found)} of {len(found)}")
        for check, found in by_check.items()
    ]
    quiet, coverage = proof["harmless"], proof["coverage"]
    observed = [pair["observed"] for pair in coverage["pairs"]]
    bounds = [f"{quiet[name]:.1%}" for name in ("upper_bound", "upper_bound_of_independent")]
    said = [
        f"Harmless changes: {quiet['failed']} of {quiet['runs']} failed a check; {quiet['identical']} had the same",
        f"bits. At most {bounds[0]} fail (95 % confidence), were all independent; {quiet['independent']} are, which",
        f"alone bounds it by {bounds[1]} ({quiet['independent_and_different']} of them have other bits): the rest are",
        "their reverse, follow from two, or are parts of the data set.",
        f"Coverage: the {coverage['nominal']:.0%} interval of the change of AP holds {coverage['observed']:.1%} of",
        f"{coverage['resamples']} multinomial resamples, {min(observed):.1%} to {max(observed):.1%} in each of",
        f"{len(observed)} pairs of cells, fp32 with fp16 and with int8.",
    ]
    heading = ("check", "faults that it is named for", "caught, by model and engine")
    return f"{markdown_table(heading, rows)}\n\n{textwrap.fill(' '.join(said), TEXT_COLUMNS)}"


def _caught_of(rows: list[dict[str, Any]]) -> int:
    return sum(row["caught"] for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the proof; 1 where a named check missed its fault, over 1 % of harmless changes failed or coverage is off."""
    parser = argparse.ArgumentParser(prog="python -m suites.selftest.faults", description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="run this, keep the others; repeatable")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    parser.add_argument("--cache-dir", type=Path, default=default_directory().expanduser(), metavar="DIR")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="keep what is done here, to go on from")
    parser.add_argument("--resamples", type=int, default=2000, metavar="N")
    parser.add_argument(
        "--table", action="store_true", help="run nothing, print the table of docs/statistics.md of FILE"
    )
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.out.read_text(encoding="utf-8"))))
        return 0
    proof = json.loads(options.out.read_text(encoding="utf-8")) if options.part and options.out.is_file() else {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Callable[[Bench], Any]] = {
        "faults": faults,
        "harmless": lambda bench: harmless_runs(harmless.changes(bench)),
        "coverage": partial(coverage, resamples=options.resamples),
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.cache_dir, options.runs or Path(folder))
        for part in options.part or PARTS:
            proof |= {part: parts[part](bench), "environment": collect().as_json()}
            in_order = {name: proof[name] for name in (*PARTS, "environment") if name in proof}
            write_atomically(options.out, json.dumps(in_order, indent=1) + "\n")
    if lacking := [part for part in PARTS if part not in proof]:
        print(f"{options.out} still lacks {', '.join(lacking)}")
        return 1
    for said, healthy in findings(proof).values():
        print(f"{'ok' if healthy else 'NOT OK'}: {said}")
    return 0 if all(healthy for _, healthy in findings(proof).values()) else 1


if __name__ == "__main__":
    sys.exit(main())
