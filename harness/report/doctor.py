"""Takes this machine; gives one screen: what runs here, what is missing, and the line that mends each."""

import importlib.util
import os
import platform
import tempfile
from pathlib import Path

from harness import cache
from harness.engines.table import ENGINES, get_engine
from harness.environment import collect
from harness.model.mmdet import INSTALL_MMDET

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
        engine = get_engine(name)
        reason = engine.available()
        usable += reason is None
        precisions = ", ".join(engine.capabilities.precisions)
        state = (
            f"{engine.version()}, {precisions}" if reason is None else f"missing: {reason}. mend it: {engine.remedy}"
        )
        lines.append(f"engine       {name} {state}")
    return [*lines, *_places()], healthy and usable > 0


def _places() -> list[str]:
    """Cache, checkpoints and COCO: where they are looked for, and whether they are there."""
    directory = cache.default_directory()
    places = [f"cache        {directory}{'' if _writable(directory) else ': NOT writable, set DETGATE_CACHE'}"]
    checkpoints = Path(os.environ.get("CHECKPOINTS_DIR") or "checkpoints")
    places.append(f"checkpoints  {checkpoints}{'' if checkpoints.is_dir() else ': not there (--checkpoints DIR)'}")
    data = Path(os.environ.get("DATASETS_DIR") or "coco")
    return [*places, f"COCO         {data}{'' if data.is_dir() else ': not there (--data-dir DIR)'}"]


def _writable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False
