"""Takes image files or BGR arrays and an `InputSpec`; gives the network's input and the `Geometry` that undoes it."""

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from harness.detect.headers import is_complete
from harness.errors import DatasetError

if TYPE_CHECKING:
    from harness.model.mmdet import InputSpec

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

FETCH_AGAIN = (
    "rm the file, then fetch it again (COCO's: python -m harness fetch coco2017-val --data-dir DIR), "
    "or take the image out of the annotations"
)


@dataclass(frozen=True)
class Geometry:
    """Where the photograph lies in the network's input; all sizes in pixels.

    content_height, content_width: the resized photograph, at the top left of the padded input.
    scale_x, scale_y: content / original, mmdet's `scale_factor`.
    """

    original_height: int
    original_width: int
    content_height: int
    content_width: int
    scale_x: float
    scale_y: float


def read_image(path: Path | str) -> UInt8Array:
    """The photograph as colour, turned upright by its EXIF orientation.

    Returns:
        `[H, W, 3]` uint8, BGR. Grey-scale and CMYK files come out as BGR too, 16 bits as 8, alpha is dropped.

    Raises:
        DatasetError: the file cannot be read or decoded, or is a JPEG or PNG that was cut short.

    Source: mmcv 2.1.0 `imfrombytes(flag='color', backend='cv2')`, which mmdet's `LoadImageFromFile` calls.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read image {path}: {error.strerror}", "check the data directory") from error
    # Some OpenCV releases fill what is missing with grey and say nothing but a line on stderr.
    if not is_complete(io.BytesIO(data)):
        raise DatasetError(f"image {path} is cut short: its image data has no end marker", FETCH_AGAIN)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise DatasetError(f"image {path} cannot be decoded ({len(data)} bytes)", FETCH_AGAIN)
    return image.astype(np.uint8, copy=False)


def preprocess(image: UInt8Array, spec: "InputSpec") -> tuple[FloatArray, Geometry]:
    """One network input, bitwise what mmdet's test pipeline makes of the same image.

    Args:
        image: `[H, W, 3]` uint8, BGR.

    Returns:
        `[3, spec.height, spec.width]` float32, contiguous, 0 right of and below the photograph; and its geometry.

    Raises:
        DatasetError: not an image of that form, or so thin that nothing of it is left after the resize.

    Source: mmdet 3.3.0 `Resize`, `PackDetInputs`, `DetDataPreprocessor`. With `keep_ratio` and an input that is not
    square, mmdet would turn the target size for a portrait; an engine's input is fixed, so here it has to fit.
    """
    out = np.empty((3, spec.height, spec.width), np.float32)
    return out, preprocess_into(out, image, spec)


def preprocess_into(out: FloatArray, image: UInt8Array, spec: "InputSpec") -> Geometry:
    """Like `preprocess`, into an array that is there: one row of a batch. Threads may fill different rows at once.

    Args:
        out: float32 `[3, spec.height, spec.width]`, contiguous, overwritten, also right of and below the photograph.
        image: `[H, W, 3]` uint8, BGR.

    Raises:
        DatasetError: as `preprocess`.
        ValueError: `out` has another form.
    """
    if not _has_form(out, (3, spec.height, spec.width)):
        raise ValueError(
            f"out: wanted contiguous float32 [3, {spec.height}, {spec.width}], found {out.dtype} {list(out.shape)}"
        )
    geometry = _geometry(image, spec)
    height, width = geometry.content_height, geometry.content_width
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    for channel, table in enumerate(_normalisation_tables(spec)):
        plane = cv2.extractChannel(resized, 2 - channel if spec.to_rgb else channel)
        cv2.LUT(plane, table, dst=out[channel, :height, :width])
    out[:, height:] = 0
    out[:, :height, width:] = 0
    return geometry


def preprocess_batch(
    images: Sequence[Path | str | UInt8Array], spec: "InputSpec", out: FloatArray | None = None
) -> tuple[FloatArray, list[Geometry]]:
    """A batch of network inputs: see `read_image` and `preprocess`.

    Args:
        images: N files or `[H, W, 3]` BGR arrays.
        out: float32 `[M, 3, spec.height, spec.width]`, contiguous, M >= N, overwritten; rows from N on become 0
            (a fixed batch that the data set does not fill).

    Returns:
        `out`, or a new array with M = N; and N geometries.

    Raises:
        DatasetError: an image cannot be used.
        ValueError: `out` has another form.
    """
    if out is None:
        out = np.empty((len(images), 3, spec.height, spec.width), np.float32)
    elif not _has_form(out, (max(len(out), len(images)), 3, spec.height, spec.width)):
        raise ValueError(
            f"out: wanted contiguous float32 [>={len(images)}, 3, {spec.height}, {spec.width}], "
            f"found {out.dtype} {list(out.shape)}"
        )
    geometries = [
        preprocess_into(row, image if isinstance(image, np.ndarray) else read_image(image), spec)
        for row, image in zip(out, images, strict=False)
    ]
    out[len(images) :] = 0
    return out, geometries


def _has_form(out: FloatArray, shape: tuple[int, ...]) -> bool:
    return out.dtype == np.float32 and out.shape == shape and out.flags.c_contiguous


def _geometry(image: UInt8Array, spec: "InputSpec") -> Geometry:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DatasetError(
            f"wanted an image [H, W, 3] of uint8, found {image.dtype} {list(image.shape)}",
            "read it with harness.detect.preprocess.read_image",
        )
    height, width = image.shape[:2]
    new_height, new_width = spec.height, spec.width
    if spec.keep_ratio:
        # mmcv 2.1.0 `rescale_size` and `_scale_size`: this order of operations decides the rounding.
        scale = min(spec.width / width, spec.height / height)
        new_height, new_width = int(height * scale + 0.5), int(width * scale + 0.5)
    if not new_height or not new_width:
        raise DatasetError(
            f"an image of {width}x{height} pixels is too thin: it becomes {new_width}x{new_height} in the input",
            "take the image out of the annotations",
        )
    return Geometry(height, width, new_height, new_width, scale_x=new_width / width, scale_y=new_height / height)


@functools.lru_cache(maxsize=16)
def _normalisation_tables(spec: "InputSpec") -> FloatArray:
    """`[3, 256]`: (level - mean) / std in float32, by channel of the input; a table lookup is exact and fast."""
    levels = np.arange(256, dtype=np.float32)
    mean, std = (np.array(values, np.float32)[:, None] for values in (spec.mean, spec.std))
    tables: FloatArray = (levels - mean) / std
    return tables
