"""Preprocessing gives bitwise what mmdet's test pipeline makes of the same file."""

import dataclasses
import functools
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from harness.detect.preprocess import Geometry, preprocess, preprocess_batch, preprocess_into, read_image
from harness.errors import DatasetError
from harness.model.mmdet import InputSpec, build_module, describe_input, load_config
from harness.model.registry import load_models
from harness.pipeline import EMBEDDED

pytestmark = pytest.mark.selftest

EXIF_ORIENTATION = 0x0112


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture of smooth noise."""
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 4), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (7, 7), 2)
    return {
        "L": lambda: Image.fromarray(smooth[..., 0]),
        "RGB": lambda: Image.fromarray(np.ascontiguousarray(smooth[..., :3])),
        "RGBA": lambda: Image.fromarray(smooth, "RGBA"),
        "CMYK": lambda: Image.fromarray(smooth, "CMYK"),
        "P": lambda: Image.fromarray(smooth[..., 0]).convert("P"),
        "I;16": lambda: Image.fromarray(smooth[..., 0].astype(np.uint16) * 257 + 11),
    }[mode]()


def turned(orientation: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return encoded(picture(97, 61, mode), kind, exif=exif)


def sixteen_bits_colour() -> bytes:
    """A colour PNG of 16 bits a channel, which Pillow does not write."""
    levels = np.random.default_rng(0).integers(0, 65536, (33, 64, 3), dtype=np.uint16)
    return cv2.imencode(".png", levels)[1].tobytes()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "landscape.jpg": lambda: encoded(picture(203, 131), "JPEG"),
    "portrait.jpg": lambda: encoded(picture(131, 203), "JPEG"),
    "progressive.jpg": lambda: encoded(picture(150, 150), "JPEG", progressive=True),
    "grey.jpg": lambda: encoded(picture(101, 67, "L"), "JPEG"),
    "cmyk.jpg": lambda: encoded(picture(101, 67, "CMYK"), "JPEG"),
    **{f"orientation_{value}.jpg": functools.partial(turned, value) for value in range(1, 9)},
    "orientation_unknown.jpg": lambda: turned(9),
    "orientation_6.png": lambda: turned(6, "PNG"),
    "grey_turned.jpg": lambda: turned(8, mode="L"),
    "cmyk_turned.jpg": lambda: turned(5, mode="CMYK"),
    "trailing_bytes.jpg": lambda: encoded(picture(50, 40), "JPEG") + b"appended",
    "colour.png": lambda: encoded(picture(64, 33), "PNG"),
    "alpha.png": lambda: encoded(picture(64, 33, "RGBA"), "PNG"),
    "palette.png": lambda: encoded(picture(64, 33, "P"), "PNG"),
    "transparent_palette.png": lambda: encoded(picture(64, 33, "P"), "PNG", transparency=3),
    "grey.png": lambda: encoded(picture(64, 33, "L"), "PNG"),
    "black_and_white.png": lambda: encoded(picture(64, 33, "L").convert("1"), "PNG"),
    "sixteen_bits.png": lambda: encoded(picture(64, 33, "I;16"), "PNG"),
    "sixteen_bits_colour.png": sixteen_bits_colour,
    "picture.webp": lambda: encoded(picture(90, 70), "WEBP"),
    "picture.bmp": lambda: encoded(picture(90, 70), "BMP"),
    "one_pixel.png": lambda: encoded(picture(1, 1), "PNG"),
    "exact_fit.png": lambda: encoded(picture(160, 160), "PNG"),
    "three_to_one.png": lambda: encoded(picture(299, 100), "PNG"),
}


@pytest.fixture(params=FILES)
def image_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    path.write_bytes(FILES[request.param]())
    return path


@functools.cache
def _mmdet(family: str) -> tuple[Any, Any, InputSpec]:
    """mmdet's config and data preprocessor beside our description of the input."""
    spec = load_models()[family]
    config = load_config(spec)
    module = build_module(config)
    return config, module.data_preprocessor, describe_input(spec, config)


def input_spec(keep_ratio: bool, height: int = 160, width: int = 160) -> InputSpec:
    return dataclasses.replace(_mmdet("paa")[2], height=height, width=width, keep_ratio=keep_ratio)


@functools.cache
def _mmdet_pipeline(width: int, height: int, keep_ratio: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """mmdet's test pipeline for one input, without annotations."""
    from mmcv.transforms import Compose

    steps = [dict(step) for step in _mmdet("paa")[0].test_pipeline if step["type"] != "LoadAnnotations"]
    resize = next(step for step in steps if step["type"] == "Resize")
    resize.update(scale=(width, height), keep_ratio=keep_ratio)
    return Compose(steps)


def through_mmdet(path: Path, spec: InputSpec) -> tuple[np.ndarray, dict[str, Any]]:
    """The network's input that mmdet makes of a file, padded to the whole input, and its meta information."""
    data = _mmdet_pipeline(spec.width, spec.height, spec.keep_ratio)({"img_path": str(path), "img_id": 0})
    batch = _mmdet("paa")[1]({"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]}, False)
    image = batch["inputs"][0].numpy()
    padding = [(0, 0), (0, spec.height - image.shape[1]), (0, spec.width - image.shape[2])]
    return np.pad(image, padding), data["data_samples"].metainfo


@pytest.mark.parametrize("keep_ratio", [True, False], ids=["ratio kept", "stretched"])
def test_a_file_becomes_bitwise_the_input_that_mmdet_makes_of_it(image_file: Path, keep_ratio: bool) -> None:
    spec = input_spec(keep_ratio)
    ours, _ = preprocess(read_image(image_file), spec)
    np.testing.assert_array_equal(ours, through_mmdet(image_file, spec)[0])


@pytest.mark.parametrize("keep_ratio", [True, False], ids=["ratio kept", "stretched"])
def test_the_geometry_is_what_mmdet_notes_of_a_file(image_file: Path, keep_ratio: bool) -> None:
    spec = input_spec(keep_ratio)
    _, geometry = preprocess(read_image(image_file), spec)
    meta = through_mmdet(image_file, spec)[1]
    expected = Geometry(*meta["ori_shape"], *meta["img_shape"], *meta["scale_factor"])
    assert geometry == expected


@pytest.mark.parametrize("keep_ratio", [True, False], ids=["ratio kept", "stretched"])
def test_a_landscape_input_is_filled_as_by_mmdet(tmp_path: Path, keep_ratio: bool) -> None:
    path = tmp_path / "landscape.png"
    path.write_bytes(encoded(picture(199, 131), "PNG"))
    spec = input_spec(keep_ratio, height=96, width=160)
    ours, _ = preprocess(read_image(path), spec)
    np.testing.assert_array_equal(ours, through_mmdet(path, spec)[0])


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (500, 375), (333, 500), (640, 640), (59, 72)])
@pytest.mark.parametrize("family", ["pisa", "paa"])
def test_full_size_inputs_are_bitwise_those_of_mmdet(family: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "photograph.jpg"
    path.write_bytes(encoded(picture(*size), "JPEG"))
    spec = _mmdet(family)[2]
    ours, _ = preprocess(read_image(path), spec)
    np.testing.assert_array_equal(ours, through_mmdet(path, spec)[0])


def photographs(folder: Path) -> list[Path]:
    return sorted((folder / "images" / "val2017").glob("*.jpg"))


EMBEDDED_PHOTOGRAPHS = photographs(EMBEDDED / "data")


def differing(family: str, files: Sequence[Path]) -> list[str]:
    """The files of which we make another input than mmdet does."""
    spec = _mmdet(family)[2]
    return [
        path.name
        for path in files
        if not np.array_equal(preprocess(read_image(path), spec)[0], through_mmdet(path, spec)[0])
    ]


def test_there_are_embedded_images() -> None:
    assert len(EMBEDDED_PHOTOGRAPHS) > 100


@pytest.mark.parametrize("start", [0, *(pytest.param(start, marks=pytest.mark.slow) for start in range(1, 5))])
@pytest.mark.parametrize("family", ["pisa-mini", "paa-mini"])
def test_every_embedded_image_becomes_bitwise_the_input_that_mmdet_makes_of_it(family: str, start: int) -> None:
    assert differing(family, EMBEDDED_PHOTOGRAPHS[start::5]) == []


def test_an_input_that_is_not_mmdets_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.detect.preprocess.cv2.INTER_LINEAR", cv2.INTER_CUBIC)
    assert differing("paa-mini", EMBEDDED_PHOTOGRAPHS[:1]) == [EMBEDDED_PHOTOGRAPHS[0].name]


@pytest.mark.slow
@pytest.mark.skipif("DATASETS_DIR" not in os.environ, reason="DATASETS_DIR names no folder of photographs")
@pytest.mark.parametrize("family", ["pisa", "paa"])
def test_every_photograph_becomes_bitwise_the_input_that_mmdet_makes_of_it(family: str) -> None:
    files = photographs(Path(os.environ["DATASETS_DIR"]))
    assert files
    assert differing(family, files) == []


def test_a_portrait_fits_into_a_landscape_input() -> None:
    _, geometry = preprocess(np.zeros((400, 100, 3), np.uint8), input_spec(True, height=96, width=160))
    assert (geometry.content_height, geometry.content_width) == (96, 24)


def test_channels_keep_their_order_where_the_model_wants_bgr() -> None:
    spec = dataclasses.replace(input_spec(False, 32, 32), to_rgb=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    ours, _ = preprocess(np.full((32, 32, 3), (1, 2, 3), np.uint8), spec)
    assert ours[:, 0, 0].tolist() == [1.0, 2.0, 3.0]


def test_an_array_that_is_there_is_filled_like_a_new_one() -> None:
    spec = input_spec(True)
    out = np.full((3, 160, 160), 7.0, np.float32)
    geometry = preprocess_into(out, pictures()[0], spec)
    wanted = preprocess(pictures()[0], spec)
    np.testing.assert_array_equal(out, wanted[0])
    assert geometry == wanted[1]


@pytest.mark.parametrize(
    "out",
    [
        np.empty((3, 160, 160), np.float64),
        np.empty((3, 160, 128), np.float32),
        np.empty((1, 3, 160, 160), np.float32),
        np.empty((3, 160, 320), np.float32)[:, :, ::2],
    ],
    ids=["float64", "width", "batch", "not contiguous"],
)
def test_a_row_of_another_form_is_refused(out: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"out: wanted contiguous float32 \[3, 160, 160\]"):
        preprocess_into(out, pictures()[0], input_spec(True))


def test_threads_fill_the_rows_of_a_batch_like_one_thread() -> None:
    spec = input_spec(True)
    images = [np.asarray(picture(60 + i, 40 + i % 7)) for i in range(64)]
    out = np.full((64, 3, 160, 160), 7.0, np.float32)
    with ThreadPoolExecutor(8) as pool:
        geometries = list(pool.map(preprocess_into, out, images, [spec] * 64))
    wanted = preprocess_batch(images, spec)
    np.testing.assert_array_equal(out, wanted[0])
    assert geometries == wanted[1]


def test_an_input_is_contiguous_float32() -> None:
    ours, _ = preprocess(np.zeros((40, 30, 3), np.uint8), input_spec(True))
    assert (ours.dtype, ours.flags.c_contiguous) == (np.float32, True)


def pictures() -> list[np.ndarray]:
    return [np.asarray(picture(60, 40)), np.asarray(picture(40, 60)), np.asarray(picture(50, 50))]


def test_a_batch_holds_the_inputs_of_its_images() -> None:
    spec = input_spec(True)
    batch, _ = preprocess_batch(pictures(), spec)
    np.testing.assert_array_equal(batch, np.stack([preprocess(image, spec)[0] for image in pictures()]))


def test_a_batch_has_one_geometry_per_image() -> None:
    spec = input_spec(True)
    _, geometries = preprocess_batch(pictures(), spec)
    assert geometries == [preprocess(image, spec)[1] for image in pictures()]


def test_a_batch_reads_files(image_file: Path) -> None:
    spec = input_spec(True)
    of_files, _ = preprocess_batch([image_file, str(image_file)], spec)
    np.testing.assert_array_equal(of_files, preprocess_batch([read_image(image_file)] * 2, spec)[0])


def test_an_empty_batch_is_empty() -> None:
    batch, geometries = preprocess_batch([], input_spec(True))
    assert (batch.shape, geometries) == ((0, 3, 160, 160), [])


def test_a_batch_is_written_into_the_array_given() -> None:
    out = np.empty((3, 3, 160, 160), np.float32)
    assert preprocess_batch(pictures(), input_spec(True), out)[0] is out


def test_nothing_of_an_earlier_batch_stays_in_the_array_given() -> None:
    out = np.full((3, 3, 160, 160), 7.0, np.float32)
    preprocess_batch(pictures(), input_spec(True), out)
    np.testing.assert_array_equal(out, preprocess_batch(pictures(), input_spec(True))[0])


def test_rows_that_the_images_do_not_fill_become_zero() -> None:
    out = np.full((5, 3, 160, 160), 7.0, np.float32)
    preprocess_batch(pictures(), input_spec(True), out)
    assert not out[3:].any()


@pytest.mark.parametrize(
    "out",
    [
        np.empty((2, 3, 160, 160), np.float32),
        np.empty((3, 3, 160, 160), np.float64),
        np.empty((3, 3, 160, 128), np.float32),
        np.empty((3, 160, 160), np.float32),
        np.empty((6, 3, 160, 160), np.float32)[::2],
    ],
    ids=["too few rows", "float64", "width", "no batch", "not contiguous"],
)
def test_an_array_of_another_form_is_refused(out: np.ndarray) -> None:
    with pytest.raises(ValueError, match="out: wanted contiguous float32"):
        preprocess_batch(pictures(), input_spec(True), out)


def with_thumbnail() -> bytes:
    """A JPEG whose EXIF block holds a whole second JPEG, end marker included."""
    thumbnail = encoded(picture(16, 16), "JPEG")
    body = encoded(picture(200, 150), "JPEG")
    segment = b"Exif\x00\x00" + thumbnail
    return body[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + body[2:]


CUT_SHORT: dict[str, Callable[[], bytes]] = {
    "half.jpg": lambda: FILES["landscape.jpg"]()[:3000],
    "half_progressive.jpg": lambda: FILES["progressive.jpg"]()[:-500],
    "no_end_marker.jpg": lambda: FILES["landscape.jpg"]()[:-2],
    "half_with_thumbnail.jpg": lambda: with_thumbnail()[:-1000],
    "start_marker_only.jpg": lambda: b"\xff\xd8",
    "no_image_data.jpg": lambda: b"\xff\xd8\xff\xd9",
    "half.png": lambda: FILES["colour.png"]()[:2000],
    "no_last_chunk.png": lambda: FILES["colour.png"]()[:-12],
}


@pytest.mark.parametrize("name", CUT_SHORT)
def test_an_image_that_was_cut_short_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(CUT_SHORT[name]())
    with pytest.raises(DatasetError, match=f"{name} is cut short"):
        read_image(path)


UNREADABLE: dict[str, Callable[[], bytes]] = {
    "empty.jpg": lambda: b"",
    "page.jpg": lambda: b"<html>404</html>",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_decoded_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(UNREADABLE[name]())
    with pytest.raises(DatasetError, match=f"{name} cannot be decoded"):
        read_image(path)


def test_a_jpeg_with_a_thumbnail_is_read(tmp_path: Path) -> None:
    path = tmp_path / "thumbnail.jpg"
    path.write_bytes(with_thumbnail())
    assert read_image(path).shape == (150, 200, 3)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"absent\.jpg: No such file"):
        read_image(tmp_path / "absent.jpg")


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)])
def test_an_array_that_is_no_bgr_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(DatasetError, match="wanted an image"):
        preprocess(image, input_spec(True))


def test_an_image_too_thin_for_the_input_is_refused() -> None:
    with pytest.raises(DatasetError, match="1x5000 pixels is too thin"):
        preprocess(np.zeros((5000, 1, 3), np.uint8), input_spec(True))


def test_preprocessing_imports_no_framework() -> None:
    code = "import sys, harness.detect.preprocess; print({'torch', 'mmdet', 'mmcv', 'mmengine'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
