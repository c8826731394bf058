"""Takes a prepared side; adds pairs of its fresh processes to a pool, some with a slow-down in the new side's calls."""

import datetime
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from harness.errors import EngineError
from harness.measure.turns import PAIR_S, take_turns
from harness.sides.process import MODULE, Prepared
from suites.selftest import slow_side
from suites.selftest.speeds import pool
from suites.selftest.speeds.pool import Entry

SEED = 5
# Pairs of each slow-down in percent. They are recorded in parts of a fiftieth, so that each beginning of the pool has
# all of them in these proportions, and in random order within a part, so that drifts of the machine hit all alike.
PLAN = {0: 400, 1: 150, 2: 150, 3: 150, 5: 150, 10: 150}
PARTS = 50
PAUSE_S = 1.0

Tell = Callable[[str], None]
Measure = Callable[[int, bool], Entry]


def order(slow_downs: Sequence[int]) -> Iterator[tuple[int, bool]]:
    """Slow-down in percent of each pair, and whether its new side comes first, without end.

    Pairs of one slow-down change between old and new first.
    """
    part = [percent for percent in slow_downs for _ in range(PLAN[percent] // PARTS)]
    turn, shuffler = dict.fromkeys(slow_downs, 0), random.Random(SEED)
    while True:
        shuffler.shuffle(part)
        for percent in part:
            yield percent, turn[percent] % 2 == 1
            turn[percent] += 1


def measured(side: Prepared, slow_down: int, new_first: bool) -> Entry:
    """One pair of fresh processes of `side`, the new one `slow_down` percent slower."""
    start, at = time.perf_counter(), datetime.datetime.now(datetime.UTC)
    with tempfile.TemporaryDirectory(prefix="detgate-delay-") as folder:
        report = Path(folder) / "realised.json"
        os.environ[slow_side.VARIABLE], os.environ[slow_side.REPORT] = str(slow_down / 100), str(report)
        module = slow_side.__name__ if slow_down else MODULE
        with closing(side.start()) as old, closing(side.start(module)) as new:
            pair = take_turns(old, new, new_first, PAIR_S)
        realised = 100 * json.loads(report.read_text(encoding="utf-8")) if slow_down else None
    took_s = time.perf_counter() - start
    return Entry(slow_down, realised, pair, at.isoformat(timespec="seconds"), took_s, os.getloadavg()[0])


def record(
    path: Path,
    measure: Measure,
    plan: Iterator[tuple[int, bool]],
    done: int,
    pairs: int,
    stop: Callable[[], bool],
    tell: Tell,
) -> None:
    """Add pairs to the pool at `path` until it holds `pairs`, or `stop` says so.

    Args:
        measure: gives a pair of a slow-down in percent, with the new side first or not. done: pairs that it holds.
    """
    start = time.monotonic()
    for count, (slow_down, new_first) in enumerate(itertools.islice(plan, done, pairs), start=1):
        if stop():
            return
        try:
            entry = measure(slow_down, new_first)
        except EngineError:
            if stop():
                return  # the signal that stops this process reached those of the pair as well
            raise
        pool.append(path, entry)
        left_s = (time.monotonic() - start) / count * (pairs - done - count)
        tell(
            f"pair {done + count} of {pairs}: {slow_down} % slower, {math.expm1(entry.pair.log_ratio):+.2%} found, "
            f"{entry.took_s:.1f} s; {datetime.timedelta(seconds=round(left_s))} left"
        )


class Stop:
    """True once a signal asked to end; asked, it waits first while the file is there that means a pause."""

    def __init__(self, pause_while: Path | None) -> None:
        self._pause_while, self._asked = pause_while, False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._ask)

    def _ask(self, *_: object) -> None:
        self._asked = True

    def __call__(self) -> bool:
        while not self._asked and self._pause_while is not None and self._pause_while.exists():
            time.sleep(PAUSE_S)
        return self._asked


@contextmanager
def hog() -> Iterator[None]:
    """A process that keeps busy the cores that this one may run on: with `--core`, that of the pairs."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()
