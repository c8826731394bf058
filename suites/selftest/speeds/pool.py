"""Takes a file of recorded pairs; gives `Pool`: its header and its pairs in the order they were recorded.

JSON lines: the header first, then one pair a line. Where a recording was taken up with another build of the engine's
file or another note, its header stands again. A line that a killed recorder left unfinished is no pair.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from harness.errors import ResultsError
from harness.measure.turns import Pair

SCHEMA = 1
KIND = "speed pool"
RECORD = "record one: python -m suites.selftest.speeds record --pool FILE"
DECIMALS = 7
"""Of seconds: the times are kept to a tenth of a microsecond."""


@dataclass(frozen=True)
class Entry:
    """One pair of fresh processes.

    slow_down: percent that was put into the new side's calls. realised: the percent that it came to by the clock of
    `slow_side`, None where nothing was put in. at: UTC. took_s: from the start of the processes to their end. load: of
    the machine over the last minute.
    """

    slow_down: int
    realised: float | None
    pair: Pair
    at: str
    took_s: float
    load: float

    def as_json(self) -> dict[str, Any]:
        """Plain data of one line."""
        pair = self.pair.as_json()
        times = {name: [round(value, DECIMALS) for value in pair[name]] for name in ("old_s", "new_s")}
        return {
            "slow_down": self.slow_down,
            "realised": None if self.realised is None else round(self.realised, 4),
            **pair,
            **times,
            "at": self.at,
            "took_s": round(self.took_s, 2),
            "load": round(self.load, 2),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `as_json`."""
        rest = {name: data[name] for name in ("slow_down", "realised", "at", "took_s", "load")}
        return cls(pair=Pair.from_json(data), **rest)


@dataclass(frozen=True)
class Pool:
    """A recording: what was measured where, and its pairs.

    headers: of each part, in order; they agree in all but what `_settled` leaves out. Both sides of a pair are of one
    part, so none compares two builds.
    """

    headers: tuple[dict[str, Any], ...]
    entries: tuple[Entry, ...]

    @property
    def header(self) -> dict[str, Any]:
        """What all parts share is read from the first."""
        return self.headers[0]


def read(path: Path) -> Pool:
    """The pool of a file.

    Raises:
        ResultsError: it cannot be read, or is no pool of this schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        if not lines or (lines[0]["schema"], lines[0]["kind"]) != (SCHEMA, KIND):
            raise ResultsError(f"{path} is no {KIND} of schema {SCHEMA}", RECORD)
        headers = [line for line in lines if "kind" in line]
        return Pool(tuple(headers), tuple(Entry.from_json(line) for line in lines if "kind" not in line))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"cannot read {path}: {type(error).__name__} {error}", RECORD) from error


def begin(path: Path, header: dict[str, Any]) -> int:
    """Make the pool, or take up one of the same settings behind its last whole line; gives how many pairs it holds.

    Raises:
        ResultsError: it is no pool, or was recorded on another device or with other settings.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return 0
    pool = read(path)
    before, now = _settled(pool.header), _settled(header)
    differing = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if differing:
        found = "; ".join(f"{name}: {before.get(name)} -> {now.get(name)}" for name in differing)
        raise ResultsError(f"{path} was recorded otherwise: {found}", "give another file: --pool FILE")
    os.truncate(path, path.read_bytes().rindex(b"\n") + 1)
    if header != pool.headers[-1]:
        _append(path, header)
    return len(pool.entries)


def _settled(header: dict[str, Any]) -> dict[str, Any]:
    """What has to be equal in all parts: not the note, nor the bytes of a file that no runtime builds alike twice."""
    artifacts = {name: digest for name, digest in header["artifacts"].items() if name != "engine"}
    return {**{name: value for name, value in header.items() if name != "note"}, "artifacts": artifacts}


def append(path: Path, entry: Entry) -> None:
    """Add a pair."""
    _append(path, entry.as_json())


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
