"""Full-size PISA and PAA on real photographs: red without a baseline, green with it, detections equal to mmdet's.

COCO's own photographs are used where DATASETS_DIR names a folder of them; else the embedded images stand in. Weights
are seeded, and what they find on the first photographs is the ground truth.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.blame.case import blame
from harness.detect.dataset import COCO_CLASSES
from harness.detect.decode import Boxes, make_decoder
from harness.detect.preprocess import preprocess_batch
from harness.detect.run import load_batch
from harness.model.export import run_module
from harness.model.mmdet import describe_head, describe_input, load_config, load_module
from harness.model.parity import deviations
from harness.model.registry import load_models
from harness.pipeline import EMBEDDED, Cell, Pipeline, Settings
from harness.tolerances import EXPLAINED
from suites.selftest.matching import unmatched
from suites.selftest.reference import mmdet_boxes
from suites.selftest.seeded import seeded_baselines

pytestmark = [pytest.mark.selftest, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
PHOTOGRAPHS, LABELLED = 50, 4
SCORE_BOUND = 1e-5
PIXEL_BOUND = 1e-2


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the check keeps its checkpoint, baselines, cache, results and data."""

    model: str
    directory: Path
    checkpoints: Path
    baselines: Path
    data: Path

    @property
    def settings(self) -> Settings:
        return Settings(
            baselines=self.baselines,
            cache_dir=self.directory / "cache",
            checkpoints=self.checkpoints,
            data_dir=self.data,
            dataset="coco2017",
        )

    def pytest(self) -> "subprocess.CompletedProcess[str]":
        options = {
            "--model": self.model,
            "--engine": "onnxruntime",
            "--precision": "fp32",
            "--dataset": "coco2017",
            "--data-dir": str(self.data),
            "--checkpoints": str(self.checkpoints),
            "--baselines": str(self.baselines),
            "--cache-dir": str(self.directory / "cache"),
            "--results": str(self.directory / "results.json"),
        }
        words = [word for pair in options.items() for word in pair]
        return run_python("-m", "pytest", "-m", "accuracy", *words)


def run_python(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def as_coco(content: dict[str, Any], source: Path, directory: Path) -> Path:
    """A COCO folder of these annotations, with the images of `source`."""
    (directory / "annotations").mkdir(parents=True)
    (directory / "annotations" / "instances_val2017.json").write_text(json.dumps(content), encoding="utf-8")
    (directory / "images").mkdir()
    (directory / "images" / "val2017").symlink_to((source / "images" / "val2017").resolve())
    return directory


def embedded_as_coco(directory: Path, count: int = 4) -> Path:
    """The first embedded validation images under COCO's 80 categories."""
    source = EMBEDDED / "data"
    content = json.loads((source / "annotations" / "instances_val2017.json").read_text(encoding="utf-8"))
    content["images"] = content["images"][:count]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [{**a, "category_id": 1} for a in content["annotations"] if a["image_id"] in kept]
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(COCO_CLASSES, 1)]
    return as_coco(content, source, directory)


def labelled_by_itself(model: str, checkpoint: Path, source: Path, directory: Path) -> Path:
    """The first photographs of `source`, annotated on some of them with what the model itself finds there.

    By COCO's own annotations the AP of seeded weights is 0.000, which is no baseline.
    """
    spec = load_models()[model]
    config = load_config(spec)
    head, size = describe_head(spec, config), describe_input(spec, config)
    content = json.loads((source / "annotations" / "instances_val2017.json").read_text(encoding="utf-8"))
    content["images"] = content["images"][:PHOTOGRAPHS]
    labelled = content["images"][:LABELLED]
    files = [source / "images" / "val2017" / image["file_name"] for image in labelled]
    images, geometries = preprocess_batch(files, size)
    maps = run_module(load_module(spec, config, checkpoint), head, images)
    ids = sorted(category["id"] for category in content["categories"])
    content["annotations"] = []
    for image, boxes in zip(labelled, make_decoder(head, size).decode(maps, geometries), strict=True):
        for label, (x1, y1, x2, y2) in zip(boxes.labels.tolist(), boxes.boxes.tolist(), strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            one = {"id": len(content["annotations"]) + 1, "image_id": image["id"], "category_id": ids[label]}
            content["annotations"].append({**one, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    return as_coco(content, source, directory)


@pytest.fixture(scope="module", params=["pisa", "paa"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    directory = tmp_path_factory.mktemp(request.param)
    given = os.environ.get("DATASETS_DIR")
    data = Path(given).resolve() if given else embedded_as_coco(directory / "coco")
    photographs = sorted((data / "images" / "val2017").glob("*.jpg"))[:4]
    checkpoints, baselines = seeded_baselines(request.param, photographs, directory)
    data = labelled_by_itself(request.param, next(checkpoints.glob("*.pth")), data, directory / "labelled")
    return Place(request.param, directory, checkpoints, baselines, data)


def test_the_first_run_is_red_and_the_second_after_accept_is_green(place: Place) -> None:
    first = place.pytest()
    assert first.returncode == 1, first.stdout + first.stderr
    assert "no baseline is accepted" in first.stdout
    assert "NOT the full val2017" in first.stdout
    cell = f"{place.model}-fp32-onnxruntime"
    options = ["--results", str(place.directory / "results.json"), "--baselines", str(place.baselines)]
    accepted = run_python("-m", "harness", "baseline", "accept", cell, "--reason", "seeded weights", *options)
    assert accepted.returncode == 0, accepted.stderr
    second = place.pytest()
    print(second.stdout[-3000:])
    assert second.returncode == 0, second.stdout + second.stderr
    assert "engines: 0 built, 1 from the cache" in second.stdout


@dataclasses.dataclass(frozen=True)
class Compared:
    """One image's boxes: ours and mmdet's on ONNX Runtime's maps, ours on torch's."""

    ours: Boxes
    mmdets: Boxes
    on_torchs_maps: Boxes


@pytest.fixture(scope="module")
def compared(place: Place) -> list[Compared]:
    pipeline = Pipeline(place.settings)
    spec, head, decoder = pipeline.models[place.model], pipeline.head(place.model), pipeline.decoder(place.model)
    module = load_module(spec, pipeline.config(place.model), pipeline.checkpoint(place.model).path)
    prepared = pipeline.prepare(Cell(place.model, "fp32", "onnxruntime"))
    size, records = prepared.source.batch, pipeline.dataset(place.model).images
    found: list[Compared] = []
    with pipeline.opened(prepared) as session:
        for i in range(0, len(records), size):
            batch = load_batch(records[i : i + size], pipeline.input_spec(place.model), size)
            maps = session.infer(batch.images)
            ours = decoder.decode(maps, batch.geometries)
            theirs = mmdet_boxes(module.bbox_head, head, maps, batch.geometries)
            torchs = decoder.decode(run_module(module, head, batch.images), batch.geometries)
            found += [Compared(*boxes) for boxes in zip(ours, theirs, torchs, strict=True)]
    assert sum(len(one.ours.scores) for one in found) >= 10 * len(records), "too few boxes to mean anything"
    return found


def test_detections_equal_mmdets_on_the_same_maps(compared: list[Compared]) -> None:
    assert [len(one.ours.scores) for one in compared] == [len(one.mmdets.scores) for one in compared]
    assert sum(unmatched(one.ours, one.mmdets, score=1e-6, pixels=1e-3) for one in compared) == 0


def test_detections_equal_those_on_torchs_maps_as_sets(compared: list[Compared]) -> None:
    assert sum(unmatched(one.ours, one.on_torchs_maps, SCORE_BOUND, PIXEL_BOUND) for one in compared) == 0


@pytest.mark.parametrize("engine", ["openvino", "aotinductor"])
def test_every_output_of_an_engine_agrees_with_torch(place: Place, engine: str) -> None:
    pipeline = Pipeline(dataclasses.replace(place.settings, batch_size=1))
    spec, config = pipeline.models[place.model], pipeline.config(place.model)
    module = load_module(spec, config, pipeline.checkpoint(place.model).path)
    prepared = pipeline.prepare(Cell(place.model, "fp32", engine))
    images = pipeline.timing_images(prepared)
    wanted = run_module(module, pipeline.head(place.model), images)
    with pipeline.opened(prepared) as session:
        found = deviations(wanted, session.infer(images))
    print(f"{prepared.cell.id}: worst output {found[0].output}, {found[0].relative:.1e} (relative L2) off torch's")
    assert len(found) == len(wanted)
    assert max(one.relative for one in found) <= EXPLAINED["fp32"][1]


def test_blame_finds_no_layer_that_departs_in_a_sound_engine(place: Place) -> None:
    pipeline = Pipeline(dataclasses.replace(place.settings, batch_size=1))
    found = blame(pipeline, Cell(place.model, "fp32", "onnxruntime"), None, print)
    assert found.broken is None
    assert found.found is not None
    assert not found.found.departs, found.found.seen


def test_the_matching_can_fail() -> None:
    boxes = Boxes(np.array([[0, 0, 9, 9]], np.float32), np.array([0.5], np.float32), np.array([1]))
    moved = Boxes(boxes.boxes + np.float32(0.02), boxes.scores, boxes.labels)
    assert unmatched(boxes, moved, score=1e-5, pixels=1e-2) == 2
