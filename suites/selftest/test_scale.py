"""Memory stays bounded however many images a run has, and however large a batch of raw maps is."""

import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.mini.generate import generate_validation

pytestmark = [pytest.mark.selftest, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 5000
GIGABYTE = 1e9

# Runs in a process of its own: prints the bytes of one set of maps, of one input batch, and the peak before and after.
FULL_SIZE = """
import resource, sys
import numpy as np
from dataclasses import replace
from fixtures.rawmaps import coco_like
from harness.detect.dataset import load_coco
from harness.detect.decode import make_decoder
from harness.detect.run import run
from harness.model.mmdet import describe_head, describe_input, load_config
from harness.model.registry import load_models
from harness.pipeline import EMBEDDED

BATCH, BATCHES = 32, 4
spec = load_models()["pisa"]
config = load_config(spec)
head, size = describe_head(spec, config), describe_input(spec, config)
dataset = load_coco(EMBEDDED / "data", "mini")
one = coco_like(head, size)

class Session:
    def infer(self, images):
        return {name: np.repeat(values, BATCH, axis=0) for name, values in one.items()}

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
maps = BATCH * sum(values.nbytes for values in one.values())
dataset = replace(dataset, images=dataset.images[: BATCH * BATCHES], category_ids=tuple(range(80)))
found = run(dataset, Session(), size, make_decoder(head, size), BATCH)
assert len(found.detections) > BATCH * BATCHES
print(maps, BATCH * 3 * size.height * size.width * 4, before, peak())
"""


def run_python(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_full_size_batch_of_32_needs_two_sets_of_maps_two_inputs_and_less_than_a_gigabyte() -> None:
    process = run_python("-c", FULL_SIZE)
    assert process.returncode == 0, process.stderr
    maps, images, before, after = map(int, process.stdout.split())
    beyond = after - before - 2 * maps - 2 * images
    print(
        f"maps {maps / GIGABYTE:.2f} GB, input {images / GIGABYTE:.2f} GB, beyond two of each {beyond / GIGABYTE:.2f}"
    )
    assert maps > 2 * GIGABYTE
    assert beyond < GIGABYTE


@pytest.mark.parametrize("model", ["pisa-mini", "paa-mini"])
def test_five_thousand_images_need_less_than_three_gigabytes(
    model: str, tmp_path: Path, five_thousand: Path, session_cache: Path
) -> None:
    command = ["-m", "pytest", "-m", "accuracy", "-p", "no:cacheprovider", "--model", model, "--precision", "fp32"]
    command += ["--engine", "openvino", "--dataset", "coco2017", "--data-dir", str(five_thousand)]
    command += ["--cache-dir", str(session_cache), "--results", str(tmp_path / "results.json")]
    process = run_python("-c", MEASURED, *command)
    print(process.stdout[-2000:])
    assert "no baseline is accepted" in process.stdout, process.stdout + process.stderr
    peak = int(process.stdout.split()[-1])
    assert peak < 3 * GIGABYTE


MEASURED = """
import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


@pytest.fixture(scope="module")
def five_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("five_thousand")
    generate_validation(root, IMAGES)
    return root
