"""Takes a folder; gives a forge: repositories to clone, caches and artifacts that outlive a job, and the shell."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FOREIGN = ("DETGATE_", "DATASETS_DIR", "CHECKPOINTS_DIR", "GITHUB_", "CI_", "PYTEST_", "COVERAGE_PROCESS_", "PIP_")
BRANCH = "main"


class UnknownStep(Exception):
    """What the emulation does not know: an action, an expression, a condition, a keyword."""


@dataclass
class Forge:
    """What jobs share. `install` stands for `make setup` in the folder that it is given."""

    root: Path
    install: Callable[[Path], None]
    repositories: dict[str, Path] = field(default_factory=dict)
    runs: int = 0

    @property
    def caches(self) -> Path:
        return self.root / "caches"

    def next_job(self) -> tuple[int, Path]:
        """Its number, and an empty folder."""
        self.runs += 1
        folder = self.root / f"job-{self.runs}"
        folder.mkdir(parents=True)
        return self.runs, folder

    def clone(self, name: str, ref: str, target: Path) -> None:
        """A repository's files as committed; nothing of its working tree."""
        command = [
            "git",
            "clone",
            "--quiet",
            "--depth",
            "1",
            "--branch",
            ref,
            f"file://{self.repositories[name]}",
            target,
        ]
        subprocess.run(command, check=True, capture_output=True)

    def keep(self, key: str, folder: Path) -> None:
        """A cache that is there is never written again."""
        if folder.exists() and not (self.caches / key).exists():
            shutil.copytree(folder, self.caches / key)

    def replace(self, key: str, folder: Path) -> None:
        """A cache that its last writer decides."""
        shutil.rmtree(self.caches / key, ignore_errors=True)
        self.keep(key, folder)

    def fetch(self, key: str, prefixes: list[str], target: Path) -> None:
        """The cache of that key, else the newest that starts with a prefix, else nothing."""
        found = [self.caches / key] if (self.caches / key).is_dir() else []
        for prefix in prefixes:
            found += sorted(self.caches.glob(f"{prefix}*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        if found:
            shutil.copytree(found[0], target, dirs_exist_ok=True)


@dataclass(frozen=True)
class Job:
    """A job at its end: its shell steps with their exit codes, what they printed, and where it worked."""

    folder: Path
    codes: dict[str, int]
    text: str
    page: str = ""

    @property
    def green(self) -> bool:
        return not any(self.codes.values())


def shell(script: str, folder: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A step's lines in bash, which stops at the first that fails; none of the caller's settings of detgate."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    command = ["bash", "-e", "-o", "pipefail", "-c", script]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, cwd=folder, env=own | dict(variables), text=True, check=False, **streams)


def commit(folder: Path, message: str) -> None:
    """All of a folder as a repository's next commit."""
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "--quiet", "-b", BRANCH], ["add", "-A"], [*who, "commit", "--quiet", "-m", message]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
