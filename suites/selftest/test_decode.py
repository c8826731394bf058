"""Decoding gives what mmdet 3.3.0 gives for the same raw head maps."""

import dataclasses
import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures.rawmaps import CANDIDATES_PER_IMAGE, coco_like
from harness.detect.dataset import load_coco
from harness.detect.decode import Boxes, Decoder, kernels, make_decoder, on_host, output_shapes, scan
from harness.detect.decode.kernels import Candidates, Settings, ascending, batched_nms, ranked, sigmoid
from harness.detect.decode.on_host import share
from harness.detect.decode.scan import BLOCK, STRETCH, TANGENTS, note_floors, reader_of
from harness.detect.decode.scores import log_floor, logit_floor
from harness.detect.preprocess import Geometry
from harness.detect.run import load_batch, parts_of
from harness.errors import DecodeError, NotFinite
from harness.model.checkpoint import find
from harness.model.export import run_module
from harness.model.mmdet import (
    HeadSpec,
    InputSpec,
    build_module,
    describe_head,
    describe_input,
    load_config,
    load_module,
)
from harness.model.registry import load_models
from harness.pipeline import EMBEDDED
from suites.selftest.reference import assert_same, assert_same_sets, mmdet_boxes, stable_torch

pytestmark = pytest.mark.selftest

Maps = Mapping[str, np.ndarray]

FAMILIES = ("pisa", "paa")
ROOT = Path(__file__).resolve().parents[2]
SMALL = (128, 160)


@functools.cache
def _mmdet(family: str, num_classes: int) -> tuple[Any, HeadSpec, InputSpec]:
    """mmdet's head beside our description of it."""
    spec = load_models()[family]
    spec = spec.model_copy(update={"overrides": {"model.bbox_head.num_classes": num_classes}})
    config = load_config(spec)
    return build_module(config).bbox_head, describe_head(spec, config), describe_input(spec, config)


class Case:
    """One head and input size, decoded by detgate and by mmdet."""

    def __init__(self, family: str, num_classes: int = 8, size: tuple[int, int] = SMALL) -> None:
        self.bbox_head, self.head, input_spec = _mmdet(family, num_classes)
        self.input_spec = dataclasses.replace(input_spec, height=size[0], width=size[1])

    def maps(self, cls: tuple[float, float], seed: int = 0, batch: int = 1, box_spread: float = 0.5) -> dict[str, Any]:
        """Random maps; class logits are normal with mean and deviation `cls`.

        All values are multiples of 1/1024: two scores are equal or differ by more than any processor's rounding does.
        """
        rng = np.random.default_rng(seed)
        moments = {"cls": cls, "box": (0.0, box_spread / self.head.target_stds[0]), "iou": (0.0, 1.0)}
        shapes = output_shapes(self.head, self.input_spec, batch)
        draws = {name: rng.normal(*moments[name[:3]], shape) for name, shape in shapes.items()}
        return {name: (np.round(values * 1024) / 1024).astype(np.float32) for name, values in draws.items()}

    def whole(self) -> Geometry:
        """The geometry of an image that is the input, unscaled and without padding."""
        return Geometry(*(self.input_spec.height, self.input_spec.width) * 2, 1.0, 1.0)

    @property
    def decoder(self) -> Decoder:
        return make_decoder(self.head, self.input_spec)

    def ours(self, maps: Maps, geometries: Sequence[Geometry] = ()) -> list[Boxes]:
        return self.decoder.decode(maps, geometries or [self.whole()])

    def theirs(self, maps: Maps, geometries: Sequence[Geometry] = ()) -> list[Boxes]:
        return mmdet_boxes(self.bbox_head, self.head, maps, geometries or [self.whole()])


def _tensors(maps: Maps) -> Maps:
    import torch

    return {name: torch.from_numpy(values) for name, values in maps.items()}


@pytest.fixture(params=[dict, _tensors], ids=["arrays", "tensors"])
def as_given(request: pytest.FixtureRequest) -> Callable[[Maps], Maps]:
    """Maps in each form that a decoder takes."""
    return request.param


def assert_identical(first: Boxes, second: Boxes) -> None:
    for field in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


@pytest.fixture(autouse=True)
def torch_breaks_ties_by_index() -> Iterator[None]:
    with stable_torch():
        yield


DENSITIES = {"all below": (-12.0, 0.5), "sparse": (-6.0, 1.5), "dense": (-3.0, 1.5), "everything above": (2.0, 1.0)}


@pytest.mark.parametrize("num_classes", [1, 8, pytest.param(80, marks=pytest.mark.slow)])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_random_maps_decode_as_in_mmdet(family: str, density: str, num_classes: int) -> None:
    case = Case(family, num_classes)
    maps = case.maps(DENSITIES[density], seed=num_classes)
    assert_same(case.ours(maps), case.theirs(maps))


class Draw:
    """One seeded set of raw maps, small, of a size and class count of its own."""

    def __init__(self, family: str, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.seed = seed
        self.case = Case(family, int(self.rng.choice([1, 3, 8])), tuple(int(i) for i in self.rng.integers(40, 140, 2)))
        self.geometries = [self.case.whole()]

    def maps(self, mean: float, spread: float = 1.5, box_spread: float = 0.5, batch: int = 1) -> dict[str, Any]:
        return self.case.maps((mean, spread), self.seed, batch, box_spread)

    def levels_of(self, maps: Maps, logits: Sequence[float]) -> dict[str, Any]:
        """The maps with class and IoU logits drawn from a few values, so that many scores are exactly equal."""
        drawn = {name: self.rng.choice(np.array(logits, np.float32), values.shape) for name, values in maps.items()}
        return {name: values if name.startswith("box") else drawn[name] for name, values in maps.items()}

    def one_cell(self) -> dict[str, Any]:
        self.case = Case(self.case.head.family.replace("anchor", "pisa"), 8, (8, 8))
        self.geometries = [self.case.whole()]
        return self.maps(-1.0, 2.0)

    def padded(self) -> dict[str, Any]:
        height, width = self.case.input_spec.height, self.case.input_spec.width
        content = [int(self.rng.integers(1, limit + 1)) for limit in (height, width)]
        original = [int(i) for i in self.rng.integers(10, 2000, 2)]
        self.geometries = [Geometry(*original, *content, content[1] / original[1], content[0] / original[0])]
        return self.maps(-3.5)

    def several(self) -> dict[str, Any]:
        padded, maps = self.padded(), self.maps(-4.0, batch=4)
        self.geometries = [self.geometries[0], self.case.whole(), self.geometries[0]]
        return {name: np.concatenate([values[:1], maps[name][1:]]) for name, values in padded.items()}


DRAWS: dict[str, Callable[[Draw], dict[str, Any]]] = {
    "sparse": lambda draw: draw.maps(-6.0),
    "dense": lambda draw: draw.maps(-3.0),
    "exact ties": lambda draw: draw.levels_of(draw.maps(-4.0), [-9, -9, -9, -9, -2, -1, 0, 1]),
    "tied everywhere": lambda draw: draw.levels_of(draw.maps(-4.0), [1]),
    "all below": lambda draw: draw.maps(-12.0, 0.5),
    "all above": lambda draw: draw.maps(2.0, 1.0),
    "one cell": Draw.one_cell,
    "half precision": lambda draw: {name: values.astype(np.float16) for name, values in draw.maps(-3.5).items()},
    "extreme logits": lambda draw: draw.levels_of(draw.maps(-4.0), [-80, -80, -80, -40, -4, 0, 4, 80]),
    "huge deltas": lambda draw: draw.maps(-4.0, box_spread=50.0),
    "padded": Draw.padded,
    "several images": Draw.several,
}
SEEDS, MORE_SEEDS = range(100, 109), range(109, 127)


@pytest.mark.parametrize("seeds", [SEEDS, pytest.param(MORE_SEEDS, marks=pytest.mark.slow)], ids=["some", "more"])
@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_seeded_sets_of_maps_decode_as_in_mmdet(family: str, kind: str, seeds: range) -> None:
    for seed in seeds:
        draw = Draw(family, seed)
        maps = DRAWS[kind](draw)
        assert_same(draw.case.ours(maps, draw.geometries), draw.case.theirs(maps, draw.geometries))


def test_at_least_300_seeded_sets_are_tried() -> None:
    assert len(DRAWS) * len({*SEEDS, *MORE_SEEDS}) >= 300


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pisa-mini", "paa-mini"])
def test_raw_maps_of_the_embedded_models_decode_as_in_mmdet(model: str) -> None:
    spec = load_models()[model]
    config = load_config(spec)
    head, input_spec = describe_head(spec, config), describe_input(spec, config)
    module: Any = load_module(spec, config, find(spec, [EMBEDDED / "weights"]).path)
    decoder, boxes = make_decoder(head, input_spec), 0
    for records in parts_of(load_coco(EMBEDDED / "data", "mini"), batch=16):
        batch = load_batch(records, input_spec, len(records))
        maps = run_module(module, head, batch.images)
        theirs = mmdet_boxes(module.bbox_head, head, maps, batch.geometries)
        assert_same_sets(decoder.decode(maps, batch.geometries), theirs)
        boxes += sum(len(image.scores) for image in theirs)
    assert boxes > 1000, "too few boxes to mean anything"


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_below_the_threshold_give_no_box(family: str) -> None:
    case = Case(family)
    maps = case.maps((-12.0, 0.5))
    assert [len(boxes.scores) for boxes in case.ours(maps)] == [0]


@pytest.mark.parametrize("cut", [False, True], ids=["all kept", "cut by nms_pre"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_scores_decode_in_the_order_of_their_index(family: str, cut: bool) -> None:
    case = Case(family, size=(320, 288) if cut else SMALL)
    maps = {name: np.round(values) for name, values in case.maps((-2.0 if cut else -5.0, 1.5)).items()}
    assert_same(case.ours(maps), case.theirs(maps))


@pytest.mark.parametrize("family", FAMILIES)
def test_saturated_scores_decode_as_in_mmdet(family: str) -> None:
    case = Case(family)
    maps = {name: np.clip(values * 100, -200, 200) for name, values in case.maps((-1.0, 1.0), box_spread=0.005).items()}
    assert_same(case.ours(maps), case.theirs(maps))


@pytest.mark.parametrize("family", FAMILIES)
def test_input_sizes_that_no_stride_divides_decode_as_in_mmdet(family: str) -> None:
    case = Case(family, size=(97, 131))
    maps = case.maps((-4.0, 1.5))
    assert_same(case.ours(maps), case.theirs(maps))


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_maps_decode_as_their_float32_values(family: str, density: str) -> None:
    case = Case(family)
    maps = {name: values.astype(np.float16) for name, values in case.maps(DENSITIES[density], seed=3).items()}
    assert_same(case.ours(maps), case.theirs(maps))


GEOMETRIES = {
    "landscape": Geometry(427, 640, 107, 160, 160 / 640, 107 / 427),
    "portrait": Geometry(640, 480, 128, 96, 96 / 480, 128 / 640),
    "stretched": Geometry(333, 777, 128, 160, 160 / 777, 128 / 333),
    "enlarged": Geometry(50, 40, 128, 102, 102 / 40, 128 / 50),
    "sliver": Geometry(1000, 9, 128, 1, 1 / 9, 128 / 1000),
}


@pytest.mark.parametrize("shape", GEOMETRIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_come_back_in_pixels_of_the_original_image(family: str, shape: str) -> None:
    case = Case(family)
    maps = case.maps((-3.5, 1.5), seed=5)
    assert_same(case.ours(maps, [GEOMETRIES[shape]]), case.theirs(maps, [GEOMETRIES[shape]]))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_image_of_a_batch_keeps_its_geometry(family: str) -> None:
    case = Case(family)
    maps = case.maps((-4.0, 1.5), batch=3)
    geometries = [GEOMETRIES["portrait"], case.whole(), GEOMETRIES["landscape"]]
    assert_same(case.ours(maps, geometries), case.theirs(maps, geometries))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_pad_the_last_batch_are_ignored(family: str) -> None:
    case = Case(family)
    maps = case.maps((-4.0, 1.5), batch=4)
    first = {name: values[:1] for name, values in maps.items()}
    assert_same(case.ours(maps, [case.whole()]), case.ours(first, [case.whole()]))


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_that_are_not_contiguous_decode_alike(family: str) -> None:
    case = Case(family)
    maps = case.maps((-4.0, 1.5))
    channels_last = {
        name: np.ascontiguousarray(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for name, values in maps.items()
    }
    assert_same(case.ours(channels_last), case.ours(maps))


@pytest.mark.parametrize("family", ["pisa", pytest.param("paa", marks=pytest.mark.slow)])
def test_full_size_maps_decode_as_in_mmdet(family: str) -> None:
    spec = load_models()[family].input
    case = Case(family, num_classes=80, size=(spec.height, spec.width))
    maps = case.maps((-7.0, 1.2) if family == "pisa" else (-6.0, 1.2))
    assert_same(case.ours(maps), case.theirs(maps))


@pytest.mark.parametrize("family", FAMILIES)
def test_coco_like_maps_decode_as_in_mmdet(family: str) -> None:
    spec = load_models()[family].input
    case = Case(family, num_classes=80, size=(spec.height, spec.width))
    maps = coco_like(case.head, case.input_spec)
    assert_same(case.ours(maps), case.theirs(maps))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """Of an array of any shape."""
    return sigmoid(logits.ravel()).reshape(logits.shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_coco_like_maps_have_as_many_candidates_as_wanted(family: str) -> None:
    case = Case(family, num_classes=80, size=(320, 320))
    maps = coco_like(case.head, case.input_spec, batch=2, seed=1)
    scores = {s: _sigmoid(maps[f"cls_{s}"]) for s in case.head.strides}
    if family == "paa":
        scores = {s: np.sqrt(values * _sigmoid(maps[f"iou_{s}"])) for s, values in scores.items()}
    counts = sum((values > case.head.score_thr).sum(axis=(1, 2, 3)) for values in scores.values())
    np.testing.assert_allclose(counts, CANDIDATES_PER_IMAGE, rtol=0.02)


@pytest.mark.parametrize("setting", ["score_thr", "nms_pre", "iou_threshold", "max_per_img"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_test_setting_changes_the_result_as_in_mmdet(
    family: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"score_thr": 0.6, "nms_pre": 7, "iou_threshold": 0.1, "max_per_img": 3}[setting]
    case = Case(family)
    test_cfg = case.bbox_head.test_cfg
    monkeypatch.setitem(test_cfg.nms if setting == "iou_threshold" else test_cfg, setting, changed)
    case.head = dataclasses.replace(case.head, **{setting: changed})
    maps = case.maps((-1.0, 1.5))
    assert_same(case.ours(maps), case.theirs(maps))


def test_without_score_voting_boxes_come_in_order_of_score_as_in_mmdet(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("paa")
    monkeypatch.setattr(case.bbox_head, "with_score_voting", False)
    case.head = dataclasses.replace(case.head, score_voting=False)
    maps = case.maps((-4.0, 1.5))
    assert_same(case.ours(maps), case.theirs(maps))


def test_a_minimal_box_size_drops_small_boxes_as_in_mmdet(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("pisa")
    monkeypatch.setitem(case.bbox_head.test_cfg, "min_bbox_size", 40)
    case.head = dataclasses.replace(case.head, min_bbox_size=40.0)
    maps = case.maps((-3.0, 1.5))
    assert_same(case.ours(maps), case.theirs(maps))


def _sliver_outside_the_photograph() -> tuple[Case, Maps, list[Geometry]]:
    """One confident PAA cell in the padding right of a narrow photograph: its box has no width."""
    case = Case("paa")
    maps = {name: np.full_like(values, -20.0) for name, values in case.maps((0.0, 1.0)).items()}
    maps["cls_8"][0, 2, 4, 19] = maps["iou_8"][0, 0, 4, 19] = 5.0
    for name in ("box_8", "box_16", "box_32", "box_64", "box_128"):
        maps[name][:] = 0.0
    return case, maps, [Geometry(128, 32, 128, 32, 1.0, 1.0)]


def test_score_voting_leaves_a_box_without_area_in_place() -> None:
    case, maps, geometries = _sliver_outside_the_photograph()
    (found,) = case.ours(maps, geometries)
    np.testing.assert_allclose(found.boxes, [[32, 0, 32, 64]])


def test_mmdet_makes_a_box_without_area_nan() -> None:
    case, maps, geometries = _sliver_outside_the_photograph()
    (found,) = case.theirs(maps, geometries)
    assert np.isnan(found.boxes).all()


NOT_FINITE = {"NaN": np.nan, "negative NaN": -np.nan, "Inf": np.inf, "-Inf": -np.inf}


@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("output", ["cls_8", "cls_128", "box_8", "box_128", "iou_8", "iou_128"])
@pytest.mark.parametrize("density", ["all below", "everything above"])
def test_one_value_that_is_not_finite_is_named(
    density: str, output: str, dtype: type, value: str, place: int, as_given: Callable[[Maps], Maps]
) -> None:
    case = Case("paa" if output.startswith("iou") else "pisa")
    maps = {name: values.astype(dtype) for name, values in case.maps(DENSITIES[density], batch=2).items()}
    maps[output][1].flat[place] = NOT_FINITE[value]
    with pytest.raises(NotFinite, match=f"NaN or Inf in raw output '{output}'"):
        case.decoder.decode_image(as_given(maps), 1, case.whole())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_class_logit_of_paa_that_is_not_finite_is_found_wherever_it_lies(family: str, value: str) -> None:
    case = Case(family, size=(64, 64))
    maps = case.maps((-9.0, 0.5))
    for place in range(0, maps["cls_8"].size, 37):
        broken = maps | {"cls_8": maps["cls_8"].copy()}
        broken["cls_8"].flat[place] = NOT_FINITE[value]
        with pytest.raises(NotFinite, match="cls_8"):
            case.ours(broken)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_that_are_not_finite_in_other_rows_are_not_read(family: str, as_given: Callable[[Maps], Maps]) -> None:
    case = Case(family)
    maps = case.maps((-4.0, 1.5), batch=3)
    for values in maps.values():
        values[1:] = np.nan
    first = {name: values[:1] for name, values in maps.items()}
    assert_same(case.ours(as_given(maps)), case.theirs(first))


@pytest.mark.parametrize("family", FAMILIES)
def test_finite_values_whose_sum_overflows_are_accepted(family: str, as_given: Callable[[Maps], Maps]) -> None:
    case = Case(family)
    maps = {name: np.full_like(values, 3e38) for name, values in case.maps((0.0, 1.0)).items()}
    assert len(case.ours(as_given(maps))) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_images_decoded_one_by_one_on_many_threads_are_those_of_the_batch(family: str) -> None:
    case = Case(family, size=(320, 320))
    maps = case.maps((-4.0, 1.5), batch=8)
    geometries = [Geometry(200 + i, 300 - i, 320, 320 - 8 * i, 1 + i / 8, 2 - i / 8) for i in range(8)]
    case.decoder.check(maps, 8)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(case.decoder.decode_image, [maps] * 40, list(range(8)) * 5, geometries * 5))
    for ours, wanted in zip(found, case.ours(maps, geometries) * 5, strict=True):
        assert_identical(ours, wanted)


@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_shared_tasks_are_all_done_once(count: int) -> None:
    done: list[int] = []
    share([functools.partial(done.append, i) for i in range(count)])
    assert sorted(done) == list(range(count))


def test_one_core_needs_no_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_host, "_helpers", lambda: 0)
    done: list[int] = []
    share([functools.partial(done.append, i) for i in range(5)])
    assert done == list(range(5))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_decode_as_arrays_and_stay_on_their_device(
    family: str, density: str, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    case = Case(family)
    arrays = {name: values.astype(dtype) for name, values in case.maps(DENSITIES[density], batch=3).items()}
    wanted = case.ours(arrays, [case.whole()] * 3)
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    _stay_on_the_device(monkeypatch, tensors)
    found = case.ours(tensors, [case.whole()] * 3)
    for ours, theirs in zip(
        [*found, case.decoder.decode_image(tensors, 2, case.whole())], [*wanted, wanted[2]], strict=True
    ):
        assert_identical(ours, theirs)


def _stay_on_the_device(monkeypatch: pytest.MonkeyPatch, tensors: Mapping[str, Any]) -> None:
    """Make any way to the host fail for the tensors and views of them."""
    import torch

    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}

    def guard(name: str) -> None:
        way = getattr(torch.Tensor, name)

        def guarded(self: Any, *args: Any) -> Any:
            assert self.untyped_storage().data_ptr() not in storages, f"{name}() on a raw map"
            return way(self, *args)

        monkeypatch.setattr(torch.Tensor, name, guarded)

    for name in ("cpu", "numpy", "tolist", "item", "__array__"):
        guard(name)


def test_the_guard_of_tensors_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    maps = {"cls_8": torch.zeros(2, 3)}
    _stay_on_the_device(monkeypatch, maps)
    with pytest.raises(AssertionError, match="numpy"):
        maps["cls_8"][1:].numpy()


def test_arrays_and_tensors_are_not_mixed() -> None:
    import torch

    case = Case("pisa")
    maps = case.maps((-6.0, 1.0))
    maps["box_16"] = torch.from_numpy(maps["box_16"])
    with pytest.raises(DecodeError, match="'box_16': wanted a ndarray like the others, found a Tensor"):
        case.ours(maps)


def _borderline(threshold: float) -> np.ndarray:
    """The float32 logits around the one whose score is `threshold`."""
    middle = np.float32(np.log(threshold / (1 - threshold)))
    return (middle.view(np.int32) + np.arange(-64, 65, dtype=np.int32)).view(np.float32)


def _ranked(
    places: np.ndarray,
    logits: np.ndarray,
    iou_logits: np.ndarray,
    first_anchors: np.ndarray,
    num_classes: int,
    threshold: float = 0.0,
) -> Candidates:
    """The candidates among entries without deltas."""
    settings = Settings(num_classes, np.float32(threshold), 0, np.float32(0), 0, np.float32(0), False)
    return ranked(places, logits, iou_logits, np.zeros((len(places), 4), np.float32), first_anchors, settings)


def passing(logits: np.ndarray, threshold: float) -> np.ndarray:
    """Indices of a class map's logits whose score exceeds the threshold, by a scan of one class and kind of anchor."""
    values, deltas = logits, np.zeros((1, 4, len(logits)), logits.dtype)
    if logits.dtype == np.float16:
        values, deltas = values.view(np.uint16), deltas.view(np.uint16)
    no_iou, floor = np.empty((1, 0), np.float32), np.float32(logit_floor(threshold))
    first_anchors = np.full(6, len(logits))
    first_anchors[0] = 0
    levels = (values[None, None],) * 5, (deltas,) * 5, (no_iou,) * 5
    finite, *entries, found = reader_of(5)(*levels, first_anchors, floor, 0, 1)
    assert finite
    assert not found.any()
    scores, _, anchors, _, _ = _ranked(*entries, first_anchors, 1, threshold)
    np.testing.assert_array_equal(scores, sigmoid(logits[anchors].astype(np.float32)))
    return np.sort(anchors)


@pytest.mark.parametrize("threshold", [0.01, 0.05, 0.3, 0.9])
def test_a_logit_passes_exactly_where_its_score_is_above_the_threshold(threshold: float) -> None:
    import torch

    logits = _borderline(threshold)
    np.testing.assert_array_equal(
        passing(logits, threshold), np.flatnonzero((torch.from_numpy(logits).sigmoid() > threshold).numpy())
    )


@pytest.mark.parametrize("threshold", [0.0, 0.001, 0.05, 0.5, 0.7, 0.999])
def test_half_precision_candidates_are_those_of_their_float32_values(threshold: float) -> None:
    every_half = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every_half[np.isfinite(every_half)]
    np.testing.assert_array_equal(passing(finite, threshold), passing(finite.astype(np.float32), threshold))


@pytest.mark.parametrize(("threshold", "count"), [(-1.0, 3), (0.0, 3), (1.0, 0), (2.0, 0)])
def test_thresholds_at_the_ends_pass_all_or_nothing(threshold: float, count: int) -> None:
    assert len(passing(np.array([-50.0, 0.0, 50.0], np.float32), threshold)) == count


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("size", [1, BLOCK, STRETCH - 1, STRETCH, STRETCH + 1, 25 * STRETCH + 7])
def test_a_scan_finds_what_a_plain_comparison_finds(size: int, dtype: type) -> None:
    logits = np.random.default_rng(size).normal(-7, 1.5, size).astype(dtype)
    logits[[0, -1]] = 1
    np.testing.assert_array_equal(passing(logits, 0.05), np.flatnonzero(sigmoid(logits.astype(np.float32)) > 0.05))


def _floors(ious: np.ndarray, threshold: float) -> np.ndarray:
    """Class logits that cannot pass beside these IoU logits."""
    floor = np.float32(log_floor(threshold))
    floors = np.empty_like(ious)
    note_floors(ious, floor, floors)
    return floors


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.05, 0.6, 0.99, 1.0])
def test_every_class_logit_whose_score_passes_is_above_its_anchors_floor(threshold: float) -> None:
    rng = np.random.default_rng(0)
    ious, logits = (rng.normal(0, 6, 100_000).astype(np.float32) for _ in range(2))
    passed = np.sqrt(sigmoid(logits) * sigmoid(ious)) > np.float32(threshold)
    assert (logits[passed] > _floors(ious, threshold)[passed]).all()


def test_few_class_logits_above_their_anchors_floors_do_not_pass() -> None:
    rng = np.random.default_rng(0)
    ious, logits = rng.normal(0, 3, 100_000).astype(np.float32), rng.normal(-7, 2, 100_000).astype(np.float32)
    passed = np.sqrt(sigmoid(logits) * sigmoid(ious)) > np.float32(0.05)
    assert passed.sum() < (logits > _floors(ious, 0.05)).sum() < 1.1 * passed.sum()


def test_tangents_lie_below_their_curve() -> None:
    x = np.linspace(-30, 30, 10_001)
    curve = np.log1p(np.exp(-x))
    assert all((height - slope * x <= curve + 1e-6).all() for slope, height in TANGENTS)


@pytest.mark.parametrize("threshold", [1e-6, 0.05, 0.5, 0.999999])
def test_the_floor_lies_under_every_logit_that_passes(threshold: float) -> None:
    logits = np.linspace(-20, 20, 400_001, dtype=np.float32)
    assert logits[sigmoid(logits) > np.float32(threshold)].min() > logit_floor(threshold)


def test_scores_are_within_two_units_of_torch() -> None:
    import torch

    logits = np.random.default_rng(0).normal(-2, 5, 100_000).astype(np.float32)
    ours, theirs = sigmoid(logits), torch.from_numpy(logits).sigmoid().numpy()
    assert np.abs(ours.view(np.int32) - theirs.view(np.int32)).max() <= 2


def test_candidates_come_by_score_then_level_then_anchor_then_label() -> None:
    rng = np.random.default_rng(0)
    places, logits = rng.permutation(500), rng.integers(-9, 9, 500).astype(np.float32)
    first_anchors, num_classes = np.array([0, 7, 7, 30, 100]), 5
    order = np.array(sorted(range(500), key=lambda i: (-logits[i], places[i])))
    anchors, labels = np.divmod(places[order], num_classes)
    levels = np.repeat([0, 2, 3], [7, 23, 70])[anchors]
    found = _ranked(places, logits, np.empty(0, np.float32), first_anchors, num_classes)
    wanted = sigmoid(logits[order]), levels, anchors - first_anchors[levels], labels
    for column, expected in zip(found, wanted, strict=False):
        np.testing.assert_array_equal(column, expected)


KEYS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "none": lambda rng: rng.integers(0, 2, 0),
    "one": lambda rng: rng.integers(0, 2**63, 1),
    "any": lambda rng: rng.integers(0, 2**63, 3000),
    "in order": lambda rng: np.arange(3000),
    "backwards": lambda rng: np.arange(3000)[::-1],
    "upper halves alike": lambda rng: (7 << 32) + rng.permutation(3000),
    "few upper halves": lambda rng: (rng.integers(0, 9, 3000) << 32) + rng.permutation(3000),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_are_sorted(kind: str) -> None:
    given = KEYS[kind](np.random.default_rng(0)).astype(np.uint64)
    keys, positions = ascending(given)
    np.testing.assert_array_equal(keys, np.sort(given))
    np.testing.assert_array_equal(given[positions], keys)


def test_powers_of_e_are_those_of_float64_rounded() -> None:
    x = np.concatenate([np.linspace(-110, 95, 200_001), [-np.inf, -3e38, 3e38, np.inf]]).astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        wanted = np.exp(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(1 / (1 + wanted), sigmoid(-x))


@pytest.mark.parametrize("module", [kernels, scan])
def test_no_compiled_loop_calls_one_of_another_file(module: Any) -> None:
    loops = [value for value in vars(module).values() if hasattr(value, "py_func")]
    assert len(loops) > 3
    assert {loop.py_func.__module__ for loop in loops} == {module.__name__}


@pytest.mark.parametrize("iou_threshold", [0.5, 0.6])
@pytest.mark.parametrize("count", [0, 1, 300, 11_000], ids=["none", "one", "together", "above mmcv's split_thr"])
def test_suppression_keeps_what_mmcv_keeps_at_borderline_overlaps(count: int, iou_threshold: float) -> None:
    import torch
    from mmcv.ops import batched_nms as mmcv_batched_nms

    rng = np.random.default_rng(count)
    # Corners on a coarse grid give many pairs whose IoU is exactly 1/2 or 3/5, and many equal scores.
    corners = rng.integers(0, 12, (count, 2)) * 64
    boxes = np.concatenate([corners, corners + rng.integers(1, 6, (count, 2)) * 64], axis=1) / np.float32(3.7)
    scores = rng.integers(1, 1000, count).astype(np.float32) / 1000
    labels = rng.integers(0, 80, count)
    arguments = (torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(scores), torch.from_numpy(labels))
    theirs = mmcv_batched_nms(*arguments, {"type": "nms", "iou_threshold": iou_threshold})[1] if count else []
    order = np.argsort(-scores, kind="stable")
    ours = batched_nms(boxes.astype(np.float32)[order], labels[order], np.float32(iou_threshold), 0)
    np.testing.assert_array_equal(order[ours], theirs)


@pytest.mark.parametrize("max_num", [1, 10, 100])
def test_suppression_that_stops_early_keeps_the_head_of_the_whole_result(max_num: int) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 100, (400, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 60, (400, 2))], axis=1).astype(np.float32)
    labels = rng.integers(0, 5, 400)
    whole = batched_nms(boxes, labels, np.float32(0.5), 0)
    np.testing.assert_array_equal(batched_nms(boxes, labels, np.float32(0.5), max_num), whole[:max_num])


DECODE = """
import pickle, sys
from pathlib import Path

from harness.detect.decode import kernels, make_decoder

head, input_spec, maps, geometry = pickle.loads(Path(sys.argv[1]).read_bytes())
assert hasattr(kernels.batched_nms, "py_func") == (sys.argv[3] == "compiled")
Path(sys.argv[2]).write_bytes(pickle.dumps(make_decoder(head, input_spec).decode(maps, [geometry])[0]))
"""


def _decoded_elsewhere(case: Case, maps: Maps, folder: Path, how: str, **environment: str) -> Boxes:
    """What another process, with these environment variables, decodes."""
    given, found = folder / "given.pickle", folder / "found.pickle"
    given.write_bytes(pickle.dumps((case.head, case.input_spec, maps, GEOMETRIES["portrait"])))
    subprocess.run(
        [sys.executable, "-c", DECODE, given, found, how], check=True, cwd=ROOT, env=os.environ | environment
    )
    boxes: Boxes = pickle.loads(found.read_bytes())
    return boxes


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_loops_give_to_the_bit_what_they_give_as_python(family: str, dtype: type, tmp_path: Path) -> None:
    case = Case(family, num_classes=3, size=(72, 64))
    case.head = dataclasses.replace(case.head, nms_pre=20, max_per_img=8)
    maps = {name: values.astype(dtype) for name, values in case.maps((-3.0, 1.5)).items()}
    as_python = _decoded_elsewhere(case, maps, tmp_path, "as Python", NUMBA_DISABLE_JIT="1")
    assert len(as_python.scores) == 8
    assert_identical(case.ours(maps, [GEOMETRIES["portrait"]])[0], as_python)


def test_no_box_is_the_same_as_python(tmp_path: Path) -> None:
    case = Case("paa", num_classes=1, size=(16, 16))
    maps = case.maps((-12.0, 0.5))
    assert_identical(
        case.ours(maps, [GEOMETRIES["portrait"]])[0],
        _decoded_elsewhere(case, maps, tmp_path, "as Python", NUMBA_DISABLE_JIT="1"),
    )


@pytest.mark.slow
def test_where_no_folder_may_be_written_each_process_compiles_for_itself(tmp_path: Path) -> None:
    case = Case("pisa")
    maps = case.maps((-4.0, 1.5))
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "folder")
    found = _decoded_elsewhere(
        case,
        maps,
        tmp_path,
        "compiled",
        NUMBA_CACHE_DIR=nowhere,
        NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator",
    )
    assert_identical(case.ours(maps, [GEOMETRIES["portrait"]])[0], found)


@pytest.mark.parametrize("family", FAMILIES)
def test_locked_and_unaligned_maps_decode_alike(family: str) -> None:
    case = Case(family)
    maps = case.maps((-4.0, 1.5))
    locked = {}
    for name, values in maps.items():
        memory = np.zeros(values.nbytes + 1, np.uint8)
        locked[name] = memory[1:].view(np.float32).reshape(values.shape)
        locked[name][:] = values
        locked[name].flags.writeable = False
    assert_identical(case.ours(locked)[0], case.ours(maps)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_of_both_precisions_decode_as_their_float32_values(family: str) -> None:
    case = Case(family)
    halves = {name: values.astype(np.float16) for name, values in case.maps((-4.0, 1.5)).items()}
    widened = {name: values.astype(np.float32) for name, values in halves.items()}
    mixed = {**widened, "cls_8": halves["cls_8"], "box_16": halves["box_16"]}
    assert_identical(case.ours(mixed)[0], case.ours(widened)[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda maps: maps.pop("box_32"), "missing: box_32"),
        (lambda maps: maps.update(cls_4=maps["cls_8"]), "not known: cls_4"),
        (lambda maps: maps.update(cls_8=maps["cls_8"][:, :-1]), "'cls_8': wanted shape"),
        (lambda maps: maps.update(box_8=maps["box_8"][..., :-1]), "'box_8': wanted shape"),
        (lambda maps: maps.update(box_8=maps["box_8"][0]), "'box_8': wanted shape"),
        (lambda maps: maps.update(box_8=np.repeat(maps["box_8"], 2, axis=0)), "'box_8': wanted shape"),
        (lambda maps: maps.update(cls_8=maps["cls_8"].astype(np.int8)), "wanted float32 or float16, found int8"),
        (lambda maps: maps.update(cls_8=maps["cls_8"].astype(np.float64)), "wanted float32 or float16, found float64"),
        (lambda maps: maps.update({name: values[:0] for name, values in maps.items()}), "wanted outputs for 1 images"),
    ],
    ids=["missing", "surplus", "channels", "columns", "no batch", "rows differ", "int8", "float64", "too few rows"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_that_do_not_fit_the_head_are_refused(family: str, damage: Any, message: str) -> None:
    case = Case(family)
    maps = case.maps((-6.0, 1.0))
    damage(maps)
    with pytest.raises(DecodeError, match=message):
        case.ours(maps)


def test_full_size_maps_have_the_shapes_that_the_export_gives() -> None:
    case = Case("pisa", num_classes=80, size=(800, 1344))
    shapes = output_shapes(case.head, case.input_spec, batch=2)
    assert (shapes["cls_8"], shapes["box_128"]) == ((2, 720, 100, 168), (2, 36, 7, 11))
