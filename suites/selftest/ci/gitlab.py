"""Takes a job of GitLab CI and an event; gives the job that its script makes on a `Forge`."""

import re
from pathlib import Path
from typing import Any

import yaml

from suites.selftest.ci.forge import BRANCH, Forge, Job, UnknownStep, shell

REPOSITORY = "models"
KEYS = {"image", "timeout", "rules", "variables", "cache", "script", "artifacts"}
SETUP = "make -C detgate setup"


def run(file: Path, forge: Forge, event: str, variables: dict[str, str]) -> Job:
    """The script of the only job, on `merge_request_event` or `push`; `variables` replace those of the job.

    Raises:
        UnknownStep: a keyword, a rule or a variable that is not emulated, or no rule that holds.
    """
    (job,) = yaml.safe_load(file.read_text(encoding="utf-8")).values()
    if extra := set(job) - KEYS:
        raise UnknownStep(f"keys of the job: {extra}")
    return _Runner(forge, event, job, variables).run()


class _Runner:
    def __init__(self, forge: Forge, event: str, job: dict[str, Any], variables: dict[str, str]) -> None:
        self.forge, self.job = forge, job
        _, self.folder = forge.next_job()
        self.env = {
            "CI_PIPELINE_SOURCE": event,
            "CI_COMMIT_BRANCH": "" if event == "merge_request_event" else BRANCH,
            "CI_DEFAULT_BRANCH": BRANCH,
            "CI_PROJECT_DIR": str(self.folder),
            "CI_PROJECT_URL": f"file://{forge.repositories[REPOSITORY]}",
        }
        chosen = self.chosen_rule()
        for name, value in {**job["variables"], **chosen, **variables}.items():
            self.env[name] = self.filled(str(value))

    def chosen_rule(self) -> dict[str, str]:
        """The variables of the first rule that holds."""
        for rule in self.job["rules"]:
            found = re.fullmatch(r"\$(\w+) == (?:\$(\w+)|\"(\w+)\")", rule["if"])
            if found is None:
                raise UnknownStep(f"rule: {rule['if']}")
            wanted = self.env[found[2]] if found[2] else found[3]
            if self.env[found[1]] == wanted:
                variables: dict[str, str] = rule["variables"]
                return variables
        raise UnknownStep("no rule holds")

    def filled(self, text: str) -> str:
        return re.sub(r"\$(\w+)", lambda found: self.value(found[1]), text)

    def value(self, name: str) -> str:
        if name not in self.env:
            raise UnknownStep(f"${name}")
        return self.env[name]

    def run(self) -> Job:
        self.forge.clone(REPOSITORY, BRANCH, self.folder)
        for cache in self.job["cache"]:
            if self.policy(cache) != "push":
                for path in cache["paths"]:
                    self.forge.fetch(cache["key"], [], self.folder / path)
        done = shell(self.script(), self.folder, self.env)
        for cache in self.job["cache"]:
            if self.policy(cache) != "pull" and (done.returncode == 0 or cache.get("when") == "always"):
                for path in cache["paths"]:
                    self.forge.replace(cache["key"], self.folder / path)
        return Job(self.folder, {"script": done.returncode}, done.stdout, self.exposed())

    def policy(self, cache: dict[str, str]) -> str:
        return self.filled(cache.get("policy", "pull-push"))

    def script(self) -> str:
        """The lines as one script, as GitLab's runner makes of them; `make setup` has been done beforehand.

        It stands where the repository is cloned, for the line before makes it.
        """
        lines = list(self.job["script"])
        if SETUP not in lines:
            raise UnknownStep(f"wanted the line '{SETUP}'")
        before, after = lines[: lines.index(SETUP)], lines[lines.index(SETUP) + 1 :]
        cloned = shell("\n".join(before), self.folder, self.env)
        if cloned.returncode:
            raise UnknownStep(cloned.stdout)
        self.forge.install(self.folder / "detgate")
        return "\n".join(after)

    def exposed(self) -> str:
        """What the artifacts hold in Markdown."""
        (folder,) = self.job["artifacts"]["paths"]
        for report in self.job["artifacts"]["reports"]["junit"]:
            if not report.startswith(folder):
                raise UnknownStep(f"the report {report} is not in {folder}")
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted((self.folder / folder).glob("*.md")))
