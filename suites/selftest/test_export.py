"""The exported graph is what torch computes, at any batch; whatever differs is caught before it is used."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import nn

from harness.engines.reference import run_graph
from harness.errors import ExportError, GraphError
from harness.model.export import OPSET, export, raw_maps, run_module
from harness.model.mmdet import HeadSpec
from harness.model.parity import deviations, first_shift
from harness.tolerances import TOLERANCES

pytestmark = pytest.mark.selftest

Array = npt.NDArray[np.float32]
Runner = Callable[[onnx.ModelProto, Array], dict[str, Array]]
CLASSES, SIZE = 2, 16

HEAD = HeadSpec(
    family="anchor",
    num_classes=CLASSES,
    strides=(1, 2),
    octave_base_scale=4.0,
    scales_per_octave=1,
    ratios=(1.0,),
    target_means=(0.0,) * 4,
    target_stds=(1.0,) * 4,
    score_thr=0.05,
    nms_pre=100,
    iou_threshold=0.5,
    max_per_img=10,
    min_bbox_size=0.0,
    score_voting=False,
)


class TinyHead(nn.Module):
    """Like mmdet's dense heads: from the levels to one list of maps a kind."""

    def __init__(self) -> None:
        super().__init__()
        self.cls, self.box = nn.Conv2d(4, CLASSES, 1), nn.Conv2d(4, 4, 1)

    def forward(self, levels: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return [self.cls(level) for level in levels], [self.box(level) for level in levels]


class Pyramid(nn.Module):
    """Two levels, of stride 1 and 2."""

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        return [features, nn.functional.max_pool2d(features, 2)]


class Detector(nn.Module):
    """A detector as mmdet builds it: backbone, neck, bbox_head."""

    def __init__(self, neck: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.neck, self.bbox_head = neck or Pyramid(), TinyHead()


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    torch.manual_seed(0)
    return Detector().eval()


@pytest.fixture(scope="module")
def images() -> Array:
    return np.random.default_rng(0).normal(0, 1, (2, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(detector: nn.Module, images: Array, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    target = tmp_path_factory.mktemp("export") / "tiny.onnx"
    export(detector, HEAD, "image", images, run_graph, target)
    return onnx.load(str(target))


# --- the graph


def test_the_graph_is_valid(exported: onnx.ModelProto) -> None:
    onnx.checker.check_model(exported, full_check=True)


def test_the_input_is_called_as_the_model_file_says(exported: onnx.ModelProto) -> None:
    assert [value.name for value in exported.graph.input] == ["image"]


def test_the_outputs_are_called_by_kind_and_stride(exported: onnx.ModelProto) -> None:
    assert [value.name for value in exported.graph.output] == ["cls_1", "cls_2", "box_1", "box_2"]


def test_the_batch_is_dynamic_in_every_shape(exported: onnx.ModelProto) -> None:
    values = (*exported.graph.input, *exported.graph.output)
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in values} == {"batch"}


def test_the_opset_is_the_one_engines_were_tried_with(exported: onnx.ModelProto) -> None:
    assert [entry.version for entry in exported.opset_import if entry.domain == ""] == [OPSET]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_graph_computes_what_torch_computes(detector: nn.Module, exported: onnx.ModelProto, batch: int) -> None:
    images = np.random.default_rng(batch).normal(0, 1, (batch, 3, SIZE, SIZE)).astype(np.float32)
    wanted, found = run_module(detector, HEAD, images), run_graph(exported, images)
    assert first_shift(wanted, found, TOLERANCES["export"].relative) is None


# --- torch's side


@pytest.mark.parametrize(("name", "channels", "size"), [("cls_1", CLASSES, SIZE), ("box_2", 4, SIZE // 2)])
def test_each_map_has_its_name(detector: nn.Module, images: Array, name: str, channels: int, size: int) -> None:
    assert run_module(detector, HEAD, images)[name].shape == (2, channels, size, size)


def test_maps_come_in_the_order_of_their_names(detector: nn.Module, images: Array) -> None:
    with torch.inference_mode():
        maps = raw_maps(detector)(torch.from_numpy(images))
    named = run_module(detector, HEAD, images)
    assert all(np.array_equal(level.numpy(), named[name]) for level, name in zip(maps, HEAD.output_names, strict=True))


def test_running_torch_changes_no_weight(detector: nn.Module, images: Array) -> None:
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    run_module(detector, HEAD, images)
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


# --- whatever differs is caught


def altered(change: Callable[[dict[str, Array]], Mapping[str, Array]]) -> Runner:
    """Runs graphs, and changes what they give."""
    return lambda model, images: dict(change(run_graph(model, images)))


CHANGES: dict[str, tuple[Callable[[dict[str, Array]], Mapping[str, Array]], str]] = {
    "one map scaled beyond the bound": (
        lambda maps: maps | {"cls_2": maps["cls_2"] * np.float32(1 + 2 * TOLERANCES["export"].relative)},
        "batch 2, output 'cls_2': wanted relative L2 error at most 0.0001",
    ),
    "one map shifted": (
        lambda maps: maps | {"box_1": maps["box_1"] + 1},
        "batch 2, output 'box_1': wanted relative L2",
    ),
    "one NaN": (lambda maps: maps | {"box_2": np.full_like(maps["box_2"], np.nan)}, "'box_2': wanted finite values"),
    "a map turned": (lambda maps: maps | {"cls_1": maps["cls_1"].transpose(0, 2, 3, 1)}, "wanted shape (2, 2, 16, 16)"),
    "a map missing": (lambda maps: {k: v for k, v in maps.items() if k != "box_2"}, "found cls_1, cls_2, box_1"),
    "maps swapped": (lambda maps: dict(sorted(maps.items())), "wanted outputs cls_1, cls_2, box_1, box_2, found box_1"),
    "images swapped": (lambda maps: maps | {"cls_1": maps["cls_1"][::-1]}, "batch 2, output 'cls_1': wanted relative"),
    "the first image twice": (
        lambda maps: {name: np.repeat(level[:1], len(level), axis=0) for name, level in maps.items()},
        "differs from torch at batch 2",
    ),
    "two images where one was given": (
        lambda maps: {name: np.repeat(level, 2, axis=0) if len(level) == 1 else level for name, level in maps.items()},
        "at batch 1, output 'cls_1': wanted shape (1, 2, 16, 16), found shape (2, 2, 16, 16)",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_graph_that_gives_something_else_is_refused(
    detector: nn.Module, images: Array, tmp_path: Path, change: str
) -> None:
    alter, cause = CHANGES[change]
    with pytest.raises(ExportError) as caught:
        export(detector, HEAD, "image", images, altered(alter), tmp_path / "tiny.onnx")
    assert cause in caught.value.cause


def test_a_difference_within_the_bound_is_rounding(detector: nn.Module, images: Array, tmp_path: Path) -> None:
    rounded = altered(lambda maps: {k: v * np.float32(1 + TOLERANCES["export"].relative / 2) for k, v in maps.items()})
    export(detector, HEAD, "image", images, rounded, tmp_path / "tiny.onnx")
    assert (tmp_path / "tiny.onnx").is_file()


class TracesTheBatch(nn.Module):
    """Reshapes by a batch that is a number while it is traced."""

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        same = features.reshape(int(features.shape[0]), *features.shape[1:])
        return [same, nn.functional.max_pool2d(same, 2)]


def test_a_batch_that_was_traced_is_caught_with_one_image(images: Array, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="does not run the graph on 1 images"):
        export(Detector(TracesTheBatch()).eval(), HEAD, "image", images, run_graph, tmp_path / "tiny.onnx")


class MixesImages(nn.Module):
    """Lets each image depend on the others of its batch, as a batch norm in training does."""

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        centred = features - features.mean(dim=0, keepdim=True)
        return [centred, nn.functional.max_pool2d(centred, 2)]


def test_images_that_depend_on_each_other_are_caught(images: Array, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="differs from torch at batch 1"):
        export(Detector(MixesImages()).eval(), HEAD, "image", images, run_graph, tmp_path / "tiny.onnx")


class CannotBeTraced(nn.Module):
    """Uses an operator that ONNX lacks."""

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        return [torch.special.bessel_j0(features), nn.functional.max_pool2d(features, 2)]


def test_an_operator_that_onnx_lacks_is_named(images: Array, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"torch\.onnx could not export the module: .*bessel_j0"):
        export(Detector(CannotBeTraced()).eval(), HEAD, "image", images, run_graph, tmp_path / "tiny.onnx")


# --- distances


def maps(**values: list[float]) -> dict[str, Array]:
    return {name: np.array(level, np.float32) for name, level in values.items()}


def test_the_distance_is_the_relative_l2_error() -> None:
    (found,) = deviations(maps(a=[3.0, 4.0]), maps(a=[3.0, 4.5]))
    assert [found.relative, found.max_abs] == pytest.approx([0.1, 0.5])


def test_the_worst_output_comes_first() -> None:
    found = deviations(maps(a=[1.0], b=[1.0]), maps(a=[1.1], b=[1.2]))
    assert [deviation.output for deviation in found] == ["b", "a"]


def test_where_the_reference_is_0_the_distance_is_absolute() -> None:
    assert deviations(maps(a=[0.0, 0.0]), maps(a=[0.0, 0.25]))[0].relative == 0.25


def test_equal_outputs_have_no_shift_at_bound_0() -> None:
    assert first_shift(maps(a=[1.0]), maps(a=[1.0]), 0.0) is None


def test_infinite_outputs_are_a_shift_at_any_bound() -> None:
    assert first_shift(maps(a=[1.0]), maps(a=[np.inf]), 1e9) is not None
