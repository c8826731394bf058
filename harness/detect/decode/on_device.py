"""Takes raw maps as torch tensors of any device; gives each image's `Entries`, found and gathered on that device."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness.detect.decode.boxes import Maps
from harness.detect.decode.entries import Entries, IndexArray
from harness.detect.decode.scores import MARGIN, logit_floor
from harness.errors import NotFinite

if TYPE_CHECKING:
    import torch

    from harness.model.mmdet import HeadSpec


def device_entries(outputs: Maps, rows: range, head: "HeadSpec", first_anchors: IndexArray) -> list[Entries]:
    """The entries of each of `rows` of maps that `check_outputs` has accepted.

    The maps stay where they are; one sum of each map's rows and the entries of all rows cross to the host.

    Args:
        first_anchors: `[L + 1]`, anchors of all levels before each.

    Raises:
        NotFinite: NaN or Inf anywhere in the rows.
    """
    import torch

    with torch.no_grad():
        maps = {name: outputs[name][rows.start : rows.stop] for name in head.output_names}
        _require_finite(maps)
        found = [_level(maps, head, stride) for stride in head.strides]
        packed = torch.cat(found).cpu().numpy()
    packed[:, 1] += np.repeat(first_anchors[:-1], [len(level) for level in found]).astype(np.int32)
    return [_entries(packed[packed[:, 0] == row], head) for row in range(len(rows))]


def _entries(packed: npt.NDArray[np.int32], head: "HeadSpec") -> Entries:
    """Those of one image, of what `_level` packs, anchors counted through."""
    values = np.ascontiguousarray(packed[:, 3:]).view(np.float32)
    places = packed[:, 1].astype(np.int64) * head.num_classes + packed[:, 2]
    iou_logits = values[:, 5:].ravel()
    return Entries(places, values[:, 0].copy(), iou_logits, values[:, 1:5].copy())


def _require_finite(maps: Mapping[str, "torch.Tensor"]) -> None:
    """A sum is finite only if all its terms are; one that overflows although they are gets a closer look."""
    import torch

    sums = torch.stack([values.sum(dim=(1, 2, 3), dtype=torch.float32) for values in maps.values()]).cpu().numpy()
    for (name, values), finite in zip(maps.items(), np.isfinite(sums).all(axis=1), strict=True):
        if not finite and not bool(torch.isfinite(values).all()):
            raise NotFinite(name)


def _level(maps: Mapping[str, "torch.Tensor"], head: "HeadSpec", stride: int) -> "torch.Tensor":
    """A level's entries above their floors, by row: `[K, 8 or 9]` int32.

    The columns: row, anchor, label, then the bit patterns of the class logit, four deltas and, where the head has it,
    the IoU logit.
    """
    import torch

    cls, box = maps[f"cls_{stride}"], maps[f"box_{stride}"]
    images, num_cells = len(cls), cls.shape[2] * cls.shape[3]
    logits = cls.reshape(images, head.num_anchors, head.num_classes, num_cells)
    # Compared as a tensor of one element: a Python number would be rounded to float16 with the maps.
    floors = torch.full((1, 1, 1, 1), logit_floor(head.score_thr), device=cls.device)
    if head.family == "paa":
        ious = maps[f"iou_{stride}"].reshape(images, head.num_anchors, num_cells)
        floors = _class_logit_floors(ious.float(), head.score_thr)[:, :, None]
    places = torch.nonzero(logits > floors)
    rows, kinds, labels, cells = places.unbind(dim=1)
    columns = [
        logits[rows, kinds, labels, cells][:, None],
        box.reshape(images, head.num_anchors, 4, num_cells)[rows, kinds, :, cells],
    ]
    if head.family == "paa":
        columns.append(ious[rows, kinds, cells][:, None])
    values = torch.cat([column.float() for column in columns], dim=1)
    places = torch.stack([rows, cells * head.num_anchors + kinds, labels], dim=1)
    return torch.cat([places.int(), values.view(torch.int32)], dim=1)


def _class_logit_floors(iou_logits: "torch.Tensor", score_thr: float) -> "torch.Tensor":
    """For each anchor the class logit under which sqrt(class x IoU) cannot be greater than `score_thr`.

    From class > score_thr^2 / IoU, lowered by `MARGIN`; NaN, which nothing exceeds, where no class can pass.
    """
    import torch

    probabilities = score_thr**2 * (1 - MARGIN) * (1 + torch.exp(-iou_logits))
    floors = torch.log(probabilities) - torch.log1p(-probabilities)
    return floors if score_thr >= 0 else torch.full_like(floors, -torch.inf)
