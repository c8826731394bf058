"""Decoding gives what mmdet 3.3.0 gives for the same raw head maps."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from harness.detect.decode import Boxes, make_decoder, output_shapes
from harness.detect.decode.nms import batched_nms
from harness.detect.decode.scores import best_first, candidates, logit_floor, sigmoid
from harness.detect.preprocess import Geometry
from harness.errors import DecodeError
from harness.model.mmdet import HeadSpec, InputSpec, build_module, describe_head, describe_input, load_config
from harness.model.registry import load_models
from suites.selftest.reference import assert_same, mmdet_boxes, stable_torch

pytestmark = pytest.mark.selftest

Maps = Mapping[str, np.ndarray]

FAMILIES = ("pisa", "paa")
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

    def ours(self, maps: Maps, geometries: Sequence[Geometry] = ()) -> list[Boxes]:
        return make_decoder(self.head, self.input_spec).decode(maps, geometries or [self.whole()])

    def theirs(self, maps: Maps, geometries: Sequence[Geometry] = ()) -> list[Boxes]:
        return mmdet_boxes(self.bbox_head, self.head, maps, geometries or [self.whole()])


@pytest.fixture(autouse=True)
def torch_breaks_ties_by_index() -> Iterator[None]:
    with stable_torch():
        yield


DENSITIES = {"sparse": (-6.0, 1.5), "dense": (-3.0, 1.5), "everything above": (2.0, 1.0)}


@pytest.mark.parametrize("num_classes", [1, 8, 80])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_random_maps_decode_as_in_mmdet(family: str, density: str, num_classes: int) -> None:
    case = Case(family, num_classes)
    maps = case.maps(DENSITIES[density], seed=num_classes)
    assert_same(case.ours(maps), case.theirs(maps))


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_below_the_threshold_give_no_box(family: str) -> None:
    case = Case(family)
    maps = case.maps((-12.0, 0.5))
    assert [len(boxes.scores) for boxes in case.ours(maps)] == [0]


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_below_the_threshold_give_no_box_in_mmdet_either(family: str) -> None:
    case = Case(family)
    maps = case.maps((-12.0, 0.5))
    assert_same(case.ours(maps), case.theirs(maps))


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
def test_maps_of_one_cell_decode_as_in_mmdet(family: str) -> None:
    case = Case(family, size=(8, 8))
    maps = case.maps((-1.0, 2.0))
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


@pytest.mark.parametrize("family", FAMILIES)
def test_large_deltas_decode_as_in_mmdet(family: str) -> None:
    case = Case(family)
    maps = case.maps((-4.0, 1.5), box_spread=20.0)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_full_size_maps_decode_as_in_mmdet(family: str) -> None:
    spec = load_models()[family].input
    case = Case(family, num_classes=80, size=(spec.height, spec.width))
    maps = case.maps((-7.0, 1.2) if family == "pisa" else (-6.0, 1.2))
    assert_same(case.ours(maps), case.theirs(maps))


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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["cls", "box", "iou"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_that_are_not_finite_do_not_stop_decoding(family: str, kind: str, value: float) -> None:
    case = Case(family)
    maps = case.maps((-4.0, 1.5))
    for name in maps:
        if name.startswith(kind):
            maps[name][..., ::2] = value
    assert len(case.ours(maps)) == 1


def _borderline(threshold: float) -> np.ndarray:
    """The float32 logits around the one whose score is `threshold`."""
    middle = np.float32(np.log(threshold / (1 - threshold)))
    return (middle.view(np.int32) + np.arange(-64, 65, dtype=np.int32)).view(np.float32)


@pytest.mark.parametrize("threshold", [0.01, 0.05, 0.3, 0.9])
def test_a_logit_passes_exactly_where_its_score_is_above_the_threshold(threshold: float) -> None:
    import torch

    logits = _borderline(threshold)
    indices, _ = candidates(logits, threshold)
    np.testing.assert_array_equal(indices, np.flatnonzero((torch.from_numpy(logits).sigmoid() > threshold).numpy()))


@pytest.mark.parametrize("threshold", [0.0, 0.001, 0.05, 0.5, 0.7, 0.999])
def test_half_precision_candidates_are_those_of_their_float32_values(threshold: float) -> None:
    every_half = np.arange(2**16, dtype=np.uint16).view(np.float16)
    of_half, _ = candidates(every_half, threshold)
    of_single, _ = candidates(every_half.astype(np.float32), threshold)
    np.testing.assert_array_equal(of_half, of_single)


@pytest.mark.parametrize(("threshold", "passing"), [(-1.0, 3), (0.0, 3), (1.0, 0), (2.0, 0)])
def test_thresholds_at_the_ends_pass_all_or_nothing(threshold: float, passing: int) -> None:
    indices, _ = candidates(np.array([-50.0, 0.0, 50.0], np.float32), threshold)
    assert len(indices) == passing


@pytest.mark.parametrize("threshold", [1e-6, 0.05, 0.5, 0.999999])
def test_the_floor_lies_under_every_logit_that_passes(threshold: float) -> None:
    logits = np.linspace(-20, 20, 400_001, dtype=np.float32)
    assert logits[sigmoid(logits) > np.float32(threshold)].min() > logit_floor(threshold)


def test_scores_are_within_two_units_of_torch() -> None:
    import torch

    logits = np.random.default_rng(0).normal(-2, 5, 100_000).astype(np.float32)
    ours, theirs = sigmoid(logits), torch.from_numpy(logits).sigmoid().numpy()
    assert np.abs(ours.view(np.int32) - theirs.view(np.int32)).max() <= 2


@pytest.mark.parametrize("limit", [-1, 1, 5, 100, 1000])
def test_the_best_are_the_head_of_the_sorted_list(limit: int) -> None:
    scores = np.random.default_rng(0).integers(0, 20, 200).astype(np.float32)
    keys = np.random.default_rng(1).permutation(200)
    whole = np.array(sorted(range(200), key=lambda i: (-scores[i], keys[i])))
    np.testing.assert_array_equal(best_first(scores, keys, limit), whole[: limit if limit > 0 else None])


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
    ours = batched_nms(boxes.astype(np.float32), scores, labels, iou_threshold, max_num=0)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("max_num", [1, 10, 100])
def test_suppression_that_stops_early_keeps_the_head_of_the_whole_result(max_num: int) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 100, (400, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 60, (400, 2))], axis=1).astype(np.float32)
    scores, labels = rng.uniform(size=400).astype(np.float32), rng.integers(0, 5, 400)
    whole = batched_nms(boxes, scores, labels, 0.5, max_num=0)
    np.testing.assert_array_equal(batched_nms(boxes, scores, labels, 0.5, max_num), whole[:max_num])


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
