"""A COCO folder is checked before inference starts: every damage is named with its remedy."""

import functools
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.detect.dataset import (
    ANNOTATION_FILE,
    COCO_CLASSES,
    Dataset,
    ImageRecord,
    check_size,
    load_coco,
    require_classes,
)
from harness.detect.headers import Header, is_complete, read_header
from harness.detect.preprocess import read_image
from harness.errors import DatasetError, Missing

pytestmark = pytest.mark.selftest

Content = dict[str, Any]
WIDTH, HEIGHT = 64, 48
FETCH = "python -m harness fetch coco2017-val --data-dir "


@functools.cache
def pixels(kind: str = "JPEG", width: int = WIDTH, height: int = HEIGHT, orientation: int | None = None) -> bytes:
    """An image file of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def with_segment(payload: bytes) -> bytes:
    """A JPEG with an EXIF segment of that content."""
    head, body = pixels()[:2], pixels()[2:]
    return head + b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload + body


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
        "images": [{"id": i, "file_name": f"{i:06d}.jpg", "width": WIDTH, "height": HEIGHT} for i in (30, 10, 20)],
        "annotations": [annotation(0, 10), annotation(7, 30, 8) | {"iscrowd": 1}],
        "categories": [{"id": 8, "name": "dog", "supercategory": "animal"}, {"id": 3, "name": "cat"}],
    }


def write(root: Path, coco: Content, image_folder: str = "images/val2017") -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / image_folder).mkdir(parents=True)
    (root / ANNOTATION_FILE).write_text(json.dumps(coco))
    for row in coco["images"]:
        (root / image_folder / row["file_name"]).write_bytes(pixels())
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


@pytest.fixture
def published(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose annotations are those that the module knows as the published ones, by hash and by counts."""
    sha256 = hashlib.sha256((root / ANNOTATION_FILE).read_bytes()).hexdigest()
    monkeypatch.setattr("harness.detect.dataset.VAL2017_SHA256", frozenset({"f" * 64, sha256}))
    for name, count in (("IMAGES", 3), ("CATEGORIES", 2), ("ANNOTATIONS", 2)):
        monkeypatch.setattr(f"harness.detect.dataset.VAL2017_{name}", count)
    return root


def test_val2017_is_known_by_the_hash_of_its_annotation_file(published: Path) -> None:
    assert load_coco(published, "coco2017").full_val2017


def test_of_the_published_set_there_is_nothing_to_say(published: Path) -> None:
    assert load_coco(published, "coco2017").note == ""


def moved_box(coco: Content) -> None:
    coco["annotations"][0]["bbox"][0] += 1


@pytest.mark.parametrize("change", [moved_box, lambda coco: None], ids=["edited", "written anew"])
def test_other_annotations_with_the_counts_of_val2017_are_not_taken_for_it(published: Path, change: Any) -> None:
    coco = content() | {"info": {}}
    change(coco)
    (published / ANNOTATION_FILE).write_text(json.dumps(coco, indent=1))
    assert not load_coco(published, "coco2017").full_val2017


def test_other_annotations_with_the_counts_of_val2017_are_noted_with_the_command(published: Path) -> None:
    rewrite(published, moved_box)
    note = load_coco(published, "coco2017").note
    assert "published figures are not compared" in note
    assert note.endswith(f"{FETCH}{published}")


def test_of_any_other_set_nothing_is_noted(dataset: Dataset) -> None:
    assert dataset.note == ""


def test_a_limited_set_has_no_note(published: Path) -> None:
    rewrite(published, moved_box)
    assert load_coco(published, "coco2017").limit(1).note == ""


def test_a_damaged_image_spoils_the_published_set(published: Path) -> None:
    image(published).write_bytes(pixels()[:-100])
    assert "image file cut short: 1 (000020.jpg)" in cause(published)


def test_the_classes_are_those_that_mmdet_trains_on() -> None:
    from harness.model.mmdet import build_module, load_config
    from harness.model.registry import load_models

    build_module(load_config(load_models()["pisa"]))  # makes mmdet importable
    from mmdet.datasets import CocoDataset

    assert CocoDataset.METAINFO["classes"] == COCO_CLASSES


def test_categories_that_are_the_models_classes_are_accepted(dataset: Dataset) -> None:
    require_classes(dataset, ["cat", "dog"])


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["cat"], "the model has no class for: 1 (dog)"),
        (["cat", "bird"], "the model has no class for: 1 (dog)"),
        (["cat", "dog", "bird"], "the data set has no category for the class: 1 (bird)"),
        (["dog", "cat"], "in another order: 2 (label 0 is 'dog', category 3 is 'cat', label 1 is"),
        (COCO_CLASSES, "the data set has no category for the class: 78 (person, bicycle, car, motorcycle, airplane, ."),
    ],
    ids=["lacking in the model", "another", "lacking in the data", "another order", "COCO's"],
)
def test_categories_that_are_not_the_models_classes_are_named(dataset: Dataset, names: list[str], named: str) -> None:
    with pytest.raises(DatasetError) as caught:
        require_classes(dataset, names)
    assert named in caught.value.cause


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
    dataset.images[1].path.write_bytes(pixels() + b"more")
    assert load_coco(root, "made-up").sha256 != dataset.sha256


def test_no_folder_is_missing_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(Missing) as caught:
        load_coco(tmp_path / "my coco", "coco2017")
    assert caught.value.remedy == f"{FETCH}'{tmp_path}/my coco'"


def test_a_folder_that_is_not_cocos_is_brought_back_by_its_own_command(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        load_coco(tmp_path, "mini", restore="git checkout data")
    assert caught.value.remedy == "git checkout data"


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
    "one file for two images": (
        lambda coco: coco["images"][0].update(file_name="000020.jpg"),
        "image file of more than one image: 1 (000020.jpg)",
    ),
    "box right of its image": (
        lambda coco: coco["annotations"][1].update(bbox=[64.5, 2, 3, 4]),
        "box outside its image: 1 (annotation 7 (image 30))",
    ),
    "box below its image": (lambda coco: coco["annotations"][1].update(bbox=[1, 49, 3, 4]), "box outside its image: 1"),
    "box left of its image": (
        lambda coco: coco["annotations"][1].update(bbox=[-4, 2, 3, 4]),
        "box outside its image: 1",
    ),
    "box above its image": (
        lambda coco: coco["annotations"][1].update(bbox=[1, -9, 3, 4]),
        "box outside its image: 1",
    ),
    "file above the folder": (
        lambda coco: coco["images"][2].update(file_name="../../annotations/instances_val2017.json"),
        "image file outside the image folder: 1 (",
    ),
    "file elsewhere": (
        lambda coco: coco["images"][2].update(file_name="/etc/hostname"),
        "image file outside the image folder: 1 (/etc/hostname)",
    ),
    "NUL in a file name": (lambda coco: coco["images"][2].update(file_name="a\0.jpg"), "missing image: 1 (a"),
    "file name of 5,000 letters": (
        lambda coco: coco["images"][2].update(file_name="a" * 5000),
        "aaa: File name too long)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_annotations_are_named(root: Path, damage: str) -> None:
    change, named = DAMAGES[damage]
    rewrite(root, change)
    assert named in cause(root)


@pytest.mark.parametrize("box", [[64, 48, 0, 0], [60, 47, 9, 9], [-3, -4, 3, 4]], ids=str)
def test_a_box_that_touches_its_image_is_accepted(root: Path, box: list[float]) -> None:
    rewrite(root, lambda coco: coco["annotations"][1].update(bbox=box))
    assert len(load_coco(root, "made-up").images) == 3


def image(root: Path) -> Path:
    return root / "images/val2017/000020.jpg"


def replaced_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def replaced_by_link_to_nothing(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere.jpg")


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda file: file.unlink(), "missing image: 1 (000020.jpg)"),
    "link to nothing": (replaced_by_link_to_nothing, "missing image: 1 (000020.jpg)"),
    "folder": (replaced_by_folder, "unreadable image file: 1 (000020.jpg: Is a directory)"),
    "empty": (lambda file: file.write_bytes(b""), "empty image file: 1 (000020.jpg)"),
    "half a JPEG": (lambda file: file.write_bytes(pixels()[:1500]), "image file cut short: 1 (000020.jpg)"),
    "JPEG without its last byte": (lambda file: file.write_bytes(pixels()[:-1]), "image file cut short: 1"),
    "half a JPEG with a whole thumbnail": (
        lambda file: file.write_bytes(with_segment(b"Exif\0\0" + pixels(width=16, height=16))[:-100]),
        "image file cut short: 1",
    ),
    "half a JPEG with a long head": (
        lambda file: file.write_bytes(with_segment(pixels(width=99, height=99))[:-100]),
        "image file cut short: 1",
    ),
    "start of a JPEG": (lambda file: file.write_bytes(b"\xff\xd8"), "image file cut short: 1"),
    "JPEG without image data": (lambda file: file.write_bytes(b"\xff\xd8\xff\xd9"), "image file cut short: 1"),
    "half a PNG": (lambda file: file.write_bytes(pixels("PNG")[:5000]), "image file cut short: 1"),
    "PNG without its last chunk": (lambda file: file.write_bytes(pixels("PNG")[:-12]), "image file cut short: 1"),
    "page": (lambda file: file.write_bytes(b"<html>404"), "image file without a readable header: 1 (000020.jpg)"),
    "zeros": (lambda file: file.write_bytes(bytes(3000)), "image file without a readable header: 1"),
    "JPEG without a size": (
        lambda file: file.write_bytes(pixels().replace(b"\xff\xc0", b"\xff\xee")),
        "image file without a readable header: 1",
    ),
    "PNG with a damaged header": (
        lambda file: file.write_bytes(pixels("PNG").replace(b"IHDR", b"iHDR")),
        "image file without a readable header: 1",
    ),
    "one column less": (
        lambda file: file.write_bytes(pixels(width=63)),
        "image of another size than annotated: 1 (000020.jpg: 63x48, annotated 64x48)",
    ),
    "PNG of another size": (
        lambda file: file.write_bytes(pixels("PNG", height=40)),
        "image of another size than annotated: 1 (000020.jpg: 64x40, annotated 64x48)",
    ),
    "pixels turned": (
        lambda file: file.write_bytes(pixels(width=48, height=64)),
        "image of another size than annotated: 1 (000020.jpg: 48x64, annotated 64x48)",
    ),
    "turned by EXIF": (
        lambda file: file.write_bytes(pixels(orientation=6)),
        "image turned by its EXIF orientation, unlike its annotation: 1 (000020.jpg: read as 48x64, annotated 64x48)",
    ),
    "of another size and turned": (
        lambda file: file.write_bytes(pixels(width=50, orientation=8)),
        "image of another size than annotated: 1 (000020.jpg: 48x50, annotated 64x48)",
    ),
}


@pytest.mark.parametrize("damage", FILES)
def test_a_damaged_image_is_named(root: Path, damage: str) -> None:
    change, named = FILES[damage]
    change(image(root))
    assert cause(root).startswith(f"{root}: {named}")


@pytest.mark.parametrize("part", range(1, 10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_cut_anywhere_is_named(root: Path, kind: str, part: int) -> None:
    data = pixels(kind)
    image(root).write_bytes(data[: len(data) * part // 10])
    assert cause(root) == f"{root}: image file cut short: 1 (000020.jpg)"


SOUND: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: pixels("PNG"),
    "BMP": lambda: pixels("BMP"),
    "WebP": lambda: pixels("WEBP"),
    "JPEG with bytes behind it": lambda: pixels() + b"\0" * 9000,
    "JPEG with a thumbnail": lambda: with_segment(b"Exif\0\0" + pixels(width=16, height=16)),
    "JPEG with a long head": lambda: with_segment(bytes(60_000)),
    "JPEG with a damaged EXIF block": lambda: with_segment(b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01"),
    "upside down": lambda: pixels(orientation=3),
    "turned as annotated": lambda: pixels(width=48, height=64, orientation=6),
}


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_image_is_accepted(root: Path, kind: str) -> None:
    image(root).write_bytes(SOUND[kind]())
    assert len(load_coco(root, "made-up").images) == 3


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_image_can_be_read_in_its_annotated_size(root: Path, kind: str) -> None:
    image(root).write_bytes(SOUND[kind]())
    assert read_image(image(root)).shape == (HEIGHT, WIDTH, 3)


def test_images_may_lie_in_folders_below(root: Path) -> None:
    (root / "images/val2017/cats").mkdir()
    image(root).rename(root / "images/val2017/cats/1.jpg")
    rewrite(root, lambda coco: coco["images"][2].update(file_name="dogs/../cats/1.jpg"))
    (root / "images/val2017/dogs").mkdir()
    assert len(load_coco(root, "made-up").images) == 3


def test_images_may_be_links_that_lead_outside(root: Path, tmp_path: Path) -> None:
    image(root).rename(tmp_path / "elsewhere.jpg")
    image(root).symlink_to(tmp_path / "elsewhere.jpg")
    assert len(load_coco(root, "made-up").images) == 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_header_tells_the_size_that_reading_gives(tmp_path: Path, orientation: int, kind: str) -> None:
    file = tmp_path / "photograph"
    file.write_bytes(pixels(kind, orientation=orientation))
    header = read_header(io.BytesIO(file.read_bytes()))
    assert header is not None
    assert (header.height, header.width) == read_image(file).shape[:2]


def test_an_orientation_in_xmp_turns_nothing_as_in_opencv(tmp_path: Path) -> None:
    file = tmp_path / "photograph.jpg"
    file.write_bytes(with_segment(b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'))
    assert read_header(io.BytesIO(file.read_bytes())) == Header(WIDTH, HEIGHT, on_its_side=False)
    assert read_image(file).shape == (HEIGHT, WIDTH, 3)


class Counting(io.BytesIO):
    """A file that counts the bytes read from it."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_of_a_sound_image_only_head_and_end_are_read(kind: str) -> None:
    file = Counting(pixels(kind, width=1200, height=800))
    assert is_complete(file)
    assert read_header(file)
    assert file.count < 40_000 < len(file.getvalue()) / 10


def test_of_many_offenders_five_are_named(root: Path) -> None:
    rewrite(root, lambda coco: coco.update(annotations=[annotation(i, 99) for i in range(6)]))
    assert cause(root).endswith("6 (" + ", ".join(f"annotation {i} (image 99)" for i in range(5)) + ", ...)")


def test_all_damages_come_in_one_error(root: Path) -> None:
    rewrite(root, lambda coco: coco["annotations"][1].update(id=0))
    (root / "images/val2017/000020.jpg").unlink()
    (root / "images/val2017/000010.jpg").write_bytes(b"")
    (root / "images/val2017/000030.jpg").write_bytes(pixels()[:-9])
    assert cause(root).endswith(
        "duplicate annotation id: 1 (0); missing image: 1 (000020.jpg); empty image file: 1 (000010.jpg); "
        "image file cut short: 1 (000030.jpg)"
    )


def remedy(root: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        load_coco(root, "made-up")
    return caught.value.remedy


def test_damaged_images_are_mended_in_the_folder_or_by_fetching(root: Path) -> None:
    image(root).unlink()
    assert remedy(root) == (
        f"put the images that it names into {root}, whole and of the annotated size; "
        f"or fetch all of it again: {FETCH}{root}"
    )


def test_damaged_annotations_are_mended_in_the_file_or_by_fetching(root: Path) -> None:
    rewrite(root, lambda coco: coco["annotations"][1].update(id=0))
    assert remedy(root) == f"mend {root / ANNOTATION_FILE}; or fetch all of it again: {FETCH}{root}"


def test_a_turned_image_is_mended_by_taking_its_orientation_out(root: Path) -> None:
    image(root).write_bytes(pixels(orientation=6))
    assert "exiftool -Orientation= FILE" in remedy(root)


def test_an_image_cut_short_after_the_scan_is_refused_when_it_is_read(dataset: Dataset) -> None:
    path = dataset.images[1].path
    path.write_bytes(pixels()[:-100])
    with pytest.raises(DatasetError, match=r"000020\.jpg is cut short"):
        read_image(path)


def test_an_image_of_the_annotated_size_is_accepted(dataset: Dataset) -> None:
    check_size(dataset.images[0], image_height=48, image_width=64)


def test_an_image_of_another_size_is_refused(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="is 64x47 pixels, its annotation says 64x48"):
        check_size(dataset.images[0], image_height=47, image_width=64)


def test_a_rotated_image_is_refused_with_a_hint_at_exif(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="take its EXIF orientation out"):
        check_size(dataset.images[0], image_height=64, image_width=48)
