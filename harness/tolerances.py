"""Takes nothing; gives what each step from torch to an engine may change, and each precision: with what was seen."""

from dataclasses import dataclass
from typing import Literal

from harness.model.registry import Precision

Step = Literal["export", "simplify", "batch", "fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Tolerance:
    """What a step may cost on images.

    relative: L2 error of the worst output over the L2 norm of what it was before. map_50_95: absolute AP lost on eight
    images. matched: least share of the confident boxes before that are still where they were, by IoU of 0.9.
    """

    relative: float
    map_50_95: float
    matched: float


# export: rounding of some 100 convolutions in another order, 6e-6 seen at full size; a wrong operator gives over 1e-2.
# simplify and a fixed batch re-order float32 sums. fp32, fp16 and int8: the graph in that precision, and an engine that
# computes in it. fp16 rounds weights to 11 bits (the CPU that checks the graph computes wider: overflow shows in the
# run, not there); int8 rounds activations to 8 bits and weights to 7 (reduced range), and each engine in its own way.
# AP and boxes: all 32 lots of eight of the embedded images, both models, onnxruntime and openvino. fp32: no box moved.
# fp16: AP fell by 0.0040 at most, 98.1 % of the boxes stayed. int8: 0.031 and 76.7 %.
TOLERANCES: dict[Step, Tolerance] = {
    "export": Tolerance(1e-4, 0.005, 0.98),
    "simplify": Tolerance(1e-5, 0.005, 0.98),
    "batch": Tolerance(1e-5, 0.005, 0.98),
    "fp32": Tolerance(1e-4, 0.005, 0.98),
    "fp16": Tolerance(2e-2, 0.01, 0.95),
    "int8": Tolerance(0.35, 0.06, 0.65),
}

# Relative L2 error of the worst output, to the fp32 graph, that a precision explains: at least and at most. Seen on the
# mini models: fp32 7e-7, fp16 4.6e-4 to 1.2e-3, int8 0.074 to 0.086.
EXPLAINED: dict[Precision, tuple[float, float]] = {
    "fp32": (0, TOLERANCES["fp32"].relative),
    "fp16": (1e-4, TOLERANCES["fp16"].relative),
    "int8": (2e-2, TOLERANCES["int8"].relative),
}

# Relative L2 error that one layer may add to exact inputs, by whether both sides run the same graph: an engine and ONNX
# Runtime, or a graph in a precision and the fp32 one. The largest of all layers of the mini models, with onnxruntime
# and openvino: fp32 6e-7, fp16 5e-7, int8 6e-4; fp16 to fp32 3.1e-4, int8 to fp32 0.040. No engine here computes in
# fp16: one that does rounds as that graph does.
LAYER_BOUND: dict[tuple[bool, Precision], float] = {
    (True, "fp32"): 1e-5,
    (True, "fp16"): 2e-3,
    (True, "int8"): 1e-2,
    (False, "fp32"): 1e-5,
    (False, "fp16"): 2e-3,
    (False, "int8"): 0.1,
}


@dataclass(frozen=True)
class Relation:
    """What a precision may do to a relation between outputs.

    same: relative L2 error between outputs for the same images, where the engine does not claim the same bits.
    mirrored: share of the boxes that may lose their partner in the mirrored image beyond what fp32 loses.
    aside: by how much the median box may lie further aside there than fp32's, as a fraction of its width.
    brightness: by how much scores may follow a change of brightness less, or more, than fp32's; 1 is not at all.
    """

    same: float
    mirrored: float
    aside: float
    brightness: float


# Seen on both embedded models, batch 8, by torch, onnxruntime, openvino and aotinductor on a CPU: the same bits for the
# same images everywhere but where one image is built alone (1e-6, aotinductor). Beside fp32 (in fp32, fp16, int8) the
# mirrored image loses 0.000, 0.001 and 0.034 of the boxes more; they lie 0.000, 0.0001 and 0.008 aside; scores follow
# light 0.000, 0.0003 and 0.12 less. `same` is what another order of sums does in fp32, what a rounding in each layer
# does in fp16 (1e-3, as from fp32 to fp16), and about half of what int8 itself does to the outputs.
RELATIONS: dict[Precision, Relation] = {
    "fp32": Relation(1e-5, 0.02, 0.002, 0.01),
    "fp16": Relation(2e-3, 0.05, 0.005, 0.02),
    "int8": Relation(5e-2, 0.15, 0.03, 0.4),
}
