"""Takes a workflow of GitHub Actions and an event; gives the job that its steps make on a `Forge`."""

import re
from pathlib import Path
from typing import Any

import yaml

from suites.selftest.ci.forge import BRANCH, Forge, Job, UnknownStep, shell

REPOSITORY = "owner/models"
HASH_FILES = "hashFiles('detgate/constraints.txt', format('{0}/models/*', env.BASELINES))"
SETUP = "make setup"


def run(workflow: Path, forge: Forge, event: str, variables: dict[str, str]) -> Job:
    """Every step whose condition holds, in order; `variables` replace those of the workflow's `env`.

    Raises:
        UnknownStep: an action, an expression or a condition that is not emulated.
    """
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    if event not in content[True]:  # YAML 1.1 reads the key `on` as true
        raise UnknownStep(f"the workflow does not start on {event}")
    (job,) = content["jobs"].values()
    return _Runner(forge, event, {**content["env"], **variables}, job).run()


class _Runner:
    def __init__(self, forge: Forge, event: str, env: dict[str, Any], job: dict[str, Any]) -> None:
        self.forge, self.event, self.steps = forge, event, job["steps"]
        self.number, self.workspace = forge.next_job()
        self.page = forge.root / f"page-{self.number}.md"
        self.page.touch()
        self.env: dict[str, str] = {}
        for table in (env, job["env"]):
            self.env |= {name: self.filled(str(value)) for name, value in table.items()}
        self.codes: dict[str, int] = {}
        self.text: list[str] = []
        self.saved_at_end: list[dict[str, str]] = []

    def run(self) -> Job:
        for step in self.steps:
            if self.holds(step.get("if", "success()")):
                self.step(step)
        for inputs in self.saved_at_end if not self.failed else ():
            self.forge.keep(inputs["key"], self.workspace / inputs["path"])
        return Job(self.workspace, self.codes, "".join(self.text), self.page.read_text(encoding="utf-8"))

    @property
    def failed(self) -> bool:
        return any(self.codes.values())

    def holds(self, condition: str) -> bool:
        bare = re.sub(r"^\$\{\{\s*(.*?)\s*\}\}$", r"\1", condition)
        known = {
            "success()": not self.failed,
            "always()": True,
            "!cancelled()": True,
            "github.event_name == 'push'": not self.failed and self.event == "push",
        }
        if bare not in known:
            raise UnknownStep(f"if: {condition}")
        return known[bare]

    def filled(self, text: str) -> str:
        """Text with the values of its expressions."""
        return re.sub(r"\$\{\{\s*(.*?)\s*\}\}", lambda found: self.value(found[1]), text)

    def value(self, expression: str) -> str:
        known = {
            "github.repository": REPOSITORY,
            "github.workspace": str(self.workspace),
            "github.run_id": str(self.number),
            "github.run_attempt": "1",
            "runner.os": "Linux",
            "vars.PIP_EXTRA_INDEX_URL": "",
            HASH_FILES: "0123abcd",
            **{f"env.{name}": value for name, value in self.env.items()},
        }
        if expression not in known:
            raise UnknownStep(f"${{{{ {expression} }}}}")
        return known[expression]

    def step(self, step: dict[str, Any]) -> None:
        if extra := set(step) - {"name", "if", "uses", "with", "run", "working-directory"}:
            raise UnknownStep(f"keys of a step: {extra}")
        if "uses" in step:
            self.action(step["uses"], {name: self.filled(str(v)) for name, v in step.get("with", {}).items()})
        else:
            self.shell(step)

    def shell(self, step: dict[str, Any]) -> None:
        folder = self.workspace / self.filled(step.get("working-directory", "."))
        script = self.filled(step["run"])
        if script == SETUP:
            self.forge.install(folder)
            return
        given = {
            "GITHUB_ACTIONS": "true",
            "GITHUB_EVENT_NAME": self.event,
            "GITHUB_WORKSPACE": str(self.workspace),
            "GITHUB_STEP_SUMMARY": str(self.page),
        }
        done = shell(script, folder, self.env | given)
        self.codes[step["name"]] = done.returncode
        self.text.append(done.stdout)

    def action(self, name: str, inputs: dict[str, str]) -> None:
        if name == "actions/checkout@v4":
            target = self.workspace / inputs.get("path", ".")
            self.forge.clone(inputs.get("repository", REPOSITORY), inputs.get("ref", BRANCH), target)
        elif name == "actions/setup-python@v5":
            if tuple(map(int, inputs["python-version"].split("."))) < (3, 11):
                raise UnknownStep(f"Python {inputs['python-version']}")
        elif name in ("actions/cache@v4", "actions/cache/restore@v4"):
            self.forge.fetch(inputs["key"], inputs["restore-keys"].split(), self.workspace / inputs["path"])
            if name == "actions/cache@v4":
                self.saved_at_end.append(inputs)
        elif name == "actions/cache/save@v4":
            self.forge.keep(inputs["key"], self.workspace / inputs["path"])
        elif name == "actions/upload-artifact@v4":
            if not (self.workspace / inputs["path"]).is_dir():
                raise UnknownStep(f"no artifact at {inputs['path']}")
        else:
            raise UnknownStep(f"uses: {name}")
