"""Takes `baselines/known_failures/<engine>.json`; gives the checks that are expected to fail, and until when."""

import datetime
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import BaselineError
from harness.model.registry import first_fault

FOLDER = "known_failures"
# Whose move it is, by kind; and who must change the file.
OWNERS = {"notimpl": "detgate's to do", "notyet": "the engine's to do", "never": "cannot be mended"}
KEEPER = "whoever keeps that file"
SCHEMA_FILE = "known_failures.schema.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KnownFailure(_Strict):
    """One check that is expected to fail, by its pytest node id."""

    id: str = Field(min_length=1, description="node id, as `pytest --collect-only -q` prints it")
    kind: Literal["notimpl", "notyet", "never"] = Field(
        description="notimpl: detgate's to do; notyet: the engine's; never: it cannot be"
    )
    stage: Literal["export", "graph", "build", "open", "run", "accuracy", "performance"]
    reason: str = Field(min_length=1)
    link: str | None = Field(description="where it is followed; null only where there is no such place")
    expires: datetime.date = Field(description="from this day on the entry fails the run: look again, then renew it")


class KnownFailures(_Strict):
    """All of one engine."""

    schema_: Literal[1] = Field(alias="schema")
    engine: str
    failures: tuple[KnownFailure, ...]


def known_schema() -> dict[str, Any]:
    """JSON schema of a file of known failures, generated from the types."""
    schema = KnownFailures.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "detgate known failures"}


def load_known(baselines: Path, engine: str) -> tuple[KnownFailure, ...]:
    """The engine's known failures; none where it has no file.

    Raises:
        BaselineError: the file breaks its schema, is another engine's, or names a check twice.
    """
    path = baselines / FOLDER / f"{engine}.json"
    if not path.exists():
        return ()
    try:
        found = KnownFailures.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BaselineError(f"cannot read {path}: {error}", "mend the file") from error
    except ValidationError as error:
        raise BaselineError(f"{path}: {first_fault(error)}", f"mend the file; its form is in {SCHEMA_FILE}") from error
    if found.engine != engine:
        raise BaselineError(f"{path}: wanted engine '{engine}', found '{found.engine}'", "correct 'engine'")
    ids = [failure.id for failure in found.failures]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise BaselineError(f"{path}: {twice[0]} is there twice", "remove one of the entries")
    return found.failures


def require_current(baselines: Path, engine: str, failures: tuple[KnownFailure, ...], today: datetime.date) -> None:
    """Refuse entries whose day has come.

    Raises:
        BaselineError: names the first and how many there are.
    """
    expired = [failure for failure in failures if failure.expires <= today]
    if expired:
        first, count = expired[0], "1 entry has" if len(expired) == 1 else f"{len(expired)} entries have"
        link = f", followed at {first.link}" if first.link else ""
        raise BaselineError(
            f"{baselines / FOLDER / f'{engine}.json'}: {count} expired, first {first.id} "
            f"({first.expires}, {OWNERS[first.kind]}: {first.reason}{link})",
            f"{KEEPER}: remove the entry and run `pytest '{first.id}'`; where that still fails put it back with a new "
            "day and say why in the commit",
        )
