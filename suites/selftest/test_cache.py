"""Each step's output is made once over all processes, whole or not at all, and kept under what it depends on."""

import errno
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.cache import ENTRY_FILE, ENVIRONMENT_VARIABLE, Cache, default_directory, digest, sha256_of
from harness.errors import CacheError
from suites.selftest.conftest import CHECKOUT

pytestmark = pytest.mark.selftest

INPUTS = {"step": "export", "weights": "0123abcd"}
DAY_S = 86400.0

# Says that it is about to ask for an entry; where it makes the entry, it does so only when it is told to.
PROCESS = """
import sys
from pathlib import Path
from harness.cache import Cache

def make(target):
    sys.stdin.readline()
    target.write_text("content")

print("ready", flush=True)
made = Cache(Path(sys.argv[1])).artifact("onnx", {"a": 1}, "a.onnx", make)
print(made.built, made.path.read_text())
"""

# Dies in the middle of its work, as by kill -9.
KILLED = """
import os, sys
from pathlib import Path
from harness.cache import Cache

def make(target):
    target.write_text("half")
    os._exit(9)

Cache(Path(sys.argv[1])).artifact("onnx", {"step": "export", "weights": "0123abcd"}, "a.onnx", make)
"""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


class Maker:
    """Writes its text; counts its calls."""

    def __init__(self, text: str = "content") -> None:
        self.text = text
        self.calls = 0

    def __call__(self, target: Path) -> None:
        self.calls += 1
        target.write_text(self.text)


def artifact(cache: Cache, make: Callable[[Path], None], **changes: Any) -> Path:
    return cache.artifact("onnx", INPUTS | changes, "a.onnx", make).path


def leftovers(cache: Cache) -> list[str]:
    """All that is neither a lock nor a finished entry."""
    found = [path for path in cache.directory.glob("*/*") if path.suffix != ".lock"]
    return [path.name for path in found if path.name.startswith(".") or not (path / ENTRY_FILE).exists()]


# --- made once


def test_the_maker_writes_the_file(cache: Cache) -> None:
    assert artifact(cache, Maker()).read_text() == "content"


def test_the_hash_is_that_of_the_file(cache: Cache) -> None:
    made = cache.artifact("onnx", INPUTS, "a.onnx", Maker())
    assert made.sha256 == sha256_of(made.path)


def test_the_second_call_makes_nothing(cache: Cache) -> None:
    maker = Maker()
    assert artifact(cache, maker) == artifact(cache, maker)
    assert maker.calls == 1


def test_an_artifact_says_whether_it_was_built_here(cache: Cache) -> None:
    assert [cache.artifact("onnx", INPUTS, "a.onnx", Maker()).built for _ in range(2)] == [True, False]


def test_the_hash_is_remembered(cache: Cache) -> None:
    first, second = (cache.artifact("onnx", INPUTS, "a.onnx", Maker()) for _ in range(2))
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("change", [{"weights": "4567abcd"}, {"recipe": 2}, {"weights": None}], ids=str)
def test_other_inputs_are_another_entry(cache: Cache, change: dict[str, Any]) -> None:
    assert artifact(cache, Maker()) != artifact(cache, Maker(), **change)


def test_another_step_is_another_entry(cache: Cache) -> None:
    paths = {cache.artifact(kind, INPUTS, "a.onnx", Maker()).path for kind in ("onnx", "fp16")}
    assert len(paths) == 2


def test_the_order_of_inputs_does_not_matter() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})


@pytest.mark.parametrize("value", [float("nan"), Path("x"), {1}], ids=["NaN", "path", "set"])
def test_inputs_that_are_not_plain_json_are_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match="JSON"):
        digest({"a": value})


def test_four_processes_make_an_entry_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, cwd=CHECKOUT, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    assert [process.stdout and process.stdout.readline() for process in processes] == ["ready\n"] * 4
    for process in processes:
        print("make", file=process.stdin, flush=True)
    said = sorted(process.communicate(timeout=60)[0].strip() for process in processes)
    assert said == ["False content"] * 3 + ["True content"]


# --- whole or not at all


def test_what_the_maker_leaves_beside_its_file_is_kept(cache: Cache) -> None:
    def make(target: Path) -> None:
        target.write_text("graph")
        (target.parent / "graph.data").write_text("weights")

    assert (artifact(cache, make).parent / "graph.data").read_text() == "weights"


def test_the_entry_is_not_there_while_it_is_made(cache: Cache) -> None:
    seen: list[int] = []

    def make(target: Path) -> None:
        seen.append(len(cache.entries()))
        target.write_text("content")

    artifact(cache, make)
    assert seen == [0]


def _raises(target: Path) -> None:
    target.write_text("half")
    raise ValueError("the step failed")


def test_a_failing_maker_passes_its_error_on(cache: Cache) -> None:
    with pytest.raises(ValueError, match="the step failed"):
        artifact(cache, _raises)


def test_a_failing_maker_leaves_nothing(cache: Cache) -> None:
    with pytest.raises(ValueError, match="the step failed"):
        artifact(cache, _raises)
    assert leftovers(cache) == []
    assert cache.entries() == []


def test_a_maker_that_writes_nothing_is_an_error_and_leaves_nothing(cache: Cache) -> None:
    with pytest.raises(CacheError):
        artifact(cache, lambda _target: None)
    assert leftovers(cache) == []


def test_after_a_failure_the_entry_can_be_made(cache: Cache) -> None:
    with pytest.raises(ValueError, match="the step failed"):
        artifact(cache, _raises)
    assert artifact(cache, Maker()).read_text() == "content"


def _killed(cache: Cache) -> None:
    outcome = subprocess.run([sys.executable, "-c", KILLED, str(cache.directory)], cwd=CHECKOUT, check=False)
    assert outcome.returncode == 9


def test_a_killed_process_leaves_no_entry(cache: Cache) -> None:
    _killed(cache)
    assert len(leftovers(cache)) == 1
    assert cache.entries() == []


def test_what_a_killed_process_left_goes_with_the_next_make(cache: Cache) -> None:
    _killed(cache)
    assert artifact(cache, Maker()).read_text() == "content"
    assert leftovers(cache) == []


# --- damaged entries


def _cut(path: Path) -> None:
    path.write_text(path.read_text()[:-1])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "file gone": lambda path: path.unlink(),
    "file cut short": _cut,
    "file empty": lambda path: path.write_bytes(b""),
    "file changed": lambda path: path.write_bytes(bytes(reversed(path.read_bytes()))),
    "record gone": lambda path: (path.parent / ENTRY_FILE).unlink(),
    "record cut short": lambda path: _cut(path.parent / ENTRY_FILE),
    "record empty": lambda path: (path.parent / ENTRY_FILE).write_text(""),
    "record not an object": lambda path: (path.parent / ENTRY_FILE).write_text("[]"),
    "record without hash": lambda path: (path.parent / ENTRY_FILE).write_text('{"size": 7}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(cache: Cache, damage: str) -> None:
    DAMAGES[damage](artifact(cache, Maker()))
    again = Maker("content")
    assert artifact(cache, again).read_text() == "content"
    assert again.calls == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_does_not_stop_the_list(cache: Cache, damage: str) -> None:
    DAMAGES[damage](artifact(cache, Maker()))
    artifact(cache, Maker(), weights="whole")
    assert "whole" in [entry.inputs.get("weights") for entry in cache.entries()]


def test_a_file_that_changes_after_it_was_found_is_made_again(cache: Cache) -> None:
    path = [artifact(cache, Maker()) for _ in range(2)][-1]
    path.write_text("CONTENT")
    os.utime(path, (0, 0))
    assert artifact(cache, Maker()).read_text() == "content"


def test_a_found_file_is_hashed_once_in_a_process(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr("harness.cache.sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    paths = [artifact(Cache(cache.directory), Maker()) for _ in range(4)]
    assert hashed.count(paths[0]) == 1


# --- places


@pytest.fixture
def shared_umask() -> Iterator[None]:
    """Files that are made now are readable by everybody."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("shared_umask")
def test_an_entry_can_be_read_by_whom_the_umask_allows(cache: Cache) -> None:
    folder = artifact(cache, Maker()).parent
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / ENTRY_FILE)] == [0o755, 0o644]


def _read_only(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_an_entry_of_a_read_only_cache_is_found(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact(cache, Maker())
    monkeypatch.setattr(os, "utime", _read_only)
    again = Maker()
    artifact(cache, again)
    assert again.calls == 0


def test_a_cache_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot write to the cache"):
        artifact(Cache(tmp_path / "file" / "cache"), Maker())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS], ids=errno.errorcode.get)
def test_a_maker_that_finds_no_room_or_no_leave_meets_the_caches_error(cache: Cache, code: int) -> None:
    def make(_target: Path) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(CacheError, match=os.strerror(code)):
        artifact(cache, make)
    assert leftovers(cache) == []


def test_an_input_file_that_the_maker_misses_is_not_the_caches_error(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        artifact(cache, lambda target: target.write_bytes((tmp_path / "absent").read_bytes()) and None)
    assert leftovers(cache) == []


def test_a_lock_that_is_never_released_is_named(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.cache.LOCK_TIMEOUT_S", 0.0)

    def make(target: Path) -> None:
        artifact(Cache(cache.directory), Maker())  # the same entry, asked for while it is being made
        target.write_text("content")

    with pytest.raises(CacheError, match=r"\.lock was held for 0 s by another process"):
        artifact(cache, make)


@pytest.mark.parametrize(("value", "wanted"), [("elsewhere", "elsewhere"), ("", None)])
def test_the_environment_names_the_directory(monkeypatch: pytest.MonkeyPatch, value: str, wanted: str | None) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, value)
    assert default_directory() == Path(wanted or Path.home() / ".cache" / "detgate")


# --- list and clear


def _used(cache: Cache, path: Path, days_ago: float) -> None:
    moment = time.time() - days_ago * DAY_S
    os.utime(path.parent / ENTRY_FILE, (moment, moment))


@pytest.fixture
def three(cache: Cache) -> Cache:
    """Entries used 1, 5 and 10 days ago."""
    for days in (5, 10, 1):
        _used(cache, artifact(cache, Maker("x" * days), days=days), days)
    return cache


def test_an_empty_cache_has_no_entries(cache: Cache) -> None:
    assert cache.entries() == []


def test_entries_come_most_recently_used_first(three: Cache) -> None:
    assert [entry.inputs["days"] for entry in three.entries()] == [1, 5, 10]


def test_a_use_makes_an_entry_recent(three: Cache) -> None:
    artifact(three, Maker(), days=10)
    assert three.entries()[0].inputs["days"] == 10


def test_an_entry_says_what_it_was_made_from(three: Cache) -> None:
    assert three.entries()[0].inputs == INPUTS | {"days": 1}


def test_the_size_of_an_entry_is_that_of_its_files(cache: Cache) -> None:
    folder = artifact(cache, Maker("x" * 1000)).parent
    assert cache.entries()[0].size == sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize(("days", "kept"), [(0.0, []), (3.0, [1]), (7.0, [1, 5]), (30.0, [1, 5, 10])])
def test_clearing_removes_what_was_not_used_for_so_long(three: Cache, days: float, kept: list[int]) -> None:
    three.remove(days)
    assert [entry.inputs["days"] for entry in three.entries()] == kept


def test_clearing_says_what_it_removed(three: Cache) -> None:
    assert [entry.inputs["days"] for entry in three.remove(7.0)] == [10]


def test_clearing_removes_damaged_entries_too(cache: Cache) -> None:
    DAMAGES["record cut short"](artifact(cache, Maker()))
    cache.remove(0.0)
    assert leftovers(cache) == []


def test_a_cleared_entry_is_made_again(cache: Cache) -> None:
    artifact(cache, Maker())
    cache.remove(0.0)
    again = Maker()
    artifact(cache, again)
    assert again.calls == 1


def test_the_record_is_plain_json(cache: Cache) -> None:
    record = json.loads((artifact(cache, Maker()).parent / ENTRY_FILE).read_text())
    assert record == {"inputs": INPUTS, "sha256": sha256_of(artifact(cache, Maker())), "size": 7}


def test_equal_inputs_under_another_file_name_leave_the_first_file_in_place(cache: Cache) -> None:
    first = cache.artifact("engine", {"graph": "same"}, "one.bin", lambda path: path.write_bytes(b"1") and None)
    cache.artifact("engine", {"graph": "same"}, "two.bin", lambda path: path.write_bytes(b"2") and None)
    assert first.path.read_bytes() == b"1"


def left_behind(cache: Cache) -> Path:
    """The directory of work that was interrupted."""
    found: list[Path | None] = []

    def work() -> None:
        with cache.unfinished("run", INPUTS) as directory:
            found.append(directory)
            assert directory is not None
            (directory / "journal").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert found[0] is not None
    return found[0]


def test_unfinished_work_is_found_again_and_gone_when_it_ends(cache: Cache) -> None:
    directory = left_behind(cache)
    assert [(entry.kind, entry.inputs) for entry in cache.entries()] == [("run", INPUTS)]
    with cache.unfinished("run", INPUTS) as again:
        assert again == directory
        assert (again / "journal").read_text() == "half"
    assert list((cache.directory / "run").iterdir()) == []


def test_unfinished_work_of_other_inputs_is_elsewhere(cache: Cache) -> None:
    with cache.unfinished("run", INPUTS) as one, cache.unfinished("run", {**INPUTS, "batch": 2}) as other:
        assert one != other


def test_work_that_another_process_is_at_has_no_directory(cache: Cache) -> None:
    with cache.unfinished("run", INPUTS) as mine:
        with cache.unfinished("run", INPUTS) as theirs:
            assert theirs is None
        assert mine is not None
        assert mine.is_dir()


def test_unfinished_work_in_a_cache_that_cannot_be_written_has_no_directory(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with Cache(tmp_path / "cache").unfinished("run", INPUTS) as directory:
        assert directory is None


def test_unfinished_work_can_be_cleared(cache: Cache) -> None:
    left_behind(cache)
    assert [entry.kind for entry in cache.remove(0.0)] == ["run"]
    assert cache.entries() == []
