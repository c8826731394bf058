"""Takes a folder that says what to run; gives a side of a speed comparison, in whichever virtual environment this is.

`python -m harness.sides.child prepare FOLDER` builds; `... run FOLDER` opens the engine and calls it when told to, by
lines of JSON on standard input: `{"warm_up": SECONDS}` or `{"calls": N}`, each answered by `{"seconds": S}`.
"""

import json
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from harness.errors import DetgateError
from harness.measure.throughput import warm_up
from harness.sides.job import Job
from harness.sides.process import ASKED, Asked

JOB, IMAGES = "job.pickle", "images.npy"
EXIT_REFUSED = 4


def _prepare(folder: Path) -> dict[str, Any]:
    """Build; leave the job and its images in `folder`; gives the facts."""
    from harness.environment import collect
    from harness.model.registry import PRECISIONS
    from harness.pipeline import Cell, Pipeline, Settings

    asked = Asked.from_json((folder / ASKED).read_text(encoding="utf-8"))
    model, precision, engine = asked.cell
    cell = Cell(model, next(one for one in PRECISIONS if one == precision), engine)
    pipeline = Pipeline(
        Settings(
            baselines=asked.baselines,
            checkpoints=asked.checkpoints,
            cache_dir=asked.cache_dir,
            batch_size=asked.batch_size,
            engine_file=asked.engine_file,
            engine_options={engine: dict(asked.options)},
        )
    )
    prepared = pipeline.prepare(cell, random=True)
    images = pipeline.timing_images(prepared)
    with pipeline.opened(prepared) as session:
        inspection = session.inspect()
    (folder / JOB).write_bytes(pickle.dumps(Job(engine, dict(asked.options), prepared.source, prepared.file.path)))
    np.save(folder / IMAGES, images)
    environment = collect()
    return {
        "cell": cell.id,
        "batch": prepared.source.batch,
        "start": prepared.start,
        "artifacts": prepared.artifacts,
        "engine_version": prepared.engine.version(),
        "flags": prepared.engine.flags(),
        "precision_ran": inspection.dominant,
        "device_ran": inspection.device,
        "versions": environment.versions,
        "device": environment.device,
        "fingerprint": environment.fingerprint,
    }


def _run(folder: Path, answers: IO[str], slower: Callable[[Callable[[], None]], Callable[[], None]]) -> None:
    from harness.engines import get_engine

    job: Job = pickle.loads((folder / JOB).read_bytes())
    engine = get_engine(job.engine, job.options)
    engine.takes_turns = True
    with engine.open(job.source, job.file) as session:
        call = slower(session.prepare(np.load(folder / IMAGES)))
        for line in sys.stdin:
            print(json.dumps({"seconds": _answer(json.loads(line), call)}), file=answers, flush=True)


def _answer(question: dict[str, float], call: Callable[[], None]) -> float:
    if "warm_up" in question:
        return warm_up(call, question["warm_up"])
    start = time.perf_counter()
    for _ in range(int(question["calls"])):
        call()
    return time.perf_counter() - start


def _as_it_is(call: Callable[[], None]) -> Callable[[], None]:
    return call


def main(arguments: list[str], slower: Callable[[Callable[[], None]], Callable[[], None]] = _as_it_is) -> int:
    """`prepare FOLDER` or `run FOLDER`, in the side's own process.

    Args:
        slower: wraps the timed call; how the proof injects a slow-down.
    """
    action, folder = arguments[0], Path(arguments[1])
    # What runtimes print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        if action == "prepare":
            print(json.dumps(_prepare(folder)), file=answers, flush=True)
        else:
            _run(folder, answers, slower)
    except DetgateError as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
