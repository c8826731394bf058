"""Takes a `ModelSpec`; gives mmdet's config for it, the module that mmdet builds, and what decoding must know."""

import importlib.util
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import Missing, ModelBuildError, SpecError
from harness.model.checkpoint import RANDOM_SEED, load_into
from harness.model.mmcv_ext import ensure_ops
from harness.model.registry import ModelSpec

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

INSTALL_MMDET = "pip install --no-deps mmdet==3.3.0 mmcv-lite==2.1.0 mmengine==0.10.7"


@dataclass(frozen=True)
class InputSpec:
    """How a photograph becomes the network's input.

    height, width: pixels of the network's input. keep_ratio: longest fit, padded right and bottom with 0 after
    normalisation; otherwise stretched. mean, std: per channel, in the order of the network's input (RGB when to_rgb).
    """

    height: int
    width: int
    keep_ratio: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    to_rgb: bool


@dataclass(frozen=True)
class HeadSpec:
    """A dense head of anchors, with mmdet's names and its test settings.

    family: `anchor` (scores from the class map) or `paa` (score = sqrt(class x IoU), optional score voting).
    """

    family: Literal["anchor", "paa"]
    num_classes: int
    strides: tuple[int, ...]
    octave_base_scale: float
    scales_per_octave: int
    ratios: tuple[float, ...]
    target_means: tuple[float, ...]
    target_stds: tuple[float, ...]
    score_thr: float
    nms_pre: int
    iou_threshold: float
    max_per_img: int
    min_bbox_size: float
    score_voting: bool

    @property
    def num_anchors(self) -> int:
        """Anchors per cell."""
        return self.scales_per_octave * len(self.ratios)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the raw head maps in the exported graph: all cls maps, then box, then iou, by level."""
        kinds = ("cls", "box", "iou") if self.family == "paa" else ("cls", "box")
        return tuple(f"{kind}_{stride}" for kind in kinds for stride in self.strides)

    def channels(self, output: str) -> int:
        """Channels of the raw map `output` (`cls_8` ...)."""
        per_anchor = {"cls": self.num_classes, "box": 4, "iou": 1}[output.split("_")[0]]
        return self.num_anchors * per_anchor


FAMILIES: dict[str, Literal["anchor", "paa"]] = {
    "PISARetinaHead": "anchor",
    "RetinaHead": "anchor",
    "PAAHead": "paa",
}


def _config_file(spec: ModelSpec, beside: Path | None) -> Path:
    if beside is not None and (beside / spec.config).is_file():
        return beside / spec.config
    found = importlib.util.find_spec("mmdet")
    if found is None or not found.submodule_search_locations:
        raise Missing("mmdet is not installed", INSTALL_MMDET)
    configs = Path(found.submodule_search_locations[0]) / ".mim" / "configs"
    path = configs / spec.config
    if not path.is_file():
        raise SpecError(
            f"model '{spec.name}': config '{spec.config}' is not among mmdet's configs",
            f"name a file below {configs}, for example 'retinanet/retinanet_r50_fpn_1x_coco.py'",
        )
    return path


def load_config(spec: ModelSpec, beside: Path | None = None) -> "Config":
    """mmdet's config with the model's overrides merged and no pretrained backbone to fetch.

    Args:
        beside: directory of the model JSON; a config file there comes before mmdet's own.

    Raises:
        SpecError: no such config, or an override that does not fit it.
        Missing: mmdet or mmengine is not installed.
    """
    path = _config_file(spec, beside)
    try:
        from mmengine.config import Config
    except ImportError as error:
        raise Missing("mmengine is not installed", INSTALL_MMDET) from error
    try:
        config = Config.fromfile(str(path))
    except Exception as error:  # a config is a program and may raise anything
        raise SpecError(
            f"model '{spec.name}': mmengine cannot read config {path}: {type(error).__name__}: {error}",
            f"mend the config; `python {path}` shows a mistake in its Python",
        ) from error
    try:
        config.merge_from_dict(dict(spec.overrides))
        config.model.backbone.init_cfg = None
    except (KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            f"model '{spec.name}': key 'overrides' does not fit {spec.config}: {error}",
            "use dotted keys that exist in the config, e.g. 'model.bbox_head.num_classes'",
        ) from error
    return config


def describe_input(spec: ModelSpec, config: "Config") -> InputSpec:
    """Input size and resize rule from the model file, normalisation from the config.

    Raises:
        SpecError: the config says nothing, or something else, of the normalisation.
    """
    try:
        prep = config.model.data_preprocessor
        mean, std, to_rgb = _triple(prep.mean), _triple(prep.std), bool(prep.get("bgr_to_rgb", False))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"model '{spec.name}': wanted model.data_preprocessor with mean and std of three channels: {error}",
            f"choose a detector's config, or mend 'overrides'; found in {spec.config}",
        ) from error
    return InputSpec(spec.input.height, spec.input.width, spec.input.keep_ratio, mean, std, to_rgb)


def _triple(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(v) for v in values)
    return first, second, third


def describe_head(spec: ModelSpec, config: "Config") -> HeadSpec:
    """What decoding must know of the head.

    Raises:
        SpecError: a head or a test setting that detgate cannot decode.
    """
    try:
        return _dense_head(spec, config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SpecError(
            f"model '{spec.name}': wanted a one-stage detector with a head of anchors, found in {spec.config}: {error}",
            "choose such a config, for example 'retinanet/retinanet_r50_fpn_1x_coco.py', or mend 'overrides'",
        ) from error


def _dense_head(spec: ModelSpec, config: "Config") -> HeadSpec:
    head = config.model.bbox_head
    test = config.model.test_cfg
    family = FAMILIES.get(head.type)
    if family is None:
        raise SpecError(
            f"model '{spec.name}': no decoder for head '{head.type}'; known: {', '.join(FAMILIES)}",
            "add a module for its family to harness/detect/decode/ and name the head in harness/model/mmdet.py",
        )
    _refuse_undecodable(spec.name, head, test)
    anchors = head.anchor_generator
    return HeadSpec(
        family=family,
        num_classes=int(head.num_classes),
        strides=tuple(int(s) for s in anchors.strides),
        octave_base_scale=float(anchors.octave_base_scale),
        scales_per_octave=int(anchors.scales_per_octave),
        ratios=tuple(float(r) for r in anchors.ratios),
        target_means=tuple(float(v) for v in head.bbox_coder.target_means),
        target_stds=tuple(float(v) for v in head.bbox_coder.target_stds),
        score_thr=float(test.score_thr),
        nms_pre=int(test.nms_pre),
        iou_threshold=float(test.nms.iou_threshold),
        max_per_img=int(test.max_per_img),
        min_bbox_size=float(test.min_bbox_size),
        score_voting=bool(head.get("score_voting", False)),
    )


def _refuse_undecodable(name: str, head: Any, test: Any) -> None:
    """Settings that mmdet knows and decoding here would ignore: better no figure than a wrong one."""
    coder, anchors, nms = head.bbox_coder, head.anchor_generator, test.nms
    wanted: list[tuple[str, Any, Any]] = [
        ("bbox_head.loss_cls.use_sigmoid", head.loss_cls.get("use_sigmoid"), True),
        ("bbox_head.bbox_coder.type", coder.type, "DeltaXYWHBBoxCoder"),
        ("bbox_head.bbox_coder.clip_border", coder.get("clip_border", True), True),
        ("bbox_head.bbox_coder.add_ctr_clamp", coder.get("add_ctr_clamp", False), False),
        ("bbox_head.anchor_generator.type", anchors.type, "AnchorGenerator"),
        ("bbox_head.anchor_generator.center_offset", anchors.get("center_offset", 0.0), 0.0),
        ("bbox_head.anchor_generator.centers", anchors.get("centers"), None),
        ("bbox_head.anchor_generator.base_sizes", anchors.get("base_sizes"), None),
        ("bbox_head.anchor_generator.scale_major", anchors.get("scale_major", True), True),
        ("test_cfg.nms.type", nms.type, "nms"),
    ]
    surplus = sorted(set(nms) - {"type", "iou_threshold"})
    wanted += [(f"test_cfg.nms.{key}", nms[key], "not set") for key in surplus]
    for key, found, decodable in wanted:
        if found != decodable:
            raise SpecError(
                f"model '{name}': {key} is {found!r}, and decoding knows only {decodable!r}",
                "choose a config with that setting, or extend harness/detect/decode/",
            )
    for key in ("nms_pre", "max_per_img"):
        if int(test[key]) <= 0:
            raise SpecError(
                f"model '{name}': test_cfg.{key} is {test[key]}, wanted at least 1",
                f"set 'model.test_cfg.{key}' in the model file's 'overrides'",
            )


def build_module(config: "Config") -> "nn.Module":
    """mmdet's detector, in eval mode, with mmdet's own initial weights.

    Raises:
        ModelBuildError: mmdet refused the config.
        Missing: mmcv or mmdet is not installed.
    """
    ensure_ops()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from mmdet.registry import MODELS
            from mmdet.utils import register_all_modules
        except ImportError as error:
            raise Missing(f"mmdet cannot be imported: {error}", INSTALL_MMDET) from error
        register_all_modules(init_default_scope=True)
        try:
            module: nn.Module = MODELS.build(config.model)
        except (KeyError, TypeError, ValueError, AssertionError, AttributeError) as error:
            raise ModelBuildError(
                f"mmdet cannot build '{config.model.get('type')}' from the config: {error}",
                "compare the model file's 'overrides' with the config; mmdet 3.3.0 is expected",
            ) from error
    module.eval()
    return module


def load_module(spec: ModelSpec, config: "Config", checkpoint: Path | None) -> "nn.Module":
    """The detector with the weights of `checkpoint`, or with seeded random ones when there is none.

    Raises:
        CheckpointError, ModelBuildError, Missing: see `load_into` and `build_module`.
    """
    import torch

    if checkpoint is not None:
        module = build_module(config)
        load_into(module, checkpoint, spec.name)
        return module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        module = build_module(config)
        _initialise(module)
    return module.eval()


def _initialise(module: "nn.Module") -> None:
    """mmdet's own initial values, without its log lines."""
    logging.disable(logging.CRITICAL)
    try:
        module.init_weights()  # type: ignore[operator]
    finally:
        logging.disable(logging.NOTSET)
