"""Takes this machine; gives one screen: what runs here, what is missing, and the line that mends each."""

import importlib.util
import os
import platform
import tempfile
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


def report() -> tuple[list[str], bool]:
    """The lines, and whether at least one engine and every package it stands on are here."""
    environment = collect()
    device = environment.device.get("gpu") or environment.device["cpu"]
    lines = [
        f"device       {device}, fingerprint {environment.fingerprint}",
        f"python       {platform.python_version()}",
    ]
    healthy = True
    for name, remedy in PACKAGES.items():
        if importlib.util.find_spec(name) is None:
            healthy = False
            lines.append(f"missing      {name}: {remedy}")
    usable = 0
    for name in ENGINES:
        said, here = _engine(name)
        lines += said
        usable += here
    return [*lines, *_places()], healthy and usable > 0


def _engine(name: str) -> tuple[list[str], bool]:
    """What there is of an engine, or what is missing with the command that mends it below; and whether it can run."""
    engine = get_engine(name)
    precisions = ", ".join(engine.capabilities.precisions)
    try:
        reason = engine.available()
        if reason is not None:
            raise Missing(reason, engine.remedy)
        if engine.capabilities.source == "graph":
            require_graph_checks()
    except Missing as missing:
        return [f"engine       {name} missing: {missing.cause}", f"{'':<13}mend it: {missing.remedy}"], False
    return [f"engine       {name} {engine.version()}, {precisions}"], True


def _places() -> list[str]:
    """Cache, checkpoints and COCO: where they are looked for, whether they are there, and what fetches them."""
    directory = cache.default_directory()
    places = [f"cache        {directory}{'' if _writable(directory) else ': NOT writable, set DETGATE_CACHE'}"]
    checkpoints = Path(os.environ.get("CHECKPOINTS_DIR") or "checkpoints")
    places.append(f"checkpoints  {checkpoints}{'' if checkpoints.is_dir() else ': not there (--checkpoints DIR)'}")
    folders = [checkpoints, directory / "checkpoints"]
    places += [f"             {_checkpoint(spec, folders)}" for spec in load_models().values()]
    data = Path(os.environ.get("DATASETS_DIR") or "coco")
    missing = f": not there (--data-dir DIR). mend it: {fetch_command(data)}"
    return [*places, f"COCO         {data}{'' if data.is_dir() else missing}"]


def _checkpoint(spec: ModelSpec, folders: list[Path]) -> str:
    embedded = [EMBEDDED / "weights"] if spec.dataset == "mini" else []
    try:
        return f"{spec.name} {find(spec, [*embedded, *folders]).path}"
    except Missing as missing:
        return f"{spec.name} not there. mend it: {missing.remedy}"
    except CheckpointError as error:
        return f"{spec.name} {error.cause}. mend it: {error.remedy}"


def _writable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False
