"""Takes faults from the environment; gives an engine without a runtime, and the model and images that it detects on.

A pytest plugin: `python -m pytest -p suites.selftest.fakes --engine fake ...` adds the engine `fake`. It finds the one
coloured box in each of the toy images and writes head maps that decode to it, so its AP is 1 unless a fault is set.
`--benchmark-timer=suites.selftest.fakes.clock` times it on a clock that only its own calls move.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from harness import accuracy_run, pipeline
from harness.detect.dataset import ANNOTATION_FILE, Dataset
from harness.detect.run import Run, run
from harness.engines.base import Capabilities, Engine, Images, Inspection, Layer, Maps, Session, Source
from harness.engines.option import Option
from harness.engines.table import ENGINES
from harness.errors import EngineError

NAME = "fake"
PLUGIN = "suites.selftest.fakes"
FAULTS_VARIABLE = "DETGATE_FAKE_FAULTS"
FAULTS = (
    *("missing", "unbuildable", "crash", "nan", "inf", "shape", "precision", "blind", "lost", "seconds", "noisy"),
    "unclosable",
    "accelerator",  # no fault: it says that it runs on one
)

CALL_S, COPIES_S, DEVICE_S = 0.1, 0.025, 0.08
MEMORY_BYTES = 1 << 20
NOISE = 0.5
NOISE_PERIOD_CALLS = 5

CLASSES = ("blue", "green", "red")
INPUT_SIZE = 64
STRIDE, ANCHOR_SIZE, ANCHOR_KIND = 8, 32, 3  # of nine kinds, the square one of the first octave
NOTHING, SURE = -20.0, 4.0


def faults(text: str | None = None) -> dict[str, str]:
    """`"nan,seconds=0.12"` -> `{"nan": "", "seconds": "0.12"}`; by default what the environment says."""
    given = os.environ.get(FAULTS_VARIABLE, "") if text is None else text
    found = dict(part.partition("=")[::2] for part in given.split(",") if part)
    assert set(found) <= set(FAULTS), f"known faults: {', '.join(FAULTS)}"
    return found


class Clock:
    """A clock that only the fake's timed calls move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls = 0

    def advance(self) -> None:
        """One call: `seconds` long, half as long again in every other spell while `noisy` lasts."""
        seconds = float(faults().get("seconds", CALL_S))
        noisy = self.calls < int(faults().get("noisy", 0)) and self.calls // NOISE_PERIOD_CALLS % 2 == 1
        self.now += seconds * (1 + NOISE * noisy)
        self.calls += 1


CLOCK = Clock()


def clock() -> float:
    """Seconds on the fake's clock."""
    return CLOCK.now


class FakeEngine(Engine):
    """Writes a file without content worth mentioning, opens it, and sees the toy images' boxes."""

    name = NAME
    file_suffix = ".fake"
    known_options: ClassVar = {"colour": Option("nothing but the flags", "blue", ("red", "blue"))}

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            computes={"fp32": "fp32", "fp16": "fp16"},
            source="module",
            device="accelerator" if "accelerator" in faults() else "cpu",
        )

    def available(self) -> str | None:
        return "the fake runtime is not installed" if "missing" in faults() else None

    def version(self) -> str:
        return "1.0"

    def build(self, source: Source, target: Path) -> None:
        if "unbuildable" in faults():
            raise EngineError("fake 1.0 refused the module", "choose another fault")
        target.write_text(f"{source.spec.name} {source.precision} {source.batch}")

    def open(self, source: Source, file: Path) -> Session:
        return FakeSession(source)


class FakeSession(Session):
    """One box an image, where the image has its one bright rectangle."""

    device_timer = "cuda events"

    def _infer(self, images: Images) -> Maps:
        found = faults()
        if "crash" in found:
            raise ZeroDivisionError("the fake crashed")
        shapes = self.source.shapes.items()
        maps = {name: np.full(shape, NOTHING if "cls" in name else 0.0, np.float32) for name, shape in shapes}
        for row, image in enumerate(images):
            _draw(maps, row, image, blind="blind" in found)
        if "nan" in found:
            maps[f"box_{STRIDE}"][0, 0, 0, 0] = np.nan
        if "inf" in found:
            maps[f"box_{STRIDE}"][0, 0, 0, 0] = np.inf
        if "shape" in found:
            maps[f"cls_{STRIDE}"] = maps[f"cls_{STRIDE}"][..., 1:]
        return maps

    def prepare(self, images: Images) -> Callable[[], None]:
        return CLOCK.advance

    def transfer(self, images: Images) -> Callable[[], None]:
        def call() -> None:
            CLOCK.advance()
            CLOCK.now += COPIES_S

        return call

    def device_seconds(self, images: Images, calls: int) -> list[float]:
        return [DEVICE_S] * calls

    def memory(self) -> int | None:
        return MEMORY_BYTES if "accelerator" in faults() else None

    def inspect(self) -> Inspection:
        ran = "int8" if "precision" in faults() else self.source.precision
        return Inspection(
            "accelerator" if "accelerator" in faults() else "cpu", tuple(Layer(f"conv{i}", ran, 100) for i in range(7))
        )

    def close(self) -> None:
        """Nothing is held."""
        if "unclosable" in faults():
            raise EngineError("the fake cannot be closed", "choose another fault")


def _draw(maps: Maps, row: int, image: npt.NDArray[np.float32], blind: bool) -> None:
    """Write the image's box into the maps of one row; a blind fake misses the red ones."""
    bright = image > 1.0
    if not bright.any():
        return
    label = int(bright.any(axis=(1, 2)).argmax())
    if blind and label == 0:  # channels are RGB here
        return
    rows, columns = (np.flatnonzero(bright[label].any(axis=axis)) for axis in (1, 0))
    corners = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
    centre, size = (corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]
    column, line = np.minimum(centre // STRIDE, INPUT_SIZE // STRIDE - 1).astype(int)
    offset = (centre - np.array([column, line]) * STRIDE) / ANCHOR_SIZE
    maps[f"cls_{STRIDE}"][row, ANCHOR_KIND * len(CLASSES) + len(CLASSES) - 1 - label, line, column] = SURE
    maps[f"box_{STRIDE}"][row, ANCHOR_KIND * 4 : ANCHOR_KIND * 4 + 4, line, column] = [
        *offset,
        *np.log(size / ANCHOR_SIZE),
    ]


def losing(run: Callable[..., Run], count: int) -> Callable[..., Run]:
    """The run, but the last `count` images of the data set are never processed; holds for every engine."""

    def run_without_last(dataset: Dataset, *arguments: Any) -> Run:
        return run(replace(dataset, images=dataset.images[:-count]), *arguments)

    return run_without_last


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    ENGINES[NAME] = f"{PLUGIN}:FakeEngine"
    if "lost" in faults():
        vars(accuracy_run)["run"] = losing(run, int(faults()["lost"] or 1))


# --- the toy model and its images


def write_images(root: Path, images: int = 12) -> Path:
    """A COCO folder of images with one coloured box each, in three sizes and three classes."""
    (root / "annotations").mkdir(parents=True)
    (root / "images" / "val2017").mkdir(parents=True)
    rows, annotations = [], []
    for i in range(images):
        scale = 1 + i % 3
        width, height = INPUT_SIZE * scale, INPUT_SIZE * (1 + i % 2)
        x, y, w, h = (scale * n for n in (4 + 2 * i, 0, 16 + 2 * (i % 4), 0))
        y, h = (1 + i % 2) * (30 - 2 * i), (1 + i % 2) * 20
        y = max(y, 0)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y : y + h, x : x + w, i % 3] = 255
        name = f"{i + 1:012d}.png"
        cv2.imwrite(str(root / "images" / "val2017" / name), pixels)
        rows.append({"id": i + 1, "file_name": name, "width": width, "height": height})
        box = {"bbox": [float(x), float(y), float(w), float(h)], "area": float(w * h), "iscrowd": 0}
        annotations.append({"id": i + 1, "image_id": i + 1, "category_id": 1 + i % 3, **box})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": rows, "annotations": annotations, "categories": categories}
    (root / ANNOTATION_FILE).write_text(json.dumps(content))
    return root


def write_model(baselines: Path, checkpoints: Path, name: str = "toy", **changes: Any) -> Path:
    """A model file for the toy images, and the checkpoint that it names, which nobody loads."""
    weights = f"weights of {name}".encode()
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / f"{name}.pth").write_bytes(weights)
    content = {
        "schema": 1,
        "name": name,
        "title": "made up",
        "config": "pisa/retinanet-r50_fpn_pisa_1x_coco.py",
        "overrides": {"model.bbox_head.num_classes": len(CLASSES)},
        "checkpoint": {"url": None, "file": f"{name}.pth", "sha256": hashlib.sha256(weights).hexdigest()},
        "dataset": "coco2017",
        "input": {"name": "input", "height": INPUT_SIZE, "width": INPUT_SIZE, "keep_ratio": False},
        "batch": {"cpu": 8, "accelerator": 8},
    }
    path = baselines / "models" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes))
    return path


@dataclass(frozen=True)
class Workplace:
    """Folders of a run on the toy model: nothing outside `root` is written."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> "Workplace":
        """Images, one model `toy`, its checkpoint; no baseline yet."""
        place = cls(root)
        write_images(place.images)
        write_model(place.baselines, place.checkpoints)
        return place

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def baselines(self) -> Path:
        return self.root / "baselines"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def results(self) -> Path:
        return self.root / "results" / "results.json"

    def settings(self, **changes: Any) -> pipeline.Settings:
        """For a pipeline in this process."""
        given = {"baselines": self.baselines, "checkpoints": self.checkpoints, "data_dir": self.images}
        return pipeline.Settings(**{**given, "cache_dir": self.cache, **changes})
