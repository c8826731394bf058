"""Takes a head's anchor settings; gives its anchors at the cell at the origin."""

from typing import TYPE_CHECKING

import numpy as np

from harness.detect.decode.entries import FloatArray

if TYPE_CHECKING:
    from harness.model.mmdet import HeadSpec


def base_anchors(head: "HeadSpec", stride: int) -> FloatArray:
    """The anchors of the cell at the origin, `[A, 4]` xyxy in pixels of the input, ratio by ratio.

    Source: mmdet 3.3.0 `AnchorGenerator.gen_single_level_base_anchors`, its defaults (scale_major, center_offset 0).
    """
    octaves = np.array([2 ** (i / head.scales_per_octave) for i in range(head.scales_per_octave)])
    scales = (octaves * head.octave_base_scale).astype(np.float32)
    height_ratios = np.sqrt(np.array(head.ratios, np.float32))
    width_ratios = np.float32(1) / height_ratios
    base_size, half = np.float32(stride), np.float32(0.5)
    half_widths = half * (base_size * width_ratios[:, None] * scales).reshape(-1)
    half_heights = half * (base_size * height_ratios[:, None] * scales).reshape(-1)
    return np.stack([-half_widths, -half_heights, half_widths, half_heights], axis=-1)
