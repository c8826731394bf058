"""The embedded data set and weights are what `fixtures/mini/README.md` says; its program deletes no file of others."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest

from fixtures.mini import generate
from fixtures.mini.generate import ANNOTATIONS, CALIBRATION_SEED, DATA, TRAINING_SEED, VALIDATION_SEED
from fixtures.mini.scene import MAX_SIDE, MIN_SIDE
from fixtures.mini.score import MODELS, WEIGHTS
from fixtures.mini.train import SEEDS_PER_SET
from harness.model.registry import SHIPPED_BASELINES, load_spec

pytestmark = pytest.mark.selftest

VALIDATION = sorted((DATA / "images" / "val2017").glob("*.jpg"))
CALIBRATION = sorted((DATA / "images" / "calibration").glob("*.jpg"))


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / ANNOTATIONS).read_text())
    return found


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    """The shape of each validation image as it is stored: `[H, W]` for one channel."""
    return {path.name: cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape for path in VALIDATION}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_validation_image_is_annotated(document: dict[str, Any]) -> None:
    assert sorted(image["file_name"] for image in document["images"]) == [path.name for path in VALIDATION]


def test_there_are_enough_images() -> None:
    assert (len(VALIDATION) >= 240, len(CALIBRATION)) == (True, 64)


def test_calibration_images_are_no_validation_images() -> None:
    assert not {digest(path) for path in CALIBRATION} & {digest(path) for path in VALIDATION}


def test_no_training_picture_is_a_validation_or_calibration_one() -> None:
    last_training_seed = TRAINING_SEED + SEEDS_PER_SET * 1000 - 1
    assert last_training_seed < VALIDATION_SEED < VALIDATION_SEED + len(VALIDATION) <= CALIBRATION_SEED


def test_category_ids_have_gaps(document: dict[str, Any]) -> None:
    ids = [category["id"] for category in document["categories"]]
    assert 8 <= len(ids) <= 12
    assert max(ids) - min(ids) >= len(ids)


def test_some_images_have_one_channel(shapes: dict[str, tuple[int, ...]]) -> None:
    assert sum(len(shape) == 2 for shape in shapes.values()) >= 0.05 * len(shapes)


def test_some_images_have_no_objects(document: dict[str, Any]) -> None:
    assert {image["id"] for image in document["images"]} - {row["image_id"] for row in document["annotations"]}


def test_some_annotations_are_crowds(document: dict[str, Any]) -> None:
    rows = document["annotations"]
    assert sum(row["iscrowd"] for row in rows) >= 0.03 * len(rows)


def test_sizes_are_those_annotated_and_within_bounds(
    document: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    for image in document["images"]:
        sides = (image["height"], image["width"])
        assert shapes[image["file_name"]][:2] == sides
        assert MIN_SIDE <= min(sides) <= max(sides) <= MAX_SIDE


@pytest.mark.parametrize("model", MODELS)
def test_the_weights_have_the_hash_of_their_name_and_model_file(model: str) -> None:
    checkpoint = load_spec(SHIPPED_BASELINES / "models" / f"{model}.json").checkpoint
    found = digest(WEIGHTS / checkpoint.file)
    assert (found, found[:8]) == (checkpoint.sha256, Path(checkpoint.file).stem.rpartition("-")[2])


def test_the_folder_is_small() -> None:
    files = [path for path in DATA.parent.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 15e6


def generate_into(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["generate", "--root", str(root), "--images", "2"])
    monkeypatch.setattr(generate, "CALIBRATION_COUNT", 1)
    generate.main()


@pytest.mark.parametrize("annotations", [None, "{", "[]", '{"info": {"description": "COCO 2017 Dataset"}}'])
def test_a_folder_of_others_is_refused_and_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    annotations: str | None,
) -> None:
    photograph = tmp_path / "images" / "val2017" / "holiday.jpg"
    photograph.parent.mkdir(parents=True)
    photograph.write_bytes(b"mine")
    if annotations is not None:
        (tmp_path / ANNOTATIONS).parent.mkdir()
        (tmp_path / ANNOTATIONS).write_text(annotations)
    with pytest.raises(SystemExit):
        generate_into(tmp_path, monkeypatch)
    assert "holds files of others" in capsys.readouterr().err
    assert photograph.read_bytes() == b"mine"


def test_its_own_folder_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate_into(tmp_path / "data", monkeypatch)
    (tmp_path / "data" / "images" / "val2017" / "000000999999.jpg").touch()
    generate_into(tmp_path / "data", monkeypatch)
    assert [path.name for path in sorted((tmp_path / "data").rglob("*.jpg"))] == [
        CALIBRATION[0].name,
        VALIDATION[0].name,
        VALIDATION[1].name,
    ]
