"""Takes nothing; gives a run to make a page of: a regression, a run that cannot be trusted, an improvement, gaps."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from harness.environment import collect
from harness.judge import record as records
from harness.measure.curves import Curves
from harness.report import conformance
from harness.report.results import CellResult
from suites.selftest.conftest import RECORDS

WORSE, BEFORE = "pisa-mini-int8-onnxruntime", "pisa-mini-fp32-onnxruntime"
HOSTILE = '<script>alert("1")</script>'
CLASSES = ("red disc", HOSTILE, "star")
VOID = frozenset({"meta", "br", "image", "use", "rect", "path", "img", "link"})
PART: dict[str, Any] = {"expected": None, "tolerance": None, "reason": ""}


def accuracy(status: str, ap: float | None = None, expected: float | None = None, **changes: Any) -> dict[str, Any]:
    """The accuracy of a cell; AP50 lies 0.2 above AP."""
    figures = {"map_50_95": ap, "map_50": None if ap is None else ap + 0.2}
    wanted = None if expected is None else {"map_50_95": expected, "map_50": expected + 0.2}
    bound = {"expected": wanted, "tolerance": None if expected is None else 0.005}
    return {**PART, **figures, **bound, "status": status, "fails": status in ("REGRESSED", "INVALID"), **changes}


def speed(status: str, fps: float | None = 80.0, **changes: Any) -> dict[str, Any]:
    """The speed of a cell, in 31 calls."""
    steps = [100 + 0.5 * place for place in range(21)] if fps else []
    found = {"fps": fps, "latency_ms": None, "cv": None, "rounds": 31, "uncertainty": 0.004, "latency_steps_ms": steps}
    return {**PART, **found, "status": status, "fails": status in ("REGRESSED", "INVALID"), **changes}


def cell(model: str, precision: str, engine: str, **parts: Any) -> dict[str, Any]:
    """A cell of a results file."""
    names = {"id": f"{model}-{precision}-{engine}", "model": model, "precision": precision, "engine": engine}
    return {**names, "precision_ran": precision, "batch": 8, "start": "checkpoint", "device": "cpu", **parts}


def missing(model: str, precision: str, engine: str, remedy: str) -> dict[str, Any]:
    """A cell whose engine is not here."""
    lacks = {"reason": f"needs: {engine} is not installed", "remedy": remedy}
    return cell(
        model, precision, engine, accuracy=accuracy("MISSING", **lacks), performance=speed("MISSING", None, **lacks)
    )


def results(file: Path, *cells: Mapping[str, Any]) -> Path:
    """A results file of this machine."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"schema": 1, "environment": collect().as_json(), "cells": cells}))
    return file


def curves(height: float, classes: tuple[str, ...] = CLASSES) -> Curves:
    """Precision that falls from `height` to nothing."""
    recall = np.linspace(0, 1, 101)
    precision = np.broadcast_to((height * (1 - recall))[None, :, None, None], (10, 101, len(classes), 4)).copy()
    reached = np.full((10, len(classes), 4), 0.9)
    return Curves(precision, reached, np.linspace(0.5, 0.95, 10), recall, classes, ("all", "small", "medium", "large"))


def record(folder: Path, source: str, height: float, cell_id: str = WORSE) -> dict[str, Any]:
    """A copy of one of the project's records, as that of `cell_id`; gives its `record.json`."""
    shutil.copytree(RECORDS / source, folder / cell_id)
    file = folder / cell_id / records.RECORD
    content: dict[str, Any] = json.loads(file.read_text()) | {"id": cell_id}
    file.write_text(json.dumps(content))
    curves(height).save(folder / cell_id / records.CURVES)
    return content


def worse(kept: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The cell that got worse: all that a page can show is there."""
    ap, old = kept["metrics"]["map_50_95"], before["metrics"]["map_50_95"]
    change = {"figure": ap, "expected": old, "tolerance": 0.005, "interval": (-0.0104, -0.0003)}
    checks = {"map_50_95": {"status": "REGRESSED", "reason": "fell", **change}}
    hops = [("torch -> onnx", 6e-7, 1e-4), ("int8 graph -> onnxruntime", 0.5, 0.35)]
    stages = [
        {"name": name, "relative": error, "tolerance": bound, "map_change": 0.0, "matched": 1.0, "broken": ""}
        for name, error, bound in hops
    ]
    figures = {"metrics": kept["metrics"], "per_class": dict(zip(CLASSES, (0.1, 0.5, 0.6), strict=True))}
    return cell(
        "pisa-mini",
        "int8",
        "onnxruntime",
        dataset={**kept["dataset"], "full_val2017": False},
        artifacts=kept["artifacts"],
        accuracy=accuracy(
            "REGRESSED", ap, old, map_50=kept["metrics"]["map_50"], command="pytest -m accuracy", **figures
        ),
        performance=speed("RECORDED"),
        against={"status": "REGRESSED", "fails": True, "reason": "map_50_95: fell", "checks": checks},
        conformance={"status": "PASS", "reason": "", "checks": {"padding": {**PART, "status": "PASS", "figure": 0.0}}},
        stages=stages,
    )


@dataclass(frozen=True)
class Place:
    """Where the run and the earlier one lie."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> "Place":
        """Both runs."""
        place = cls(root)
        kept = record(root / "now" / records.FOLDER, WORSE, 0.5)
        before = record(root / "before", BEFORE, 0.9)
        results(
            place.results,
            worse(kept, before),
            cell("pisa-mini", "int8", "openvino", accuracy=accuracy("PASS", 0.43, 0.43)),
            cell("paa-mini", "fp32", "openvino", accuracy=accuracy("INVALID", reason=f"integrity: {HOSTILE} ran")),
            cell("paa-mini", "int8", "openvino", accuracy=accuracy("IMPROVED", 0.43, 0.40)),
            *(missing("paa-mini", precision, "tensorrt", "pip install tensorrt") for precision in ("fp32", "int8")),
        )
        return place

    @property
    def results(self) -> Path:
        return self.root / "now" / "results.json"

    @property
    def before(self) -> Path:
        return self.root / "before"


@dataclass
class Element:
    """A tag, its attributes, and what stands in it."""

    tag: str
    attributes: dict[str, str]
    parent: "Element | None" = None
    children: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Of this element and of those in it, with single spaces."""
        words = (child if isinstance(child, str) else child.text for child in self.children)
        return " ".join(" ".join(words).split())

    def all(self, *tags: str) -> list["Element"]:
        """Those below it, in order; of any tag where none is named."""
        inside = [child for child in self.children if isinstance(child, Element)]
        return [found for one in inside for found in ([one] if not tags or one.tag in tags else []) + one.all(*tags)]

    def where(self, **attributes: str) -> list["Element"]:
        """Those below it with these attributes (`cls` for class)."""
        wanted = {"class" if name == "cls" else name: value for name, value in attributes.items()}
        return [one for one in self.all() if wanted.items() <= one.attributes.items()]


class Tree(HTMLParser):
    """The page as elements; a tag that is closed where another is open is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = self.at = Element("document", {})
        self.feed(text)
        self.close()
        assert self.at is self.root, f"<{self.at.tag}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {name: value or "" for name, value in attrs}, self.at)
        self.at.children.append(made)
        if tag not in VOID:
            self.at = made

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.at.children.append(Element(tag, {name: value or "" for name, value in attrs}, self.at))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.at.tag == tag, f"</{tag}> closes <{self.at.tag}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


def conformance_report(file: Path) -> Path:
    """A report for an engine's team: a promise that is held, one that could not be asked for, one that is not held."""
    same = {**PART, "figure": 0.1, "expected": 0.0, "reason": "outputs are the same: 0.1 relative L2 error, at most 0"}
    checks = {status.lower(): {**same, "status": status} for status in ("PASS", "MISSING", "INVALID")}
    found = cell(*BEFORE.rsplit("-", 2), conformance={"status": "INVALID", "reason": "", "checks": checks})
    command = "pytest -m conformance --baselines a-long-path/of/baselines -k"
    conformance.write(file, [CellResult.model_validate(found)], lambda _, check: f"{command} {check}")
    return file
