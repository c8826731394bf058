"""A real engine that became a fifth slower is a regression."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.judge.baseline import SPEED_TOLERANCE
from harness.model.registry import SHIPPED_BASELINES
from suites.selftest.slow_side import VARIABLE

pytestmark = [pytest.mark.selftest, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
ATTEMPTS = 6
CELL = "pisa-mini-fp32-onnxruntime"


class Speed:
    """Runs of one cell's performance test against baselines of its own."""

    def __init__(self, directory: Path, cache: Path) -> None:
        self.baselines, self.results, self.cache = directory / "baselines", directory / "results.json", cache
        shutil.copytree(SHIPPED_BASELINES, self.baselines)

    def run(self, delay: float) -> "tuple[int, dict[str, object]]":
        """Exit code, and the performance part of the results."""
        chosen = ["--model", "pisa-mini", "--engine", "onnxruntime", "--precision", "fp32"]
        places = ["--cache-dir", self.cache, "--results", self.results, "--baselines", self.baselines]
        plugin = ["-p", "suites.selftest.delays"]
        command = [sys.executable, "-m", "pytest", *plugin, "-m", "performance", *chosen, *map(str, places)]
        environment = os.environ | {VARIABLE: str(delay)}
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        cell = json.loads(self.results.read_text(encoding="utf-8"))["cells"][0]
        print(cell["performance"]["reason"])
        return run.returncode, cell["performance"]

    def calm(self, delay: float) -> "tuple[int, dict[str, object]]":
        """The first of a few runs whose median is known well enough: what `INVALID` asks a person to do."""
        for _ in range(ATTEMPTS):
            code, performance = self.run(delay)
            uncertainty = performance["uncertainty"]
            assert isinstance(uncertainty, float)
            if uncertainty <= SPEED_TOLERANCE / 2:
                return code, performance
        pytest.fail(f"no calm run in {ATTEMPTS}: use an idle machine")

    def accept(self) -> None:
        words = ["baseline", "accept", CELL, "--speed", "--reason", "before the slow-down"]
        places = ["--results", str(self.results), "--baselines", str(self.baselines)]
        subprocess.run([sys.executable, "-m", "harness", *words, *places], cwd=ROOT, check=True)


def test_a_delay_of_a_fifth_in_a_real_engine_is_a_regression(tmp_path: Path, session_cache: Path) -> None:
    speed = Speed(tmp_path, session_cache)
    assert speed.calm(0.0)[1]["status"] == "RECORDED"
    speed.accept()
    print("unchanged:", speed.calm(0.0)[1]["status"])
    code, performance = speed.calm(0.20)
    assert performance["status"] == "REGRESSED", performance["reason"]
    assert code == 1
