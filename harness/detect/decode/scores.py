"""Takes raw class logits; gives their scores, the candidates above a threshold and the best of them."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]

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


def candidates(logits: npt.NDArray[np.float32 | np.float16], score_thr: float) -> tuple[IndexArray, FloatArray]:
    """All entries whose score is greater than `score_thr`, after one read of the map.

    Returns:
        indices `[K]` into the flattened map, ascending; and their scores `[K]`.
    """
    flat = logits.reshape(-1)
    indices = np.flatnonzero(_may_exceed(flat, logit_floor(score_thr)))
    scores = sigmoid(flat[indices].astype(np.float32, copy=False))
    passed = scores > np.float32(score_thr)
    return indices[passed], scores[passed]


def _may_exceed(values: npt.NDArray[np.float32 | np.float16], floor: float) -> npt.NDArray[np.bool_]:
    """True wherever `value > floor`; a NaN or a value right at the floor may be True too."""
    if values.dtype == np.float32:
        return np.greater(values, np.float32(floor))
    with np.errstate(over="ignore"):
        half = np.nextafter(np.float16(floor), np.float16(-np.inf))
    # numpy widens float16 element by element; its bits compare ten times faster. As unsigned integers all positive
    # numbers come before all negative ones, which ascend away from zero.
    above: npt.NDArray[np.bool_] = (
        np.less(values.view(np.uint16), half.view(np.uint16))
        if np.signbit(half)
        else np.greater(values.view(np.int16), half.view(np.int16))
    )
    return above


def best_first(scores: FloatArray, tie_keys: IndexArray, limit: int) -> IndexArray:
    """Indices of the `limit` highest scores (of all when `limit` is not positive), best first.

    Equal scores come in ascending order of `tie_keys`. mmdet's `sort` and `topk` leave that order to torch, which
    does not define it.
    """
    kept = np.arange(len(scores))
    if 0 < limit < len(scores):
        lowest = np.partition(scores, len(scores) - limit)[len(scores) - limit]
        kept = np.flatnonzero(scores >= lowest)
    ranked = kept[np.lexsort((tie_keys[kept], -scores[kept]))]
    return ranked[:limit] if limit > 0 else ranked
