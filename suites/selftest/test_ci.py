"""The CI examples, their steps executed: main is kept, pull requests are held to it, and a regression is red."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from suites.selftest.ci import github, gitlab
from suites.selftest.ci.forge import Forge, Job, UnknownStep, commit
from suites.selftest.conftest import CHECKOUT

pytestmark = pytest.mark.selftest

WORKFLOW = CHECKOUT / ".github" / "workflows" / "gate.yml"
PIPELINE = CHECKOUT / "docs" / "gitlab-ci.yml"
CELL = "pisa-mini-fp32-onnxruntime"
# In place of Python: keeps its words, leaves what a run leaves, and exits as it is told.
STUB = """#!/bin/sh
echo "$@" >> "{log}"
while [ $# -gt 0 ]; do [ "$1" = --results ] && results=$2; shift; done
mkdir -p "$(dirname "$results")/record/{cell}"
touch "$results"
echo "{folder}" > "$(dirname "$results")/record/{cell}/record.json"
exit $(cat "{code}")
"""


class Place:
    """A repository of models on a forge, and what its jobs were asked for."""

    def __init__(self, root: Path, forge: str) -> None:
        self.root, self.runner = root, forge
        self.log, self.code = root / "log", root / "code"
        self.exits_with(0)
        self.models = root / "models"
        (self.models / "baselines").mkdir(parents=True)
        (self.models / "baselines" / "README").touch()
        commit(self.models, "models")
        tool = root / "detgate"
        tool.mkdir()
        (tool / "Makefile").touch()
        commit(tool, "detgate")
        self.forge = Forge(root, self.install, {github.REPOSITORY: self.models, "models": self.models, "tool": tool})

    def install(self, folder: Path) -> None:
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(STUB.format(log=self.log, code=self.code, cell=CELL, folder=folder))
        python.chmod(0o755)

    def exits_with(self, code: int) -> None:
        self.code.write_text(str(code))

    def job(self, request: bool) -> Job:
        """The job of a push to main, or of a pull or merge request."""
        self.log.write_text("")
        if self.runner == "github":
            event = "pull_request" if request else "push"
            return github.run(WORKFLOW, self.forge, event, {"DETGATE_REPOSITORY": "tool"})
        event = "merge_request_event" if request else "push"
        tool = f"file://{self.forge.repositories['tool']}"
        return gitlab.run(PIPELINE, self.forge, event, {"DETGATE_REPOSITORY": tool})

    @property
    def asked(self) -> list[list[str]]:
        """The words of each call of Python."""
        return [line.split() for line in self.log.read_text().splitlines()]


@pytest.fixture(params=["github", "gitlab"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path, request.param)


def option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


def test_accuracy_then_performance_are_run(place: Place) -> None:
    place.job(request=False)
    assert [words[:4] for words in place.asked] == [
        ["-m", "pytest", "-m", kind] for kind in ("accuracy", "performance")
    ]


def test_a_first_request_without_a_record_of_main_is_green(place: Place) -> None:
    assert place.job(request=True).green
    assert "--against" not in place.asked[0]


def test_a_request_is_held_to_what_main_found(place: Place) -> None:
    assert place.job(request=False).green
    assert "--against" not in place.asked[0]
    place.job(request=True)
    against = Path(option(place.asked[0], "--against") or "")
    assert (against / "record" / CELL / "record.json").is_file()
    assert (against / "results.json").is_file()


def test_a_request_does_not_become_what_others_are_held_to(place: Place) -> None:
    place.job(request=True)
    place.job(request=True)
    assert "--against" not in place.asked[0]


@pytest.mark.parametrize("code", [1, 3, 4, 5])
def test_a_run_that_fails_makes_a_red_job_and_is_not_kept(place: Place, code: int) -> None:
    place.exits_with(code)
    assert not place.job(request=False).green
    place.exits_with(0)
    place.job(request=True)
    assert "--against" not in place.asked[0]


def test_speed_is_measured_after_accuracy_failed(place: Place) -> None:
    place.exits_with(1)
    place.job(request=True)
    assert len(place.asked) == 2


def test_the_newest_main_is_what_requests_are_held_to(place: Place) -> None:
    place.job(request=False)
    newer = place.job(request=False)
    place.job(request=True)
    record = Path(option(place.asked[0], "--against") or "") / "record" / CELL / "record.json"
    assert record.read_text() == f"{newer.folder / 'detgate'}\n"


def test_cells_must_be_judged_by_name(place: Place) -> None:
    place.job(request=False)
    assert "--require *-mini-*" in " ".join(place.asked[0])


def test_every_call_of_pytest_is_a_command_line_that_it_takes(
    place: Place, accepts: Callable[[list[str]], None]
) -> None:
    place.job(request=False)
    place.job(request=True)
    for words in place.asked:
        accepts(words[2:])


# --- the emulation refuses what it does not know


@pytest.mark.parametrize(
    "change",
    [
        {"uses": "actions/surprise@v1"},
        {"name": "x", "run": "echo ${{ secrets.TOKEN }}"},
        {"name": "x", "run": "true", "if": "failure()"},
        {"name": "x", "run": "true", "shell": "pwsh"},
    ],
    ids=["action", "expression", "condition", "keyword"],
)
def test_an_unknown_step_of_github_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    place = Place(tmp_path, "github")
    content = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    content["jobs"]["gate"]["steps"].append(change)
    edited = tmp_path / "gate.yml"
    edited.write_text(yaml.safe_dump(content))
    with pytest.raises(UnknownStep):
        github.run(edited, place.forge, "push", {"DETGATE_REPOSITORY": "tool"})


@pytest.mark.parametrize(
    "change",
    [{"services": ["docker"]}, {"variables": {"X": "$CI_SURPRISE"}}, {"rules": [{"if": "$CI_COMMIT_TAG"}]}],
    ids=["keyword", "variable", "rule"],
)
def test_an_unknown_part_of_gitlab_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    place = Place(tmp_path, "gitlab")
    content = yaml.safe_load(PIPELINE.read_text(encoding="utf-8"))
    content["detgate"] |= change
    edited = tmp_path / "gitlab-ci.yml"
    edited.write_text(yaml.safe_dump(content))
    with pytest.raises(UnknownStep):
        gitlab.run(edited, place.forge, "push", {})


# --- the whole, with the environment that runs this


class Real(Place):
    """The same with this checkout and this environment, on one model and one cell."""

    def __init__(self, root: Path, forge: str) -> None:
        super().__init__(root, forge)
        baselines = self.models / "baselines"
        for name in ("models", "recorded"):
            (baselines / name).mkdir()
            shutil.copy(CHECKOUT / "baselines" / name / "pisa-mini.json", baselines / name)
        commit(self.models, "a model and what is expected of it")
        tool = root / "checkout"
        leave = shutil.ignore_patterns(".git", ".venv", "results", "__pycache__", ".*_cache", "*.egg-info")
        shutil.copytree(CHECKOUT, tool, ignore=leave)
        commit(tool, "detgate as it stands")
        self.forge.repositories["tool"] = tool

    def install(self, folder: Path) -> None:
        (folder / ".venv").symlink_to(Path(sys.prefix))

    def real_job(self, request: bool) -> Job:
        variables = {"DETGATE_REQUIRE": CELL, "DETGATE_OPTIONS": "--engine onnxruntime --precision fp32"}
        if self.runner == "github":
            event = "pull_request" if request else "push"
            return github.run(WORKFLOW, self.forge, event, variables | {"DETGATE_REPOSITORY": "tool"})
        event = "merge_request_event" if request else "push"
        tool = f"file://{self.forge.repositories['tool']}"
        return gitlab.run(PIPELINE, self.forge, event, variables | {"DETGATE_REPOSITORY": tool})

    def swap_red_and_blue(self) -> None:
        """What breaks a detector in one line of its model's file."""
        file = self.models / "baselines" / "models" / "pisa-mini.json"
        content = json.loads(file.read_text())
        content.setdefault("overrides", {})["model.data_preprocessor.bgr_to_rgb"] = False
        file.write_text(json.dumps(content))
        commit(self.models, "a regression")


@pytest.mark.slow
@pytest.mark.parametrize("forge", ["github", "gitlab"])
def test_a_planted_regression_is_red_with_its_figures_and_without_it_all_is_green(tmp_path: Path, forge: str) -> None:
    place = Real(tmp_path, forge)
    main = place.real_job(request=False)
    assert main.green, main.text
    same = place.real_job(request=True)
    assert same.green, same.text
    assert f"`{CELL}` | against before | same bits | – | PASS" in same.page
    place.swap_red_and_blue()
    worse = place.real_job(request=True)
    assert not worse.green
    assert "## detgate: failed (2 REGRESSED" in worse.page
    assert f"- **REGRESSED** `{CELL}` map\\_50\\_95: 0." in worse.page
    assert f"| `{CELL}` | against before | " in worse.page
    if forge == "github":
        assert f"::error title=REGRESSED {CELL}::" in worse.text
    print(worse.page)
