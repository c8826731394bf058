"""Takes two sets of named outputs for the same images; gives how far they are apart, against one table of bounds."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Outputs = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Deviation:
    """Distance of one output from its reference.

    relative: L2 norm of the difference over L2 norm of the reference. max_abs: in the output's own unit.
    """

    output: str
    relative: float
    max_abs: float


@dataclass(frozen=True)
class Shift:
    """Why two sets of outputs do not match: which output, what was wanted, what was found."""

    output: str
    wanted: str
    found: str


def deviations(reference: Outputs, outputs: Outputs) -> list[Deviation]:
    """Per output, the largest first. Both must have the same names and shapes (see `first_shift`)."""
    found = []
    for name, wanted in reference.items():
        expected, actual = wanted.astype(np.float64), outputs[name].astype(np.float64)
        norm = float(np.linalg.norm(expected))
        gap = expected - actual
        relative = float(np.linalg.norm(gap)) / norm if norm > 0 else float(np.abs(gap).max(initial=0.0))
        found.append(Deviation(name, relative, float(np.abs(gap).max(initial=0.0))))
    return sorted(found, key=lambda d: -d.relative)


def first_shift(reference: Outputs, outputs: Outputs, bound: float) -> Shift | None:
    """The first way in which `outputs` differ: names, shapes, NaN or Inf, or a relative L2 error above `bound`."""
    if list(reference) != list(outputs):
        return Shift("(all)", f"outputs {', '.join(reference)}", ", ".join(outputs) or "none")
    for name, wanted in reference.items():
        if wanted.shape != outputs[name].shape:
            return Shift(name, f"shape {wanted.shape}", f"shape {outputs[name].shape}")
        if not np.isfinite(wanted).all():
            return Shift(name, "finite values to compare with", "NaN or Inf in the reference")
        if not np.isfinite(outputs[name]).all():
            return Shift(name, "finite values", "NaN or Inf")
    worst = deviations(reference, outputs)[0]
    if worst.relative <= bound:
        return None
    return Shift(
        worst.output,
        f"relative L2 error at most {bound:g}",
        f"{worst.relative:.3g} (largest difference {worst.max_abs:.3g})",
    )
