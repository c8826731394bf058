"""Takes two sets of boxes of one image; gives how many have no partner in the other, whatever their order."""

import numpy as np

from harness.detect.decode import Boxes


def unmatched(first: Boxes, second: Boxes, score: float, pixels: float) -> int:
    """Boxes of either set without a partner of the same label, score within `score` and corners within `pixels`."""
    if len(first.scores) == 0 or len(second.scores) == 0:
        return len(first.scores) + len(second.scores)
    alike = first.labels[:, None] == second.labels[None]
    alike &= np.abs(first.scores[:, None] - second.scores[None]) <= score
    alike &= np.abs(first.boxes[:, None] - second.boxes[None]).max(axis=2) <= pixels
    return int((~alike.any(axis=1)).sum() + (~alike.any(axis=0)).sum())
