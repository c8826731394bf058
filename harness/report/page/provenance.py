"""Takes a cell's results and where they were measured; gives what made them, and the commands that repeat them."""

import shlex

from harness.judge.record import EnvironmentResult
from harness.judge.verdict import Status
from harness.report.page.belief import given
from harness.report.page.shown import Place
from harness.report.page.sources import Source, fails, parts_of
from harness.report.page.words import PARTS
from harness.report.results import CellResult

Facts = tuple[tuple[str, str], ...]
_MARKERS = {"accuracy": "accuracy", "against": "accuracy", "performance": "performance", "conformance": "conformance"}


def facts(source: Source) -> Facts:
    """What ran, and what it was made of: names and values, the unknown left out."""
    cell, data = source.cell, source.cell.dataset
    rows = {
        "model": cell.model,
        "precision asked for": cell.precision,
        "precision that ran": cell.precision_ran,
        "engine": " ".join(filter(None, (cell.engine, cell.engine_version))),
        "engine options": ", ".join(f"{name}={value}" for name, value in cell.options.items()),
        "ran on": cell.device,
        "batch": None if cell.batch is None else str(cell.batch),
        "started from": cell.start,
        "data set": None if data is None else f"{data.images} images of {data.name}, SHA-256 {data.sha256}",
        "note on the data set": data.note if data else "",
        **{f"SHA-256 of {name}": sha256 for name, sha256 in cell.artifacts.model_dump().items()},
        "judged with": ", ".join(given(cell)),
        "device's fingerprint": source.environment.fingerprint,
        "results file": str(source.file),
    }
    return tuple((name, value) for name, value in rows.items() if value)


def commands(source: Source, against: str) -> Facts:
    """What repeats each kind of check, what is to be run next, and what shows more; each command once."""
    cell = source.cell
    rows: dict[str, str] = {}
    for name in parts_of(cell):
        part = getattr(cell, name)
        rows.setdefault(part.command or _repeat(cell, name), f"repeat {PARTS[name]}")
        if part.remedy and part.status is not Status.PASS:
            rows.setdefault(part.remedy, f"next, for {PARTS[name]}")
    if against and source.before is not None:
        words = ["python", "-m", "harness", "compare", against, str(source.file)]
        rows.setdefault(shlex.join(words), "what changed since the earlier run")
    if fails(cell):
        rows.setdefault(f"python -m harness blame {cell.id}", "look for the stage and the layer")
    return tuple((what, command) for command, what in rows.items())


def _repeat(cell: CellResult, name: str) -> str:
    """Where an older detgate kept no command: by the cell's names and the options that were kept."""
    words = ["pytest", "-m", _MARKERS[name], "--model", cell.model, "--precision", cell.precision]
    words += ["--engine", cell.engine]
    for option, value in getattr(getattr(cell, name), "given", {}).items():
        words += [option, value] if value else [option]
    return shlex.join(words)


def place(file: str, environment: EnvironmentResult) -> Place:
    """Where a results file was measured."""
    device = environment.device
    rows = {
        "results file": file,
        "fingerprint": environment.fingerprint,
        "platform": environment.platform,
        "python": environment.python,
        **{f"device: {name.replace('_', ' ')}": str(value) for name, value in device.items() if value is not None},
        **{f"version of {name}": version for name, version in environment.versions.items()},
    }
    name = str(device.get("gpu") or device.get("cpu") or "unknown device")
    return Place(file, name, environment.fingerprint, tuple(rows.items()))
