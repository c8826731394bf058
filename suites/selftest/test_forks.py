"""A fork stands for `python -m MODULE`: its own words, folder, environment, output and end."""

import subprocess
import sys
from pathlib import Path

import pytest

from suites.selftest import forks
from suites.selftest.conftest import own_environment

pytestmark = pytest.mark.selftest

PROBE = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.getcwd(), sorted(os.environ), __name__, sys.orig_argv[1:], sys.stdin.read()]))
print("said aside", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def probe(tmp_path: Path) -> dict[str, str]:
    """The environment of `python -m probe CODE` in the test's folder, which tells what it was given."""
    (tmp_path / "probe.py").write_text(PROBE)
    return own_environment()


def fresh(words: list[str], cwd: Path, environment: dict[str, str]) -> forks.Outcome:
    """The same by a process of its own."""
    streams = {"input": "", "capture_output": True, "text": True}
    return subprocess.run([sys.executable, "-m", *words], cwd=cwd, env=environment, check=False, **streams)


@pytest.mark.parametrize("code", [0, 5])
def test_a_fork_tells_what_a_process_of_its_own_tells(tmp_path: Path, probe: dict[str, str], code: int) -> None:
    words = ["probe", str(code)]
    alone, found = fresh(words, tmp_path, probe), forks.run(words, tmp_path, probe)
    assert (found.returncode, found.stdout, found.stderr) == (alone.returncode, alone.stdout, alone.stderr)


@pytest.mark.parametrize(
    "end",
    [
        "sys.exit()",
        "sys.exit('a message')",
        "raise ValueError('a fault')",
        "atexit.register(print, 'at the end')",
        "threading.Thread(target=lambda: (time.sleep(0.1), print('later'))).start()",
    ],
)
def test_a_fork_ends_as_a_process_of_its_own_ends(tmp_path: Path, end: str) -> None:
    (tmp_path / "ends.py").write_text(f"import atexit, sys, threading, time\nprint('begun')\n{end}\n")
    alone, found = (run(["ends"], tmp_path, own_environment()) for run in (fresh, forks.run))
    assert (found.returncode, found.stdout) == (alone.returncode, alone.stdout)
    assert found.stderr.splitlines()[-1:] == alone.stderr.splitlines()[-1:]


def test_commands_leave_each_other_nothing(tmp_path: Path, probe: dict[str, str]) -> None:
    forks.run(["probe", "0"], tmp_path, {**probe, "LEFT_OVER": "1"})
    assert "LEFT_OVER" not in forks.run(["probe", "0"], tmp_path, probe).stdout


def test_a_fork_that_is_killed_says_by_which_signal(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert forks.run(["killed"], tmp_path, own_environment()).returncode == -9
