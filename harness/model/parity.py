"""Takes two sets of named outputs for the same images; gives how far they are apart, against one table of bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Outputs = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Deviation:
    """Distance of one output from its reference.

    relative: L2 norm of the difference over L2 norm of the reference. max_abs, mean_abs: in the output's own unit.
    cosine: of the angle between the two as vectors. Where NaN or Inf is on a side, errors are Inf and this is NaN.
    """

    output: str
    relative: float
    max_abs: float
    mean_abs: float
    cosine: float


@dataclass(frozen=True)
class Shift:
    """Why two sets of outputs do not match: which output, what was wanted, what was found."""

    output: str
    wanted: str
    found: str


def deviations(reference: Outputs, outputs: Outputs) -> list[Deviation]:
    """Per output, the largest first. Both must have the same names and shapes (see `incomparable`)."""
    found = [deviation(name, wanted, outputs[name]) for name, wanted in reference.items()]
    return sorted(found, key=lambda d: -d.relative)


def deviation(name: str, wanted: npt.NDArray[Any], found: npt.NDArray[Any]) -> Deviation:
    """Of one tensor of any shape from its reference of the same."""
    if np.array_equal(wanted, found) and np.isfinite(wanted).all():
        return Deviation(name, 0.0, 0.0, 0.0, 1.0)
    expected, actual = wanted.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        return Deviation(name, np.inf, np.inf, np.inf, np.nan)
    gap = np.abs(expected - actual)
    largest = float(gap.max(initial=0.0))
    norms = float(np.linalg.norm(expected)), float(np.linalg.norm(actual))
    relative = float(np.linalg.norm(gap)) / norms[0] if norms[0] > 0 else largest
    cosine = float(expected @ actual) / (norms[0] * norms[1]) if min(norms) > 0 else float(norms[0] == norms[1])
    return Deviation(name, relative, largest, float(gap.mean()) if gap.size else 0.0, cosine)


def incomparable(reference: Outputs, outputs: Outputs) -> Shift | None:
    """The first way in which `outputs` cannot be compared with `reference`: names, shapes, NaN or Inf."""
    if list(reference) != list(outputs):
        return Shift("(all)", f"outputs {', '.join(reference)}", ", ".join(outputs) or "none")
    for name, wanted in reference.items():
        if wanted.shape != outputs[name].shape:
            return Shift(name, f"shape {wanted.shape}", f"shape {outputs[name].shape}")
        if not np.isfinite(wanted).all():
            return Shift(name, "finite values to compare with", "NaN or Inf in the reference")
        if not np.isfinite(outputs[name]).all():
            return Shift(name, "finite values", "NaN or Inf")
    return None


def first_shift(reference: Outputs, outputs: Outputs, bound: float) -> Shift | None:
    """The first way in which `outputs` differ: names, shapes, NaN or Inf, or a relative L2 error above `bound`."""
    shift = incomparable(reference, outputs)
    if shift is not None:
        return shift
    worst = deviations(reference, outputs)[0]
    if worst.relative <= bound:
        return None
    return Shift(
        worst.output,
        f"relative L2 error at most {bound:g}",
        f"{worst.relative:.3g} (largest difference {worst.max_abs:.3g})",
    )
