"""Takes raw logits; gives scores, floors under which no logit can count, and the order in which mmdet ranks scores."""

import numpy as np

from harness.detect.decode.entries import FloatArray, IndexArray

# Relative margin by which a threshold is lowered before logits are compared with it. Far above what float32 rounding
# can shift a score by, and small enough that next to no logit passes in vain; scores decide in the end.
MARGIN = 1e-4


def sigmoid(logits: FloatArray) -> FloatArray:
    """`1 / (1 + exp(-x))` in float32, in torch's order of operations; -inf gives 0, NaN stays.

    The exponential is rounded from float64, so every machine gets the same scores. torch's own differs from this by
    up to 2 units in the last place, as its scalar and its vectorised kernels differ from each other.
    """
    one = np.float32(1)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        exponential = np.exp(-logits.astype(np.float64)).astype(np.float32)
    return one / (one + exponential)


def logit_floor(score_thr: float) -> float:
    """A logit under which no sigmoid score can be greater than `score_thr`, just below the threshold's own logit."""
    probability = score_thr * (1 - MARGIN)
    if probability <= 0:
        return -np.inf
    if probability >= 1:
        return np.inf
    return float(np.log(probability) - np.log1p(-probability))


def class_logit_floors(iou_logits: FloatArray, score_thr: float) -> FloatArray:
    """For each anchor the class logit under which sqrt(class x IoU) cannot be greater than `score_thr`.

    From class > score_thr^2 / IoU, lowered by `MARGIN`; infinite where no class can pass.
    """
    if score_thr < 0:
        return np.full_like(iou_logits, -np.inf)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        probabilities = np.float32(score_thr**2 * (1 - MARGIN)) * (1 + np.exp(-iou_logits))
        floors: FloatArray = np.log(probabilities) - np.log1p(-probabilities)
    return np.where(probabilities < 1, floors, np.float32(np.inf))


def best_first(scores: FloatArray, tie_keys: IndexArray, limit: int = 0) -> IndexArray:
    """Indices of the `limit` highest scores (of all when `limit` is not positive), best first.

    Args:
        scores: `[N]`, none negative, none NaN.
        tie_keys: `[N]` in 0..2^32-1, no two alike; equal scores come in their ascending order. mmdet's `sort` and
            `topk` leave that order to torch, which does not define it.
    """
    kept = np.arange(len(scores))
    if 0 < 4 * limit < len(scores):
        lowest = np.partition(scores, len(scores) - limit)[len(scores) - limit]
        kept = np.flatnonzero(scores >= lowest)
    # Bit patterns of numbers that are not negative ascend as the numbers do; one sort of integers does for both keys.
    patterns = scores[kept].view(np.uint32).astype(np.uint64)
    ranked = kept[np.argsort(((np.uint64(0xFFFFFFFF) - patterns) << np.uint64(32)) | tie_keys[kept].astype(np.uint64))]
    return ranked[:limit] if limit > 0 else ranked
