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


@pytest.mark.parametrize("code", [0, 5])
def test_a_fork_tells_what_a_process_of_its_own_tells(tmp_path: Path, probe: dict[str, str], code: int) -> None:
    words = ["probe", str(code)]
    fresh = subprocess.run(
        [sys.executable, "-m", *words],
        **{"cwd": tmp_path, "env": probe, "input": "", "capture_output": True, "text": True},
        check=False,
    )
    found = forks.run(words, tmp_path, probe)
    assert (found.returncode, found.stdout, found.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)


def test_commands_leave_each_other_nothing(tmp_path: Path, probe: dict[str, str]) -> None:
    forks.run(["probe", "0"], tmp_path, {**probe, "LEFT_OVER": "1"})
    assert "LEFT_OVER" not in forks.run(["probe", "0"], tmp_path, probe).stdout


def test_a_fork_that_is_killed_says_by_which_signal(tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert forks.run(["killed"], tmp_path, own_environment()).returncode == -9
