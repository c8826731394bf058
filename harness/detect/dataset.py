"""Takes a folder in COCO's layout; gives a checked `Dataset`: image records, categories and a content hash."""

import hashlib
import os
import shlex
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.detect.headers import is_complete, read_header
from harness.errors import DatasetError, Missing

ANNOTATION_FILE = "annotations/instances_val2017.json"
IMAGE_FOLDERS = ("images/val2017", "val2017")
VAL2017_IMAGES, VAL2017_CATEGORIES, VAL2017_ANNOTATIONS = 5_000, 80, 36_781
# SHA-256 of the instances_val2017.json (19,987,840 bytes) in the official annotations_trainval2017.zip.
VAL2017_SHA256 = frozenset({"e8c7f7908f1d7278341fae127d0da654f102f11bd7b21d8aeefa635b8c810b6f"})
NAMED_AT_MOST = 5
# More than cores: on a cold or distant disk the scan waits for the files' first and last bytes.
SCAN_THREADS = 16

# fmt: off
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
"""The names of COCO's 80 categories by ascending id: what a published checkpoint's labels 0 to 79 mean."""

_EMPTY = "empty image file"
_MISSING = "missing image"
_UNREADABLE = "unreadable image file"
_CUT_SHORT = "image file cut short"
_NO_HEADER = "image file without a readable header"
_OTHER_SIZE = "image of another size than annotated"
_TURNED = "image turned by its EXIF orientation, unlike its annotation"
_OUTSIDE = "image file outside the image folder"
_IMAGE_DAMAGES = (_OUTSIDE, _MISSING, _UNREADABLE, _EMPTY, _CUT_SHORT, _NO_HEADER, _OTHER_SIZE, _TURNED)

# Evaluators take ids in float64 rows, which hold integers exactly up to 2**53.
_Id = Annotated[int, Field(ge=0, le=2**53)]
_Coordinate = Annotated[float, Field(allow_inf_nan=False)]
_Size = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
_Pixels = Annotated[int, Field(gt=0)]
_FAULTS = {
    "missing": "missing key",
    "finite_number": "not finite",
    "greater_than_equal": "negative",
    "greater_than": "not positive",
}


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Image(_Row):
    id: _Id
    file_name: str = Field(min_length=1)
    width: _Pixels
    height: _Pixels


class _Annotation(_Row):
    id: _Id
    image_id: _Id
    category_id: _Id
    bbox: tuple[_Coordinate, _Coordinate, _Size, _Size]
    area: _Size
    iscrowd: Literal[0, 1]


class _Category(_Row):
    id: _Id
    name: str = Field(min_length=1)


class _Content(_Row):
    images: list[_Image] = Field(min_length=1)
    annotations: list[_Annotation]
    categories: list[_Category] = Field(min_length=1)


@dataclass(frozen=True)
class ImageRecord:
    """One image: its COCO id, its file, and its annotated size in pixels."""

    id: int
    path: Path
    width: int
    height: int


@dataclass(frozen=True)
class Dataset:
    """A checked detection data set.

    images: ascending by id. category_ids: ascending; a detector's label i means the i-th, named category_names[i].
    sha256: identity of the annotation bytes and of every image's file name and size in bytes.
    full_val2017: whether published COCO figures may be compared with results on it: the annotation file is, byte by
        byte, the published one, and every image that it names is there, whole and of the annotated size. That the
        images' pixels are the published ones is not verified.
    note: what a reader of the results should know of the data set; empty when there is nothing.

    Source of the published file's SHA-256: COCO states none; several unrelated public projects that check their
    download of annotations_trainval2017.zip agree on it. The same annotations in other bytes (written anew by some
    tool) cannot be told from edited ones, so they are measured, but compared with recorded figures only.
    """

    name: str
    annotation_file: Path
    images: tuple[ImageRecord, ...]
    category_ids: tuple[int, ...]
    category_names: tuple[str, ...]
    sha256: str
    full_val2017: bool
    note: str = ""

    def limit(self, n: int) -> "Dataset":
        """The first `n` images; the data set itself when it has no more than that.

        Raises:
            DatasetError: n < 1.
        """
        if n < 1:
            raise DatasetError(f"{n} images of {self.name} were asked for", "give a limit of at least 1")
        if n >= len(self.images):
            return self
        images = self.images[:n]
        sha256 = _content_hash(self.annotation_file.read_bytes(), images)
        return replace(self, images=images, sha256=sha256, full_val2017=False, note="")


def load_coco(root: Path, name: str, restore: str | None = None) -> Dataset:
    """The data set under `root`: `annotations/instances_val2017.json` and `images/val2017/` or `val2017/`.

    Every damage is named here, before inference starts: all of them in one error, each with its count and the
    first five offenders. Of the images the headers and the ends are read, not the pixels: a JPEG that is damaged in
    its middle is not found.

    Args:
        restore: the command that brings the folder back; the one that fetches COCO val2017 unless given.

    Raises:
        Missing: `root` does not exist.
        DatasetError: anything in it is absent, empty, malformed, cut short or contradictory.
    """
    fetch = restore or fetch_command(root)
    if not root.exists():
        raise Missing(f"COCO not found at {root} (from --data-dir or DATASETS_DIR)", fetch)
    annotation_file, folder = _layout(root, fetch)
    raw = _read(annotation_file)
    content = _parse(annotation_file, raw, fetch)
    images = _records(content, folder)
    _raise_damages(root, annotation_file, _annotation_damages(content), _image_damages(images, folder), fetch)
    categories = sorted(content.categories, key=lambda category: category.id)
    return Dataset(
        name=name,
        annotation_file=annotation_file,
        images=images,
        category_ids=tuple(category.id for category in categories),
        category_names=tuple(category.name for category in categories),
        sha256=_content_hash(raw, images),
        full_val2017=hashlib.sha256(raw).hexdigest() in VAL2017_SHA256,
        note=_note(content, raw, fetch),
    )


def require_classes(dataset: Dataset, names: Sequence[str]) -> None:
    """Holds the data set's categories, ascending by id, to a model's classes: label i has to mean `names[i]` in both.

    Raises:
        DatasetError: categories that the model lacks, classes that the data set lacks, or another order.
    """
    found = dataset.category_names
    if tuple(names) == found:
        return
    lacks = {
        "the model has no class for": [name for name in found if name not in names],
        "the data set has no category for the class": [name for name in names if name not in found],
        "in another order": [
            f"label {i} is '{mine}', category {dataset.category_ids[i]} is '{theirs}'"
            for i, (mine, theirs) in enumerate(zip(names, found, strict=False))
            if mine != theirs
        ],
    }
    what, offenders = next((what, offenders) for what, offenders in lacks.items() if offenders)
    raise DatasetError(
        f"the categories of {dataset.name} ({dataset.annotation_file}) are not the model's {len(names)} classes: "
        f"{what}: {_named(offenders)}",
        "give the data set the model was trained for: --data-dir DIR, or --dataset mini",
    )


def check_size(record: ImageRecord, image_height: int, image_width: int) -> None:
    """Holds the pixels read from a file to the annotated size: the file may have changed since it was scanned.

    Both are sizes of the picture as it is read, turned upright by its EXIF orientation: boxes lie in that frame.

    Raises:
        DatasetError: the sizes differ.
    """
    if (image_height, image_width) == (record.height, record.width):
        return
    swapped = (image_height, image_width) == (record.width, record.height)
    remedy = "take its EXIF orientation out (exiftool -Orientation= FILE), or " if swapped else ""
    raise DatasetError(
        f"image {record.id} ({record.path}) is {image_width}x{image_height} pixels, "
        f"its annotation says {record.width}x{record.height}",
        f"{remedy}put the original image back",
    )


def _layout(root: Path, fetch: str) -> tuple[Path, Path]:
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder", "point --data-dir or DATASETS_DIR at COCO's folder")
    if _is_empty(root):
        raise DatasetError(f"{root} is an empty folder", fetch)
    annotation_file = root / ANNOTATION_FILE
    if not annotation_file.is_file():
        raise DatasetError(f"no annotation file {annotation_file}", fetch)
    folders = [root / folder for folder in IMAGE_FOLDERS if (root / folder).is_dir()]
    if not folders:
        looked_for = " or ".join(str(root / folder) for folder in IMAGE_FOLDERS)
        raise DatasetError(f"no image folder {looked_for}", fetch)
    filled = [folder for folder in folders if not _is_empty(folder)]
    if not filled:
        raise DatasetError(f"{folders[0]} is an empty folder", fetch)
    return annotation_file, filled[0]


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def _read(annotation_file: Path) -> bytes:
    try:
        return annotation_file.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {annotation_file}: {error.strerror}", "make the file readable") from error


def _parse(annotation_file: Path, raw: bytes, fetch: str) -> _Content:
    try:
        return _Content.model_validate_json(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
    if faults[0]["type"] == "json_invalid":
        cause = f"{annotation_file} is broken: {faults[0]['msg']}"
    else:
        named = _named(f"{_place(fault['loc'])}: {_FAULTS.get(fault['type'], fault['msg'])}" for fault in faults)
        cause = f"{annotation_file}: wrong entries: {named}"
    raise DatasetError(cause, f"mend the file, or bring the original back: {fetch}")


def _place(location: Sequence[int | str]) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "".join(steps).lstrip(".") or "top level"


def _records(content: _Content, folder: Path) -> tuple[ImageRecord, ...]:
    rows = sorted(content.images, key=lambda row: row.id)
    return tuple(ImageRecord(row.id, folder / row.file_name, row.width, row.height) for row in rows)


def _annotation_damages(content: _Content) -> dict[str, list[str]]:
    images = {row.id: row for row in content.images}
    categories = {row.id for row in content.categories}
    rows = content.annotations
    return {
        "duplicate image id": _duplicates(row.id for row in content.images),
        "image file of more than one image": _duplicates(row.file_name for row in content.images),
        "duplicate annotation id": _duplicates(row.id for row in rows),
        "duplicate category id": _duplicates(row.id for row in content.categories),
        "duplicate category name": _duplicates(row.name for row in content.categories),
        "annotation for an unknown image": [
            f"annotation {row.id} (image {row.image_id})" for row in rows if row.image_id not in images
        ],
        "annotation of an unknown category": [
            f"annotation {row.id} (category {row.category_id})" for row in rows if row.category_id not in categories
        ],
        "box outside its image": [
            f"annotation {row.id} (image {row.image_id})"
            for row in rows
            if row.image_id in images and _is_outside(row, images[row.image_id])
        ],
    }


def _is_outside(row: _Annotation, image: _Image) -> bool:
    x, y, width, height = row.bbox
    return x > image.width or y > image.height or x + width < 0 or y + height < 0


def _image_damages(images: Sequence[ImageRecord], folder: Path) -> dict[str, list[str]]:
    """What is wrong with the files: offenders by kind of damage, at most one for each image."""
    inside = os.path.normpath(folder)

    def fault(record: ImageRecord) -> tuple[str, str] | None:
        # By name only: a link in the folder may lead anywhere.
        if not Path(os.path.normpath(record.path)).is_relative_to(inside):
            return _OUTSIDE, str(record.path)
        return _file_fault(record)

    found: dict[str, list[str]] = {what: [] for what in _IMAGE_DAMAGES}
    with warnings.catch_warnings(), ThreadPoolExecutor(SCAN_THREADS, thread_name_prefix="scan") as pool:
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata: nothing that reading the pixels needs
        for one in pool.map(fault, images):
            if one is not None:
                what, offender = one
                found[what].append(offender)
    return found


def _file_fault(record: ImageRecord) -> tuple[str, str] | None:
    name = record.path.name
    try:
        with record.path.open("rb") as file:
            return _content_fault(record, file)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file has a NUL in its name
        return _MISSING, name
    except OSError as error:
        return _UNREADABLE, f"{name}: {error.strerror}"


def _content_fault(record: ImageRecord, file: BinaryIO) -> tuple[str, str] | None:
    name = record.path.name
    if not file.read(1):
        return _EMPTY, name
    if not is_complete(file):
        return _CUT_SHORT, name
    header = read_header(file)
    if header is None:
        return _NO_HEADER, name
    annotated = record.width, record.height
    if annotated == (header.width, header.height):
        return None
    says = f"annotated {record.width}x{record.height}"
    if annotated == (header.stored_width, header.stored_height):
        return _TURNED, f"{name}: read as {header.width}x{header.height}, {says}"
    return _OTHER_SIZE, f"{name}: {header.width}x{header.height}, {says}"


def _duplicates(values: Iterable[int | str]) -> list[str]:
    return [str(value) for value, count in Counter(values).items() if count > 1]


def _raise_damages(
    root: Path, annotation_file: Path, annotations: dict[str, list[str]], images: dict[str, list[str]], fetch: str
) -> None:
    causes = [f"{what}: {_named(offenders)}" for what, offenders in (annotations | images).items() if offenders]
    if not causes:
        return
    remedies = []
    if any(annotations.values()):
        remedies.append(f"mend {annotation_file}")
    if any(images.values()):
        remedies.append(f"put the images that it names into {root}, whole and of the annotated size")
    if images[_TURNED]:
        remedies.append("take the EXIF orientation out: exiftool -Orientation= FILE")
    raise DatasetError(f"{root}: {'; '.join(causes)}", f"{'; '.join(remedies)}; or fetch all of it again: {fetch}")


def _named(offenders: Iterable[str]) -> str:
    every = list(offenders)
    more = ", ..." if len(every) > NAMED_AT_MOST else ""
    return f"{len(every)} ({', '.join(every[:NAMED_AT_MOST])}{more})"


def _note(content: _Content, raw: bytes, fetch: str) -> str:
    """What to say of annotations that look like val2017's by their counts and are not byte by byte the published."""
    counts = len(content.images), len(content.categories), len(content.annotations)
    sha256 = hashlib.sha256(raw).hexdigest()
    if counts != (VAL2017_IMAGES, VAL2017_CATEGORIES, VAL2017_ANNOTATIONS) or sha256 in VAL2017_SHA256:
        return ""
    return (
        f"as many images, categories and annotations as val2017, but not its published annotation file (SHA-256 "
        f"{sha256[:8]}..., wanted {' or '.join(known[:8] for known in sorted(VAL2017_SHA256))}...): published figures "
        f"are not compared; to compare them, fetch it: {fetch}"
    )


def _content_hash(annotations: bytes, images: Sequence[ImageRecord]) -> str:
    digest = hashlib.sha256(hashlib.sha256(annotations).digest())
    for record in images:
        digest.update(f"{record.path.name}\0{record.path.stat().st_size}\n".encode())
    return digest.hexdigest()


def fetch_command(root: Path) -> str:
    """The command line that fetches COCO val2017, images and annotations, to `root`."""
    return f"python -m harness fetch coco2017-val --data-dir {shlex.quote(str(root))}"
