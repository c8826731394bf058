"""Takes what a side is to run; gives its process: engine built in its own virtual environment, called when told to."""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from harness.errors import EngineError, UsageError

ROOT = Path(__file__).resolve().parents[2]
MODULE = "harness.sides.child"
ASKED = "asked.json"
# Threads that spin while their process waits would take the other side's cores.
PARKED = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "0"}


@dataclass(frozen=True)
class Asked:
    """What a side is to run, as plain data.

    cell: `(model, precision, engine)`. options: of the engine. python: of the virtual environment that runs it.
    """

    label: str
    cell: tuple[str, str, str]
    python: str
    options: Mapping[str, str]
    baselines: Path
    checkpoints: Path
    cache_dir: Path
    batch_size: int | None = None
    engine_file: Path | None = None

    def as_json(self) -> str:
        """The form in which it reaches the side's process."""
        return json.dumps({**vars(self), "options": dict(self.options)}, default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `as_json`."""
        data = json.loads(text)
        paths = {
            name: data[name] and Path(data[name]) for name in ("baselines", "checkpoints", "cache_dir", "engine_file")
        }
        return cls(**{**data, **paths, "cell": tuple(data["cell"])})


@dataclass(frozen=True)
class Prepared:
    """A side whose engine is built: its folder, and what its process says of itself."""

    asked: Asked
    folder: Path
    facts: dict[str, Any]

    def start(self, module: str = MODULE) -> "Process":
        """A fresh process of it."""
        return Process([self.asked.python, "-m", module, "run", str(self.folder)], self.asked.label)


def prepare(asked: Asked, folder: Path, module: str = MODULE) -> Prepared:
    """Build the side's engine in its own virtual environment, and try it on one batch.

    Raises:
        UsageError: what the side's process says was wrong.
    """
    folder.mkdir(parents=True)
    (folder / ASKED).write_text(asked.as_json(), encoding="utf-8")
    command = [asked.python, "-m", module, "prepare", str(folder)]
    try:
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(
            f"{asked.label}: cannot start {asked.python}: {error.strerror}",
            "name a virtual environment that has bin/python, with detgate's dependencies installed",
        ) from error
    if done.returncode != 0:
        raise UsageError(f"{asked.label}: {_last_lines(done.stderr)}", "mend that side, then compare again")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Prepared(asked, folder, facts)


class Process:
    """A running side (`harness.measure.turns.Side`): to be closed, which ends it."""

    def __init__(self, command: list[str], label: str) -> None:
        self._label = label
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed in `close`
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, env=_environment(), stdin=pipe, stdout=pipe, stderr=self._errors, text=True, bufsize=1
        )

    def warm_up(self, seconds: float) -> float:
        """See `Side.warm_up`."""
        return self._ask({"warm_up": seconds})

    def block(self, calls: int) -> float:
        """See `Side.block`."""
        return self._ask({"calls": calls})

    def _ask(self, question: dict[str, float]) -> float:
        answer = ""
        if self._process.stdin and self._process.stdout:
            try:
                print(json.dumps(question), file=self._process.stdin, flush=True)
                answer = self._process.stdout.readline()
            except BrokenPipeError:
                pass  # it ended: told below, with its last words
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            said = _last_lines(self._errors.read().decode(errors="replace"))
            raise EngineError(f"{self._label}: its process ended: {said}", "mend that side, then compare again")
        return float(json.loads(answer)["seconds"])

    def close(self) -> None:
        """End the process. Calling it twice does nothing."""
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream and not stream.closed:
                with contextlib.suppress(BrokenPipeError):  # a process that ended by itself reads no more
                    stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _environment() -> dict[str, str]:
    """The side's process imports this harness, whichever virtual environment it runs in."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **PARKED, "PYTHONPATH": path}


def _last_lines(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-2:]) or "it said nothing"
