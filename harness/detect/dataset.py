"""Takes a folder in COCO's layout; gives a checked `Dataset`: image records, categories and a content hash."""

import hashlib
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import DatasetError, Missing

ANNOTATION_FILE = "annotations/instances_val2017.json"
IMAGE_FOLDERS = ("images/val2017", "val2017")
IMAGES_URL = "http://images.cocodataset.org/zips/val2017.zip"
LABELS_URL = "https://github.com/ultralytics/assets/releases/download/v0.0.0/coco2017labels.zip"
VAL2017_IMAGES, VAL2017_CATEGORIES, VAL2017_ANNOTATIONS = 5_000, 80, 36_781
NAMED_AT_MOST = 5

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
    full_val2017: whether published COCO figures may be compared with results on it.
    """

    name: str
    annotation_file: Path
    images: tuple[ImageRecord, ...]
    category_ids: tuple[int, ...]
    category_names: tuple[str, ...]
    sha256: str
    full_val2017: bool

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
        return replace(self, images=images, sha256=sha256, full_val2017=False)


def load_coco(root: Path, name: str) -> Dataset:
    """The data set under `root`: `annotations/instances_val2017.json` and `images/val2017/` or `val2017/`.

    Every damage is named here, before inference starts: all of them in one error, each with its count and the
    first five offenders.

    Raises:
        Missing: `root` does not exist; says which commands fetch COCO.
        DatasetError: anything in it is absent, empty, malformed or contradictory.
    """
    if not root.exists():
        raise Missing(f"COCO not found at {root} (from --data-dir or DATASETS_DIR)", fetch_command(root))
    annotation_file, folder = _layout(root)
    raw = _read(annotation_file)
    content = _parse(annotation_file, raw, root)
    images = _records(content, folder)
    _raise_damages(root, annotation_file, _annotation_damages(content), _image_damages(images))
    categories = sorted(content.categories, key=lambda category: category.id)
    return Dataset(
        name=name,
        annotation_file=annotation_file,
        images=images,
        category_ids=tuple(category.id for category in categories),
        category_names=tuple(category.name for category in categories),
        sha256=_content_hash(raw, images),
        full_val2017=_is_full_val2017(content),
    )


def check_size(record: ImageRecord, image_height: int, image_width: int) -> None:
    """Holds the pixels read from a file to the annotated size.

    Both are sizes of the stored pixels: COCO's annotations know no EXIF rotation, so the reader must not apply one.

    Raises:
        DatasetError: the sizes differ.
    """
    if (image_height, image_width) == (record.height, record.width):
        return
    swapped = (image_height, image_width) == (record.width, record.height)
    remedy = "read it without applying its EXIF rotation, or " if swapped else ""
    raise DatasetError(
        f"image {record.id} ({record.path}) is {image_width}x{image_height} pixels, "
        f"its annotation says {record.width}x{record.height}",
        f"{remedy}put the original image back",
    )


def _layout(root: Path) -> tuple[Path, Path]:
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder", "point --data-dir or DATASETS_DIR at COCO's folder")
    if _is_empty(root):
        raise DatasetError(f"{root} is an empty folder", fetch_command(root))
    annotation_file = root / ANNOTATION_FILE
    if not annotation_file.is_file():
        raise DatasetError(f"no annotation file {annotation_file}", _fetch_annotations(root))
    folders = [root / folder for folder in IMAGE_FOLDERS if (root / folder).is_dir()]
    if not folders:
        looked_for = " or ".join(str(root / folder) for folder in IMAGE_FOLDERS)
        raise DatasetError(f"no image folder {looked_for}", _fetch_images(root))
    filled = [folder for folder in folders if not _is_empty(folder)]
    if not filled:
        raise DatasetError(f"{folders[0]} is an empty folder", _fetch_images(root))
    return annotation_file, filled[0]


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def _read(annotation_file: Path) -> bytes:
    try:
        return annotation_file.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {annotation_file}: {error.strerror}", "make the file readable") from error


def _parse(annotation_file: Path, raw: bytes, root: Path) -> _Content:
    try:
        return _Content.model_validate_json(raw)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
    if faults[0]["type"] == "json_invalid":
        cause = f"{annotation_file} is broken: {faults[0]['msg']}"
    else:
        named = _named(f"{_place(fault['loc'])}: {_FAULTS.get(fault['type'], fault['msg'])}" for fault in faults)
        cause = f"{annotation_file}: wrong entries: {named}"
    raise DatasetError(cause, f"mend the file, or fetch COCO's again: {_fetch_annotations(root)}")


def _place(location: Sequence[int | str]) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return "".join(steps).lstrip(".") or "top level"


def _records(content: _Content, folder: Path) -> tuple[ImageRecord, ...]:
    rows = sorted(content.images, key=lambda row: row.id)
    return tuple(ImageRecord(row.id, folder / row.file_name, row.width, row.height) for row in rows)


def _annotation_damages(content: _Content) -> dict[str, list[str]]:
    images = {row.id for row in content.images}
    categories = {row.id for row in content.categories}
    rows = content.annotations
    return {
        "duplicate image id": _duplicates(row.id for row in content.images),
        "duplicate annotation id": _duplicates(row.id for row in rows),
        "duplicate category id": _duplicates(row.id for row in content.categories),
        "duplicate category name": _duplicates(row.name for row in content.categories),
        "annotation for an unknown image": [
            f"annotation {row.id} (image {row.image_id})" for row in rows if row.image_id not in images
        ],
        "annotation of an unknown category": [
            f"annotation {row.id} (category {row.category_id})" for row in rows if row.category_id not in categories
        ],
    }


def _image_damages(images: Sequence[ImageRecord]) -> dict[str, list[str]]:
    present = [record.path for record in images if record.path.is_file()]
    empty = [path.name for path in present if path.stat().st_size == 0]
    found = set(present)
    missing = [record.path.name for record in images if record.path not in found]
    return {"missing image": missing, "empty image file": empty}


def _duplicates(values: Iterable[int | str]) -> list[str]:
    return [str(value) for value, count in Counter(values).items() if count > 1]


def _raise_damages(
    root: Path, annotation_file: Path, annotations: dict[str, list[str]], images: dict[str, list[str]]
) -> None:
    causes = [f"{what}: {_named(offenders)}" for what, offenders in (annotations | images).items() if offenders]
    if not causes:
        return
    remedies = []
    if any(annotations.values()):
        remedies.append(f"mend {annotation_file}, or fetch COCO's again: {_fetch_annotations(root)}")
    if any(images.values()):
        remedies.append(f"fetch the images again: {_fetch_images(root)}")
    raise DatasetError(f"{root}: {'; '.join(causes)}", "; then ".join(remedies))


def _named(offenders: Iterable[str]) -> str:
    every = list(offenders)
    more = ", ..." if len(every) > NAMED_AT_MOST else ""
    return f"{len(every)} ({', '.join(every[:NAMED_AT_MOST])}{more})"


def _is_full_val2017(content: _Content) -> bool:
    counts = len(content.images), len(content.categories), len(content.annotations)
    return counts == (VAL2017_IMAGES, VAL2017_CATEGORIES, VAL2017_ANNOTATIONS)


def _content_hash(annotations: bytes, images: Sequence[ImageRecord]) -> str:
    digest = hashlib.sha256(hashlib.sha256(annotations).digest())
    for record in images:
        digest.update(f"{record.path.name}\0{record.path.stat().st_size}\n".encode())
    return digest.hexdigest()


def fetch_command(root: Path) -> str:
    """The command line that fetches COCO val2017, images and annotations, to `root`."""
    return f"{_fetch_images(root)} && {_fetch_annotations(root)}"


def _fetch_images(root: Path) -> str:
    folder = shlex.quote(str(root / "images"))
    return f"curl -LO {IMAGES_URL} && mkdir -p {folder} && unzip -q val2017.zip -d {folder}"


def _fetch_annotations(root: Path) -> str:
    # -j drops the archive's top folder `coco/`, so that the command holds whatever the user's folder is called.
    folder = shlex.quote(str(root / "annotations"))
    unpack = f"unzip -q -j coco2017labels.zip '*/instances_val2017.json' -d {folder}"
    return f"curl -LO {LABELS_URL} && mkdir -p {folder} && {unpack}"
