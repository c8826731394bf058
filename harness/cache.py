"""Takes the inputs of a step as plain JSON; gives a directory holding its output, made once, locked and atomic."""

import errno
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from harness.errors import CacheError

ENTRY_FILE = "entry.json"
LOCK_TIMEOUT_S = 3600.0
ENVIRONMENT_VARIABLE = "DETGATE_CACHE"
# What a step meets when the cache has no room or no leave to write; its other OSErrors are about its own inputs.
WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS})


def default_directory() -> Path:
    """`$DETGATE_CACHE`, or `~/.cache/detgate`."""
    return Path(os.environ.get(ENVIRONMENT_VARIABLE) or Path.home() / ".cache" / "detgate")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.cache
def _sha256_of_version(path: Path, _size: int, _modified_ns: int) -> str:
    """`sha256_of`, once per process for each version of a file."""
    return sha256_of(path)


def digest(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of plain JSON data, independent of key order."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Artifact:
    """One file made by a step. `built` says whether this process made it or found it."""

    path: Path
    sha256: str
    built: bool


@dataclass(frozen=True)
class CacheEntry:
    """One entry as `python -m harness cache` lists it; `size` in bytes, `used` in seconds since the epoch."""

    kind: str
    key: str
    path: Path
    size: int
    used: float
    inputs: dict[str, Any]


class Cache:
    """A directory of entries `KIND/KEY/`, each the output of one step for one set of inputs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def artifact(self, kind: str, inputs: Mapping[str, Any], filename: str, make: Callable[[Path], None]) -> Artifact:
        """The file that `make(path)` writes for these inputs; made at most once over all processes.

        Args:
            kind: the step, e.g. `onnx`; first part of the path.
            inputs: all that the output depends on, as plain JSON.
            filename: name of the file inside the entry.
            make: writes the file to the path it is given (a temporary directory; what is left there is kept too).

        Raises:
            CacheError: the directory cannot be written, or another process held the lock for an hour.
            OSError: `make` raised it, for another reason than a full or read-only cache.
        """
        entry = self.directory / kind / digest({"file": filename, "inputs": dict(inputs)})[:24]
        found = self._lookup(entry, filename)
        if found is not None:
            return found
        with self._lock(entry):
            return self._lookup(entry, filename) or self._make(entry, inputs, filename, make)

    def _lookup(self, entry: Path, filename: str) -> Artifact | None:
        path = entry / filename
        try:
            record = json.loads((entry / ENTRY_FILE).read_text(encoding="utf-8"))
            state = path.stat()
            if state.st_size != record["size"]:
                return None
            if _sha256_of_version(path, state.st_size, state.st_mtime_ns) != record["sha256"]:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with suppress(OSError):  # a shared cache that is read-only keeps no note of its uses
            os.utime(entry / ENTRY_FILE)
        return Artifact(path, str(record["sha256"]), built=False)

    @contextmanager
    def _lock(self, entry: Path) -> Iterator[None]:
        lock = FileLock(entry.with_suffix(".lock"), timeout=LOCK_TIMEOUT_S)
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise CacheError(
                f"{lock.lock_file} was held for {LOCK_TIMEOUT_S:.0f} s by another process",
                "end that process, or give this run its own --cache-dir",
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            yield
        finally:
            lock.release()

    def _make(self, entry: Path, inputs: Mapping[str, Any], filename: str, make: Callable[[Path], None]) -> Artifact:
        for stale in entry.parent.glob(f".{entry.name}-*"):
            shutil.rmtree(stale, ignore_errors=True)  # left by a killed process: we hold the lock, nobody uses it
        work = entry.parent / f".{entry.name}-{uuid4().hex}"
        made = work / filename
        try:
            with self._writing():
                work.mkdir()  # with the umask's mode: mkdtemp would keep a shared cache from everybody else
            self._run(make, made)
            with self._writing():
                record = {"inputs": dict(inputs), "sha256": sha256_of(made), "size": made.stat().st_size}
                (work / ENTRY_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")
                if entry.exists():
                    shutil.rmtree(entry)
                work.rename(entry)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return Artifact(entry / filename, str(record["sha256"]), built=True)

    def _run(self, make: Callable[[Path], None], target: Path) -> None:
        try:
            make(target)
        except OSError as error:
            if error.errno in WRITE_ERRORS:
                raise self._unwritable(error) from error
            raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> CacheError:
        return CacheError(
            f"cannot write to the cache {self.directory}: {error.strerror or error}",
            "give a writable directory with space left: --cache-dir DIR or DETGATE_CACHE=DIR",
        )

    @contextmanager
    def unfinished(self, kind: str, inputs: Mapping[str, Any]) -> Iterator[Path | None]:
        """A directory `KIND/KEY/` for work that may be killed: whoever gives the same inputs finds what was left there.

        Removed when the block ends without an error. None where another process works there, or the cache cannot be
        written: the work can be done all the same.
        """
        entry = self.directory / kind / digest(inputs)[:24]
        lock = FileLock(entry.with_suffix(".lock"), blocking=False)
        with suppress(Timeout, OSError):
            entry.mkdir(parents=True, exist_ok=True)
            (entry / ENTRY_FILE).write_text(json.dumps({"inputs": dict(inputs)}, indent=1), encoding="utf-8")
            lock.acquire()
        try:
            yield entry if lock.is_locked else None
            if lock.is_locked:
                shutil.rmtree(entry, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)
        finally:
            lock.release()

    def entries(self) -> list[CacheEntry]:
        """Every finished entry, most recently used first; a damaged one has no inputs, and is made again at need."""
        found = []
        for record_file in self.directory.glob(f"*/[!.]*/{ENTRY_FILE}"):
            entry, record = record_file.parent, _read_record(record_file)
            size = sum(f.stat().st_size for f in entry.rglob("*") if f.is_file())
            used = record_file.stat().st_mtime
            found.append(CacheEntry(entry.parent.name, entry.name, entry, size, used, record.get("inputs", {})))
        return sorted(found, key=lambda e: -e.used)

    def remove(self, older_than_days: float) -> list[CacheEntry]:
        """Delete the entries not used for that many days; returns what was deleted.

        Raises:
            CacheError: an entry cannot be deleted.
        """
        limit = time.time() - older_than_days * 86400.0
        gone = [entry for entry in self.entries() if entry.used <= limit]
        try:
            for entry in gone:
                shutil.rmtree(entry.path)
        except OSError as error:
            raise self._unwritable(error) from error
        return gone


def _read_record(record_file: Path) -> dict[str, Any]:
    try:
        record = json.loads(record_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
