"""`python -m suites.selftest.faults [--out FILE]`: the proof that the accuracy checks catch faults and nothing else.

Runs every fault on each mini model and engine it applies to, several hundred harmless changes, and the coverage of the
corrected interval, and writes them to baselines/proof/accuracy.json. About 40 minutes on two cores.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scipy import stats

from harness.cache import default_directory
from harness.judge import previous
from harness.judge.previous import Pair
from harness.model.registry import SHIPPED_BASELINES
from harness.pipeline import Cell
from suites.selftest.faults import harmless
from suites.selftest.faults.catalogue import FAULTS, MINI
from suites.selftest.faults.multinomial import Matches, changes
from suites.selftest.faults.prove import Bench, caught_by

OUT = SHIPPED_BASELINES / "proof" / "accuracy.json"
CONFIDENCE = 0.95
PAIRS = [("fp32", "fp16"), ("fp32", "int8")]


def faults(bench: Bench) -> Iterator[dict[str, Any]]:
    """Each fault on each model and engine, and what caught it."""
    for fault in FAULTS:
        for model in fault.models:
            for engine in fault.engines:
                found = caught_by(fault, Cell(model, fault.precision, engine), bench)
                yield {
                    "name": fault.name,
                    "model": model,
                    "engine": engine,
                    "named_check": fault.check,
                    "caught_by": found,
                    "caught": fault.check in found,
                }


def harmless_runs(bench: Bench) -> dict[str, Any]:
    """How many harmless changes fail a check, with the 95 % upper bound of that share were the changes independent."""
    runs, identical, failed = 0, 0, []
    for change in harmless.changes(bench):
        (verdicts,) = previous.judge_all([change.pair])
        runs += 1
        identical += change.identical
        if names := [verdict.check for verdict in verdicts if verdict.fails(required=False)]:
            failed.append({"change": change.name, "checks": names})
            print(f"harmless, yet failed: {change.name}: {', '.join(names)}", flush=True)
    bound = stats.binomtest(len(failed), runs).proportion_ci(0.90, "exact").high
    return {"runs": runs, "identical": identical, "failed": len(failed), "upper_bound": bound, "failures": failed}


def coverage(bench: Bench, resamples: int) -> dict[str, Any]:
    """Share of multinomial resamples' changes of AP that lie in the corrected interval, for pairs of real cells."""
    found = []
    for model in MINI:
        for before, after in PAIRS:
            cells = [Cell(model, one, "openvino") for one in (before, after)]  # type: ignore[arg-type]
            runs, dataset = [bench.clean(cell) for cell in cells], bench.dataset(cells[0])
            low, high = Pair(dataset, *runs, "").comparison.differences["map_50_95"].interval()
            matches = [Matches(dataset, run.detections) for run in runs]
            drawn = changes(*matches, images=len(dataset.images), resamples=resamples)
            inside = float(((low <= drawn) & (drawn <= high)).mean())
            print(f"coverage {cells[0].id} -> {cells[1].id}: {inside:.3f}", flush=True)
            found.append(
                {"before": cells[0].id, "after": cells[1].id, "observed": inside, "sd": float(drawn.std(ddof=1))}
            )
    mean = sum(one["observed"] for one in found) / len(found)
    return {"nominal": CONFIDENCE, "observed": mean, "resamples": resamples, "pairs": found}


def main() -> int:
    """Run the proof; 1 where a named check missed its fault, over 1 % of harmless changes failed or coverage is off."""
    parser = argparse.ArgumentParser(prog="python -m suites.selftest.faults", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    parser.add_argument("--cache-dir", type=Path, default=default_directory().expanduser(), metavar="DIR")
    parser.add_argument("--resamples", type=int, default=2000, metavar="N")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.cache_dir, Path(folder))
        rows = []
        for row in faults(bench):
            rows.append(row)
            said = ", ".join(row["caught_by"]) or "nothing"
            print(
                f"{'caught' if row['caught'] else 'MISSED'} {row['name']} ({row['model']}, {row['engine']}): "
                f"wanted {row['named_check']}, failed {said}",
                flush=True,
            )
        proof = {"faults": rows, "harmless": harmless_runs(bench), "coverage": coverage(bench, options.resamples)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(proof, indent=1) + "\n", encoding="utf-8")
    quiet, share = proof["harmless"], proof["coverage"]["observed"]  # type: ignore[index, call-overload]
    print(
        f"{sum(row['caught'] for row in rows)} of {len(rows)} faults caught by the named check; {quiet['failed']} of "
        f"{quiet['runs']} harmless changes failed; coverage {share:.3f} of {CONFIDENCE}: {options.out}"
    )
    healthy = all(row["caught"] for row in rows) and quiet["failed"] <= 0.01 * quiet["runs"] and 0.93 <= share <= 0.97
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
