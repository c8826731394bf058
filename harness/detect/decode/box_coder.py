"""Takes anchors and the deltas that the head predicts for them; gives boxes inside the photograph."""

from collections.abc import Sequence

import numpy as np

from harness.detect.decode.entries import FloatArray

# mmdet's `wh_ratio_clip`: no box is more than 62.5 times wider or narrower than its anchor.
MAX_LOG_RATIO = np.float32(abs(np.log(16 / 1000)))


def decode_deltas(
    anchors: FloatArray,
    deltas: FloatArray,
    means: Sequence[float],
    stds: Sequence[float],
    content_height: int,
    content_width: int,
) -> FloatArray:
    """Boxes `[4, K]` xyxy in pixels of the input, clipped to the photograph in it.

    Args:
        anchors: `[4, K]` xyxy, pixels of the input.
        deltas: `[4, K]` dx, dy, dw, dh, normalised by `means` and `stds`.

    Source: mmdet 3.3.0 `DeltaXYWHBBoxCoder.decode`, its defaults; float32 in the same order of operations.
    """
    half = np.float32(0.5)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        denormalised = deltas * np.asarray(stds, np.float32)[:, None] + np.asarray(means, np.float32)[:, None]
        centres = (anchors[:2] + anchors[2:]) * half
        sizes = anchors[2:] - anchors[:2]
        log_ratios = np.minimum(np.maximum(denormalised[2:], -MAX_LOG_RATIO), MAX_LOG_RATIO)
        new_centres = centres + sizes * denormalised[:2]
        # Rounded from float64, for the same boxes on every machine.
        new_halves = sizes * np.exp(log_ratios.astype(np.float64)).astype(np.float32) * half
        boxes = np.concatenate([new_centres - new_halves, new_centres + new_halves])
    limits = np.array([content_width, content_height] * 2, np.float32)
    clipped: FloatArray = np.minimum(np.maximum(boxes, np.float32(0)), limits[:, None])
    return clipped
