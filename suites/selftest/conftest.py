"""Shared by the project's own tests: the real commands, and a copy of the shipped model files to change."""

import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.__main__ import main
from harness.model.registry import SHIPPED_BASELINES
from suites.selftest import forks
from suites.selftest.forks import Outcome

CHECKOUT = Path(__file__).resolve().parents[2]
# pisa-mini on onnxruntime, in fp32 and int8, on the first 96 of the embedded images.
RECORDS = CHECKOUT / "fixtures" / "records"
Command = Callable[..., Outcome]
Said = tuple[int, str]


# What the pinned, no longer maintained packages of OpenMMLab do in an old way is out of our hands; each entry is
# "ignore:MESSAGE:CATEGORY:MODULE". What a test provokes on purpose, it ignores itself.
THIRD_PARTY_WARNINGS = (
    r"ignore::DeprecationWarning:(mmcv|mmdet|mmengine)\b",
    r"ignore::FutureWarning:(mmcv|mmdet|mmengine)\b",
)

# Settings of the machine and of the pytest around us that a command of its own must not inherit. Traced for coverage,
# some two hundred commands would take a third longer and cover what other tests cover.
FOREIGN = (
    *("DETGATE_CACHE", "DATASETS_DIR", "CHECKPOINTS_DIR", "DETGATE_MIRROR"),
    *("GITHUB_", "PYTEST_", "COVERAGE_PROCESS_"),
)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The project's own tests only, though this hook sees the items of every suite: warnings are errors, and a file's
    tests go to one worker, so that what they share is made once."""
    strict = pytest.mark.filterwarnings("error", *THIRD_PARTY_WARNINGS)
    for item in items:
        if item.get_closest_marker("selftest"):
            item.add_marker(strict, append=False)  # first, so that a test's own filters win
            if not item.get_closest_marker("xdist_group"):
                item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def frozen() -> Iterator[None]:
    """At the end, what was left out of searches for garbage is looked at again."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def what_is_there_stays(frozen: None) -> None:
    """What earlier files imported is left out of each later search for garbage, which takes half a second with it."""
    gc.collect()
    gc.freeze()


def own_environment() -> dict[str, str]:
    """The caller's, without what a command of the tests must not inherit."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}


@pytest.fixture(scope="session")
def python_command() -> Command:
    """`python ...` in the checkout, from nothing, with none of the caller's settings."""

    def run(*words: str | Path) -> Outcome:
        command = [sys.executable, *map(str, words)]
        environment = own_environment()
        return subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def harness_command() -> Command:
    """`python -m harness ...` in the checkout."""
    return lambda *words: forks.run(["harness", *map(str, words)], CHECKOUT, own_environment())


@pytest.fixture(scope="session")
def suites_command() -> Command:
    """`python -m pytest suites/accuracy suites/performance ...` in the checkout; leaves nothing there."""
    fixed = ("pytest", "suites/accuracy", "suites/performance", "-p", "no:cacheprovider")
    return lambda *words: forks.run([*fixed, *map(str, words)], CHECKOUT, own_environment())


@pytest.fixture
def accepts(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[list[str]], None]:
    """Raises where pytest, with detgate's options and its plugins', does not take the words after `pytest`."""
    monkeypatch.chdir(tmp_path)  # some options make their file when they are read

    def parse(words: list[str]) -> None:
        found = pytestconfig._parser.parse([word for word in words if word != "--help"])  # which ends the parsing
        markers = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
        unknown = set(re.findall(r"\w+", found.markexpr)) - markers - {"and", "or", "not"}
        assert not unknown, f"no such markers: {unknown}"

    return parse


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Exit code of `python -m harness compare ...` in this process, and what it prints."""

    def run(*words: object) -> Said:
        code = main(["compare", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out + err

    return run


@pytest.fixture
def baselines(tmp_path: Path) -> Path:
    """A copy of the shipped baselines, without accepted figures."""
    copy = tmp_path / "baselines"
    shutil.copytree(SHIPPED_BASELINES / "models", copy / "models")
    return copy


@pytest.fixture(scope="session")
def session_cache(pytestconfig: pytest.Config) -> Path:
    """The cache of this run: what a test builds is found again by the next run."""
    directory: Path = pytestconfig.getoption("cache_dir")
    return directory
