"""`python -m suites.selftest.speeds record | judge`: the proof that the speed gate sees slow-downs and nothing else.

`record` adds pairs of fresh processes of one engine to a pool: about two hours for all; ended and started again, it
goes on where it was. With `--hog --slow-downs 0` a busy process runs beside them: a pool of its own. Where others use
the machine, `nice` is not enough: the Linux scheduler counts it within one session. As root, in a session of its own,
`setsid bash -c 'echo -20 > /proc/self/autogroup; exec nice -n -20 python -m suites.selftest.speeds record --core 1'`
gives the pairs nearly all of a core.

`judge` draws comparisons from the pools, asks our rule and its rivals about them, writes baselines/proof/speed.json and
says which of the targets are met: a few minutes.
"""

import argparse
import json
import os
import sys
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from harness.cache import default_directory
from harness.errors import DetgateError
from harness.files import write_atomically
from harness.measure.turns import PAIR_S
from harness.model.registry import SHIPPED_BASELINES
from harness.sides.arguments import Places, asked
from harness.sides.process import Prepared, prepare
from suites.selftest.speeds import pool
from suites.selftest.speeds.proof import prove, tables
from suites.selftest.speeds.record import PARTS, PLAN, SEED, Stop, hog, measured, order, record

PROOF = SHIPPED_BASELINES / "proof"
POOL, HOG_POOL, OUT = (PROOF / name for name in ("speed_pool.jsonl", "speed_pool_hog.jsonl", "speed.json"))
CELL = "pisa-mini-fp32-onnxruntime"
THREADS = 1
BATCH = 4
"""Images of a call, which then takes about 20 ms: five make one of the blocks in which the sides take turns."""


def main() -> int:
    """Carry out the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m suites.selftest.speeds", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    actions = parser.add_subparsers(required=True, metavar="record | judge")
    recorder = actions.add_parser("record", help="add pairs to a pool")
    recorder.set_defaults(action=_record)
    recorder.add_argument("--pool", type=Path, default=POOL, metavar="FILE", help="default: %(default)s")
    recorder.add_argument("--pairs", type=int, metavar="N", help="that the pool shall hold in the end; default: all")
    recorder.add_argument("--slow-downs", type=int, nargs="+", choices=PLAN, default=list(PLAN), metavar="PERCENT")
    recorder.add_argument("--core", type=int, metavar="N", help="run all processes on this core alone")
    recorder.add_argument("--hog", action="store_true", help="keep a busy process beside them")
    recorder.add_argument("--note", default="", metavar="TEXT", help="kept in the pool: what else the machine does")
    recorder.add_argument("--pause-while", type=Path, metavar="FILE", help="measure nothing while it exists")
    recorder.add_argument("--cache-dir", type=Path, default=default_directory().expanduser(), metavar="DIR")
    judge = actions.add_parser("judge", help="judge the pools and write the proof")
    judge.set_defaults(action=_judge)
    judge.add_argument("--pool", type=Path, default=POOL, metavar="FILE", help="default: %(default)s")
    judge.add_argument("--hog-pool", type=Path, default=HOG_POOL, metavar="FILE", help="default: %(default)s")
    judge.add_argument("--table", action="store_true", help="judge nothing, print the tables of --out FILE")
    judge.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="default: %(default)s")
    options = parser.parse_args()
    try:
        return int(options.action(options))
    except DetgateError as error:
        print(error, file=sys.stderr)
        return 4


def _record(options: argparse.Namespace) -> int:
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    stop = Stop(options.pause_while)
    with tempfile.TemporaryDirectory(prefix="detgate-speeds-") as folder, hog() if options.hog else nullcontext():
        places = Places(SHIPPED_BASELINES, Path("checkpoints"), options.cache_dir, BATCH)
        side = prepare(asked(CELL, None, [f"onnxruntime.threads={THREADS}"], places), Path(folder) / "side")
        done = pool.begin(options.pool, _header(side, options))
        pairs = options.pairs or sum(PLAN[percent] for percent in options.slow_downs)
        tell = partial(print, file=sys.stderr, flush=True)
        record(options.pool, partial(measured, side), order(options.slow_downs), done, pairs, stop, tell)
    return 0


def _judge(options: argparse.Namespace) -> int:
    """1 where a target is missed."""
    if options.table:
        print(tables(json.loads(options.out.read_text(encoding="utf-8"))))
        return 0
    hog_pool = pool.read(options.hog_pool) if options.hog_pool.exists() else None
    proof = prove(pool.read(options.pool), hog_pool, partial(print, file=sys.stderr, flush=True))
    write_atomically(options.out, json.dumps(proof.as_json(), indent=1) + "\n")
    print(f"{tables(proof.as_json())}\n")
    for target in proof.targets():
        print(f"{'met' if target.met else 'MISSED'}: wanted {target.wanted}; found {target.found}")
    return 0 if all(target.met for target in proof.targets()) else 1


def _header(side: Prepared, options: argparse.Namespace) -> dict[str, Any]:
    facts = ("cell", "batch", "engine_version", "versions", "fingerprint", "device", "artifacts")
    return {
        "schema": pool.SCHEMA,
        "kind": "speed pool",
        **{name: side.facts[name] for name in facts},
        "threads": THREADS,
        "core": options.core,
        "hog": options.hog,
        "pair_s": PAIR_S,
        "slow_downs": options.slow_downs,
        "order": f"{PARTS} parts of equal content, each in random order of seed {SEED}",
        "note": options.note,
    }


if __name__ == "__main__":
    sys.exit(main())
