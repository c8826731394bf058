"""Takes an mmcv without compiled ops; gives it a pure-Python `mmcv._ext` in which `nms` works."""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import numpy.typing as npt

from harness.errors import Missing, ModelBuildError

if TYPE_CHECKING:
    import torch

COMPILED_MMCV = "pip uninstall mmcv-lite, then install compiled mmcv 2.1.0: `mim install mmcv==2.1.0`"


def nms_indices(
    boxes: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], iou_threshold: float, offset: int = 0
) -> npt.NDArray[np.int64]:
    """Greedy non-maximum suppression, as mmcv's CPU op does it.

    Args:
        boxes: `[N, 4]` xyxy, pixels.
        scores: `[N]`.
        iou_threshold: a box goes when its IoU with a kept one is greater than this.
        offset: added to widths and heights (0, or 1 for the inclusive-pixel convention).

    Returns:
        `[K]` indices of the kept boxes, highest score first.

    Source: mmcv 2.1.0 `ops/csrc/pytorch/cpu/nms.cpp`, `nms_cpu`; arithmetic in float32 as there.
    """
    order = np.argsort(-scores, kind="stable")
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.astype(np.float32, copy=False)[order].T)
    pad = np.float32(offset)
    areas = (x2 - x1 + pad) * (y2 - y1 + pad)
    threshold = np.float32(iou_threshold)
    alive = np.ones(len(order), dtype=bool)
    keep: list[int] = []
    for i in range(len(order)):
        if not alive[i]:
            continue
        keep.append(i)
        rest = i + 1 + np.flatnonzero(alive[i + 1 :])
        width = np.maximum(np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest]) + pad, np.float32(0))
        height = np.maximum(np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest]) + pad, np.float32(0))
        inter = width * height
        with np.errstate(divide="ignore", invalid="ignore"):
            overlap = inter / (areas[i] + areas[rest] - inter)
        alive[rest[overlap > threshold]] = False
    return order[np.array(keep, dtype=np.int64)]


def nms(boxes: "torch.Tensor", scores: "torch.Tensor", iou_threshold: float, offset: int) -> "torch.Tensor":
    """`mmcv._ext.nms` on tensors: see `nms_indices`."""
    import torch

    keep = nms_indices(boxes.detach().cpu().numpy(), scores.detach().cpu().numpy(), float(iou_threshold), int(offset))
    return torch.from_numpy(keep).to(boxes.device)


class _Ext(ModuleType):
    """Stands in for `mmcv._ext`: every op exists by name, only `nms` computes."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*_args: object, **_kwargs: object) -> NoReturn:
            raise ModelBuildError(
                f"this model calls the compiled mmcv op '{name}', and the installed mmcv has no compiled ops",
                COMPILED_MMCV,
            )

        absent.__name__ = name
        return absent


def ensure_ops() -> bool:
    """Make `mmcv.ops` importable; returns True when the compiled ops are there and stay untouched.

    Raises:
        Missing: mmcv is not installed at all.
    """
    if importlib.util.find_spec("mmcv") is None:
        raise Missing("mmcv is not installed", "pip install mmcv-lite==2.1.0 (or compiled mmcv 2.1.0)")
    if "mmcv._ext" in sys.modules:
        return not isinstance(sys.modules["mmcv._ext"], _Ext)
    if importlib.util.find_spec("mmcv._ext") is not None:
        return True
    ext = _Ext("mmcv._ext")
    ext.nms = nms  # type: ignore[attr-defined]
    sys.modules["mmcv._ext"] = ext
    return False
