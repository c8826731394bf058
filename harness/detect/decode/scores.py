"""Takes a score threshold; gives floors under which no logit can count."""

import math

# Relative margin by which a threshold is lowered before logits are compared with it. Far above what float32 rounding
# can shift a score by, and small enough that next to no logit passes in vain; scores decide in the end.
MARGIN = 1e-4


def logit_floor(score_thr: float) -> float:
    """A logit under which no sigmoid score can be greater than `score_thr`, just below the threshold's own logit."""
    probability = score_thr * (1 - MARGIN)
    if probability <= 0:
        return -math.inf
    if probability >= 1:
        return math.inf
    return math.log(probability) - math.log1p(-probability)


def log_floor(score_thr: float) -> float:
    """A logarithm of class probability x IoU under which its root cannot be greater than `score_thr`."""
    product = score_thr**2 * (1 - MARGIN)
    return math.log(product) if score_thr > 0 and product > 0 else -math.inf
