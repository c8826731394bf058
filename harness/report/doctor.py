"""Takes this machine; gives one screen: what runs here, what is missing, and the line that mends each."""

import importlib.util
import json
import platform
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import cache
from harness.detect.dataset import fetch_command
from harness.engines.reference import require_graph_checks
from harness.engines.table import ENGINES, get_engine
from harness.environment import collect
from harness.errors import CheckpointError, Missing
from harness.model.checkpoint import find
from harness.model.mmdet import INSTALL_MMDET
from harness.model.registry import ModelSpec, load_models
from harness.pipeline import EMBEDDED
from harness.report.grid import Format, markdown_table

INDENT = 13

PACKAGES = {
    "torch": "make setup",
    "mmdet": INSTALL_MMDET,
    "mmengine": INSTALL_MMDET,
    "mmcv": INSTALL_MMDET,
    "onnx": "make setup",
    "onnxsim": "make setup",
    "hotcoco": "make setup",
    "pycocotools": "make setup",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for: what of it, and where it is missing, the command that mends it.

    below: the command stands on a line of its own.
    """

    subject: str
    said: str
    remedy: str = ""
    below: bool = False

    @property
    def lines(self) -> list[str]:
        """For a terminal."""
        line = f"{self.subject:<{INDENT}}{self.said}"
        if not self.remedy:
            return [line]
        return [line, f"{'':<{INDENT}}mend it: {self.remedy}"] if self.below else [f"{line}. mend it: {self.remedy}"]


def render(findings: Sequence[Finding], healthy: bool, form: Format, width: int) -> str:
    """What was found, one screen of lines for a terminal, as JSON or in Markdown."""
    if form == "json":
        found = [{"subject": f.subject, "found": f.said, "mend_it": f.remedy or None} for f in findings]
        return json.dumps({"healthy": healthy, "findings": found}, indent=1)
    if form == "markdown":
        rows = [(f.subject, f.said, f"`{f.remedy}`" if f.remedy else "") for f in findings]
        return markdown_table(("looked for", "found", "mend it"), rows)
    lines = [line for finding in findings for line in finding.lines]
    filler = textwrap.TextWrapper(width, subsequent_indent=" " * INDENT, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(filler.fill, lines))


def examine(checkpoints: Path, data: Path) -> tuple[list[Finding], bool]:
    """What is here and what is not, and whether at least one engine and every package it stands on are.

    Args:
        checkpoints, data: where weights and COCO are looked for.
    """
    environment = collect()
    device = environment.device.get("gpu") or environment.device["cpu"]
    findings = [
        Finding("device", f"{device}, fingerprint {environment.fingerprint}"),
        Finding("python", platform.python_version()),
    ]
    absent = [
        Finding("missing", name, remedy) for name, remedy in PACKAGES.items() if importlib.util.find_spec(name) is None
    ]
    engines = [_engine(name) for name in ENGINES]
    healthy = not absent and any(not engine.remedy for engine in engines)
    return [*findings, *absent, *engines, *_places(checkpoints, data)], healthy


def _engine(name: str) -> Finding:
    """What there is of an engine, or what is missing with the command that mends it."""
    engine = get_engine(name)
    precisions = ", ".join(engine.capabilities.precisions)
    try:
        reason = engine.available()
        if reason is not None:
            raise Missing(reason, engine.remedy)
        if engine.capabilities.source == "graph":
            require_graph_checks()
    except Missing as missing:
        return Finding("engine", f"{name} missing: {missing.cause}", missing.remedy, below=True)
    return Finding("engine", f"{name} {engine.version()}, {precisions}")


def _places(checkpoints: Path, data: Path) -> list[Finding]:
    """Cache, checkpoints and COCO: where they are looked for, whether they are there, and what fetches them."""
    directory = cache.default_directory()
    writable = "" if _writable(directory) else ": NOT writable, set DETGATE_CACHE"
    there = "" if checkpoints.is_dir() else ": not there (--checkpoints DIR)"
    folders = [checkpoints, directory / "checkpoints"]
    coco = Finding("COCO", str(data))
    if not data.is_dir():
        coco = Finding("COCO", f"{data}: not there (--data-dir DIR)", fetch_command(data))
    return [
        Finding("cache", f"{directory}{writable}"),
        Finding("checkpoints", f"{checkpoints}{there}"),
        *(_checkpoint(spec, folders) for spec in load_models().values()),
        coco,
    ]


def _checkpoint(spec: ModelSpec, folders: list[Path]) -> Finding:
    embedded = [EMBEDDED / "weights"] if spec.dataset == "mini" else []
    try:
        return Finding("", f"{spec.name} {find(spec, [*embedded, *folders]).path}")
    except Missing as missing:
        return Finding("", f"{spec.name} not there", missing.remedy)
    except CheckpointError as error:
        return Finding("", f"{spec.name} {error.cause}", error.remedy)


def _writable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False
