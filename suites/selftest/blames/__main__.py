"""`python -m suites.selftest.blames [MODEL ...] [--out FILE]`: the proof that blame names the layer that was damaged.

Plants faults at places chosen at random (seeded) in the engine's build, searches for each, and writes what was found,
with time and extra runs, to baselines/proof/blame.json. Models that the file has and that are not named are kept. Two
minutes for the mini models; the full-size ones, with random weights where there is no checkpoint, take minutes a fault.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.cache import default_directory
from harness.files import write_atomically
from harness.model.registry import SHIPPED_BASELINES
from harness.pipeline import Pipeline, Settings
from suites.selftest.blames.prove import Bench, places

OUT = SHIPPED_BASELINES / "proof" / "blame.json"
MINI = ["pisa-mini", "paa-mini"]
WANTED = 0.95


def main() -> int:
    """Run the proof; 1 where fewer than 19 of 20 layers are the right ones."""
    parser = argparse.ArgumentParser(prog="python -m suites.selftest.blames", description=__doc__)
    parser.add_argument("models", nargs="*", default=MINI, metavar="MODEL")
    parser.add_argument(
        "--engine", action="append", metavar="ENGINE", help="take turns (default onnxruntime, openvino)"
    )
    parser.add_argument("--each", type=int, default=2, metavar="N", help="places for each kind of fault (default 2)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE")
    parser.add_argument("--cache-dir", type=Path, default=default_directory().expanduser(), metavar="DIR")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), metavar="DIR")
    parser.add_argument("--baselines", type=Path, default=SHIPPED_BASELINES, metavar="DIR")
    parser.add_argument("--data-dir", type=Path, default=Path("coco"), metavar="DIR", help="COCO, for full-size int8")
    options = parser.parse_args()
    settings = Settings(
        baselines=options.baselines,
        cache_dir=options.cache_dir,
        checkpoints=options.checkpoints,
        data_dir=options.data_dir,
        batch_size=options.batch_size,
    )
    bench, engines = Bench(Pipeline(settings)), options.engine or ["onnxruntime", "openvino"]
    kept, found = _kept(options.out, options.models), []
    for model, kind, engine, number in places(options.models, engines, options.each):
        one = bench.prove(model, kind, engine, number)
        found.append(one)
        write_atomically(
            options.out, json.dumps({"faults": kept + [asdict(o) for o in found]}, indent=1).encode() + b"\n"
        )
        print(
            f"{'right' if one.right else 'WRONG'} {model} {engine} {kind} at {one.place}: {one.blamed}, "
            f"{one.suspect_runs} + {one.reference_runs} runs, {one.seconds} s",
            flush=True,
        )
    right = sum(one.right and one.alone_again for one in found)
    print(f"{right} of {len(found)} faults: the right layer, and alone it shows the same error: {options.out}")
    return 0 if right >= WANTED * len(found) else 1


def _kept(file: Path, models: list[str]) -> list[dict[str, Any]]:
    """What the file says of other models."""
    if not file.is_file():
        return []
    return [one for one in json.loads(file.read_text(encoding="utf-8"))["faults"] if one["model"] not in models]


if __name__ == "__main__":
    sys.exit(main())
