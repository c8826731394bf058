"""A COCO folder is checked before inference starts: every damage is named with its remedy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.detect.dataset import ANNOTATION_FILE, Dataset, ImageRecord, check_size, load_coco
from harness.errors import DatasetError, Missing

pytestmark = pytest.mark.selftest

Content = dict[str, Any]


def annotation(number: int, image: int, category: int = 3) -> Content:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [1.0, 2.0, 3.5, 4],
        "area": 14.0,
        "iscrowd": 0,
    }


def content() -> Content:
    """Three images out of order, two categories with a gap between their ids."""
    return {
        "info": {"description": "made up"},
        "images": [{"id": i, "file_name": f"{i:06d}.jpg", "width": 64, "height": 48} for i in (30, 10, 20)],
        "annotations": [annotation(0, 10), annotation(7, 30, 8) | {"iscrowd": 1}],
        "categories": [{"id": 8, "name": "dog", "supercategory": "animal"}, {"id": 3, "name": "cat"}],
    }


def write(root: Path, coco: Content, image_folder: str = "images/val2017") -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / image_folder).mkdir(parents=True)
    (root / ANNOTATION_FILE).write_text(json.dumps(coco))
    for row in coco["images"]:
        (root / image_folder / row["file_name"]).write_bytes(b"pixels")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "coco", content())


@pytest.fixture
def dataset(root: Path) -> Dataset:
    return load_coco(root, "made-up")


def rewrite(root: Path, change: Callable[[Content], object]) -> None:
    coco = content()
    change(coco)
    (root / ANNOTATION_FILE).write_text(json.dumps(coco))


def cause(root: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        load_coco(root, "made-up")
    return caught.value.cause


@pytest.mark.parametrize("image_folder", ["images/val2017", "val2017"])
def test_both_usual_layouts_are_read(tmp_path: Path, image_folder: str) -> None:
    coco = load_coco(write(tmp_path / "coco", content(), image_folder), "coco2017")
    assert coco.images[0] == ImageRecord(10, tmp_path / "coco" / image_folder / "000010.jpg", width=64, height=48)


def test_an_empty_folder_of_one_layout_does_not_hide_the_other(tmp_path: Path) -> None:
    root = write(tmp_path / "coco", content(), "val2017")
    (root / "images/val2017").mkdir(parents=True)
    assert len(load_coco(root, "made-up").images) == 3


def test_images_are_sorted_by_id(dataset: Dataset) -> None:
    assert [record.id for record in dataset.images] == [10, 20, 30]


def test_label_i_is_the_ith_category_by_id(dataset: Dataset) -> None:
    assert list(zip(dataset.category_ids, dataset.category_names, strict=True)) == [(3, "cat"), (8, "dog")]


def test_a_small_set_is_not_taken_for_val2017(dataset: Dataset) -> None:
    assert not dataset.full_val2017


@pytest.mark.parametrize(("annotations", "full"), [(4, True), (5, False)])
def test_val2017_is_known_by_its_three_counts(
    root: Path, monkeypatch: pytest.MonkeyPatch, annotations: int, full: bool
) -> None:
    for name, count in (("IMAGES", 3), ("CATEGORIES", 2), ("ANNOTATIONS", 4)):
        monkeypatch.setattr(f"harness.detect.dataset.VAL2017_{name}", count)
    rewrite(root, lambda coco: coco.update(annotations=[annotation(i, 10) for i in range(annotations)]))
    assert load_coco(root, "coco2017").full_val2017 is full


def test_a_limit_keeps_the_first_images(dataset: Dataset) -> None:
    assert dataset.limit(2).images == dataset.images[:2]


def test_a_limited_set_is_another_set(dataset: Dataset) -> None:
    assert dataset.limit(2).sha256 != dataset.sha256


def test_limiting_twice_is_limiting_once(dataset: Dataset) -> None:
    assert dataset.limit(2).limit(1) == dataset.limit(1)


@pytest.mark.parametrize("n", [3, 4])
def test_a_limit_beyond_the_end_changes_nothing(dataset: Dataset, n: int) -> None:
    assert dataset.limit(n) is dataset


@pytest.mark.parametrize("n", [0, -1])
def test_a_limit_under_one_is_refused(dataset: Dataset, n: int) -> None:
    with pytest.raises(DatasetError, match="at least 1"):
        dataset.limit(n)


def test_a_limited_set_is_never_full_val2017(dataset: Dataset) -> None:
    full = Dataset(**{**vars(dataset), "full_val2017": True})
    assert not full.limit(1).full_val2017


def test_the_hash_does_not_depend_on_the_place(root: Path, dataset: Dataset, tmp_path: Path) -> None:
    copy = shutil.copytree(root, tmp_path / "elsewhere")
    assert load_coco(copy, "made-up").sha256 == dataset.sha256


def test_the_hash_follows_the_annotations(root: Path, dataset: Dataset) -> None:
    rewrite(root, lambda coco: coco["annotations"].pop())
    assert load_coco(root, "made-up").sha256 != dataset.sha256


def test_the_hash_follows_the_size_of_every_image(root: Path, dataset: Dataset) -> None:
    dataset.images[1].path.write_bytes(b"other pixels")
    assert load_coco(root, "made-up").sha256 != dataset.sha256


def test_no_folder_is_missing_with_the_commands_that_fetch_it(tmp_path: Path) -> None:
    with pytest.raises(Missing) as caught:
        load_coco(tmp_path / "my coco", "coco2017")
    assert "val2017.zip" in caught.value.remedy
    assert f"'{tmp_path}/my coco/annotations'" in caught.value.remedy


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "coco").touch()
    assert "is not a folder" in cause(tmp_path / "coco")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    assert cause(tmp_path) == f"{tmp_path} is an empty folder"


def test_absent_annotations_are_named(root: Path) -> None:
    (root / ANNOTATION_FILE).unlink()
    assert cause(root) == f"no annotation file {root / ANNOTATION_FILE}"


def test_absent_image_folder_is_named(root: Path) -> None:
    shutil.rmtree(root / "images")
    assert "no image folder" in cause(root)


def test_an_empty_image_folder_is_named(root: Path) -> None:
    shutil.rmtree(root / "images")
    (root / "val2017").mkdir()
    assert cause(root) == f"{root / 'val2017'} is an empty folder"


@pytest.mark.parametrize("text", ["", "{", '{"images": [', "\x00", '{"images": [] }]', "[" * 5000], ids=repr)
def test_broken_json_is_named(root: Path, text: str) -> None:
    (root / ANNOTATION_FILE).write_text(text[:5000])
    assert "is broken: Invalid JSON" in cause(root)


DAMAGES: dict[str, tuple[Callable[[Content], object], str]] = {
    "no annotations key": (lambda coco: coco.pop("annotations"), "1 (annotations: missing key)"),
    "no box key": (lambda coco: coco["annotations"][1].pop("bbox"), "1 (annotations[1].bbox: missing key)"),
    "no crowd key": (lambda coco: coco["annotations"][0].pop("iscrowd"), "annotations[0].iscrowd: missing key"),
    "no category name": (lambda coco: coco["categories"][0].pop("name"), "categories[0].name: missing key"),
    "no images": (lambda coco: coco["images"].clear(), "images: List should have at least 1 item"),
    "no categories": (lambda coco: coco["categories"].clear(), "categories: List should have at least 1 item"),
    "top level is a list": (lambda coco: coco.update(images=3), "images: Input should be a valid array"),
    "id is text": (lambda coco: coco["images"][2].update(id="20"), "images[2].id: Input should be a valid integer"),
    "id is true": (lambda coco: coco["images"][2].update(id=True), "images[2].id: Input should be a valid integer"),
    "id beyond float64": (lambda coco: coco["images"][2].update(id=2**60), "images[2].id: Input should be less"),
    "width is text": (lambda coco: coco["images"][0].update(width="64"), "images[0].width: Input should be a valid"),
    "width is zero": (lambda coco: coco["images"][0].update(width=0), "images[0].width: not positive"),
    "box of three": (lambda coco: coco["annotations"][0]["bbox"].pop(), "annotations[0].bbox[3]: missing key"),
    "negative width": (
        lambda coco: coco["annotations"][0].update(bbox=[1, 2, -3, 4]),
        "annotations[0].bbox[2]: negative",
    ),
    "NaN": (
        lambda coco: coco["annotations"][0].update(bbox=[float("nan"), 2, 3, 4]),
        "annotations[0].bbox[0]: not finite",
    ),
    "infinite": (
        lambda coco: coco["annotations"][0].update(bbox=[1, 2, 3, float("inf")]),
        "annotations[0].bbox[3]: not finite",
    ),
    "duplicate image id": (lambda coco: coco["images"].append(coco["images"][0]), "duplicate image id: 1 (30)"),
    "duplicate annotation id": (lambda coco: coco["annotations"][1].update(id=0), "duplicate annotation id: 1 (0)"),
    "duplicate category id": (lambda coco: coco["categories"][0].update(id=3), "duplicate category id: 1 (3)"),
    "duplicate category name": (
        lambda coco: coco["categories"][0].update(name="cat"),
        "duplicate category name: 1 (cat)",
    ),
    "unknown image": (
        lambda coco: coco["annotations"][1].update(image_id=99),
        "annotation for an unknown image: 1 (annotation 7 (image 99))",
    ),
    "unknown category": (
        lambda coco: coco["annotations"][1].update(category_id=4),
        "annotation of an unknown category: 1 (annotation 7 (category 4))",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_annotations_are_named(root: Path, damage: str) -> None:
    change, named = DAMAGES[damage]
    rewrite(root, change)
    assert named in cause(root)


def test_a_missing_image_is_named(root: Path) -> None:
    (root / "images/val2017/000020.jpg").unlink()
    assert cause(root) == f"{root}: missing image: 1 (000020.jpg)"


def test_an_empty_image_file_is_named(root: Path) -> None:
    (root / "images/val2017/000020.jpg").write_bytes(b"")
    assert cause(root) == f"{root}: empty image file: 1 (000020.jpg)"


def test_of_many_offenders_five_are_named(root: Path) -> None:
    rewrite(root, lambda coco: coco.update(annotations=[annotation(i, 99) for i in range(6)]))
    assert cause(root).endswith("6 (" + ", ".join(f"annotation {i} (image 99)" for i in range(5)) + ", ...)")


def test_all_damages_come_in_one_error(root: Path) -> None:
    rewrite(root, lambda coco: coco["annotations"][1].update(id=0))
    (root / "images/val2017/000020.jpg").unlink()
    assert "duplicate annotation id: 1 (0); missing image: 1 (000020.jpg)" in cause(root)


def test_missing_images_are_mended_by_fetching_images_only(root: Path) -> None:
    (root / "images/val2017/000020.jpg").unlink()
    with pytest.raises(DatasetError) as caught:
        load_coco(root, "made-up")
    assert "val2017.zip" in caught.value.remedy
    assert "labels" not in caught.value.remedy


def test_an_image_of_the_annotated_size_is_accepted(dataset: Dataset) -> None:
    check_size(dataset.images[0], image_height=48, image_width=64)


def test_an_image_of_another_size_is_refused(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="is 64x47 pixels, its annotation says 64x48"):
        check_size(dataset.images[0], image_height=47, image_width=64)


def test_a_rotated_image_is_refused_with_a_hint_at_exif(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="without applying its EXIF rotation"):
        check_size(dataset.images[0], image_height=64, image_width=48)
