"""Takes the running machine; gives `Environment`: software versions, and the device with its fingerprint."""

import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

# Some packages are published under several names that install the same import package.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "mmdet": ("mmdet",),
    "mmcv": ("mmcv", "mmcv-lite"),
    "mmengine": ("mmengine",),
    "onnx": ("onnx",),
    "onnxsim": ("onnxsim",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "ixrt": ("ixrt",),
    "tvm": ("tvm", "apache-tvm"),
    "numpy": ("numpy",),
    "opencv": ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
}
# Query field of each vendor's tool -> our name. Iluvatar's ixsmi names its power fields differently per release.
GPU_TOOLS: Mapping[str, Mapping[str, str]] = {
    "nvidia-smi": {
        "name": "gpu",
        "power.limit": "gpu_power_limit",
        "clocks.max.sm": "gpu_max_sm_clock",
        "driver_version": "gpu_driver",
    },
    "ixsmi": {"name": "gpu", "driver_version": "gpu_driver"},
}
GPU_TIMEOUT_S = 20.0
CPU_ROOT = Path("/sys/devices/system/cpu")
CPU_INFO = Path("/proc/cpuinfo")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")

Device = dict[str, str | int | float | None]


@dataclass(frozen=True)
class Environment:
    """Where a measurement was made.

    versions: package -> version, installed ones only, and the GPU driver; they are under test, so never compared.
    device: what speed depends on and software cannot change; None where it cannot be read.
    """

    python: str
    platform: str
    versions: dict[str, str]
    device: Device

    @property
    def fingerprint(self) -> str:
        """12 hex digits that are equal exactly where the device is: speed is judged only among equals."""
        return hashlib.sha256(json.dumps(self.device, sort_keys=True).encode()).hexdigest()[:12]

    def as_json(self) -> dict[str, Any]:
        """The `environment` object of a results file."""
        return {
            "python": self.python,
            "platform": self.platform,
            "versions": dict(self.versions),
            "device": dict(self.device),
            "fingerprint": self.fingerprint,
        }


@functools.cache
def collect() -> Environment:
    """The environment of this process, read once; imports nothing heavy."""
    gpu = _gpu()
    driver = gpu.pop("gpu_driver", None)
    versions = _versions() | ({"gpu_driver": driver} if driver else {})
    return Environment(platform.python_version(), platform.platform(), versions, {**_cpu(), "gpu": None, **gpu})


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The fields in which two `device` objects differ, as `field: a -> b`, in alphabetical order."""
    fields = sorted(field for field in a.keys() | b.keys() if a.get(field) != b.get(field))
    return [f"{field}: {_shown(a.get(field))} -> {_shown(b.get(field))}" for field in fields]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _versions() -> dict[str, str]:
    found = {package: _version(names) for package, names in PACKAGES.items()}
    return {package: version for package, version in found.items() if version is not None}


def _version(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _cpu() -> Device:
    usable = usable_cores()
    return {
        "cpu": _cpu_model(),
        "physical_cores": _physical_cores(),
        "logical_cores": os.cpu_count(),
        "usable_cores": usable,
        "cpu_quota": _cpu_quota(),
        "governor": _first_line(CPU_ROOT / "cpu0/cpufreq/scaling_governor"),
        "threads": os.environ.get("OMP_NUM_THREADS") or str(usable),
    }


def _cpu_model() -> str:
    rows = _text(CPU_INFO).splitlines()
    models = (row.partition(":")[2].strip() for row in rows if row.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def _physical_cores() -> int | None:
    """Hyper-threads of one core name the same siblings, so distinct lists are cores."""
    siblings = {_text(path) for path in CPU_ROOT.glob("cpu[0-9]*/topology/thread_siblings_list")}
    return len(siblings - {""}) or None


def usable_cores() -> int:
    """Cores this process may run on: taskset and cpusets narrow them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_quota() -> float | None:
    """CPUs' worth of time that a container may use (cgroup v2), None where unlimited."""
    quota, _, period = (_first_line(CPU_QUOTA) or "max").partition(" ")
    return None if quota == "max" else round(int(quota) / int(period), 2)


def _gpu() -> dict[str, str]:
    """Fields of the first vendor tool that answers; GPUs of one kind count once, for a cell runs on one of them."""
    for tool, names in GPU_TOOLS.items():
        rows = _query(tool, ",".join(names)) if shutil.which(tool) else []
        kinds = list(dict.fromkeys(tuple(cell.strip() for cell in row.split(",")) for row in rows))
        if kinds and all(len(kind) == len(names) for kind in kinds):
            columns = zip(*kinds, strict=True)
            return {name: " / ".join(column) for name, column in zip(names.values(), columns, strict=True)}
    return {}


def _query(tool: str, fields: str) -> list[str]:
    command = [tool, f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=GPU_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        # A tool without a working driver means the same as no tool: no GPU that could be measured.
        return []
    return answer.stdout.split("\n")[:-1]


def _first_line(path: Path) -> str | None:
    return _text(path).partition("\n")[0].strip() or None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
