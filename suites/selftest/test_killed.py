"""A run killed again and again goes on where it was, and ends as if it never had been."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.mini.generate import generate_validation
from harness.detect.detections import Detections

pytestmark = [pytest.mark.selftest, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
CELL = "pisa-mini-fp32-openvino"
IMAGES, BATCH, KILLS = 1000, 4, 20
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Place:
    """One chain of runs: all on the same cache and data, each with a record of its own."""

    directory: Path

    @property
    def cache(self) -> Path:
        return self.directory / "cache"

    def start(self, name: str) -> "subprocess.Popen[str]":
        options = {
            "--model": "pisa-mini",
            "--precision": "fp32",
            "--engine": "openvino",
            "--dataset": "coco2017",
            "--data-dir": self.directory / "data",
            "--cache-dir": self.cache,
            "--results": self.directory / name / "results.json",
            "--batch-size": BATCH,
        }
        words = [str(word) for pair in options.items() for word in pair]
        command = [sys.executable, "-m", "pytest", "-m", "accuracy", "-p", "no:cacheprovider", *words]
        return subprocess.Popen(
            command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def finish(self, name: str) -> str:
        process = self.start(name)
        output, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 1, output  # no baseline is accepted for these images
        return output

    def detections(self, name: str) -> Detections:
        return Detections.load(self.directory / name / "record" / CELL / "detections.npz")

    def journalled(self) -> int:
        """Bytes of the journal; 0 where there is none."""
        return sum(path.stat().st_size for path in self.cache.glob("run/*/journal"))

    def files(self) -> set[str]:
        return {str(path.relative_to(self.cache)) for path in self.cache.rglob("*")}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    generate_validation(tmp_path / "data", IMAGES)
    return Place(tmp_path)


def killed(place: Place, name: str, growth: int) -> None:
    """Start a run and kill it once its journal grew by `growth` bytes."""
    before = place.journalled()
    process = place.start(name)
    end = time.monotonic() + PATIENCE_S
    while place.journalled() < before + growth:
        assert process.poll() is None, f"the run ended before it could be killed: {process.communicate()[0]}"
        assert time.monotonic() < end, "the journal does not grow"
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_run_killed_twenty_times_gives_the_detections_of_an_unbroken_one(place: Place) -> None:
    place.finish("unbroken")
    unbroken, files = place.detections("unbroken"), place.files()
    part = place.directory / "unbroken"
    rng = random.Random(0)
    sizes: list[int] = []
    for _ in range(KILLS):
        killed(place, "broken", growth=rng.randint(0, 6000))
        sizes.append(place.journalled())
    print(f"bytes journalled at each kill: {sizes}")
    assert sizes == sorted(sizes), "a run started over"
    output = place.finish("broken")
    assert "images taken over from a killed run" in output
    assert place.detections("broken").identical(unbroken)
    assert place.files() == files, "a temporary file is left"
    assert {path.name for path in (place.directory / "broken").iterdir()} == {path.name for path in part.iterdir()}
