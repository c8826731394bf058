"""Takes a reference and a suspect that run the same layers; gives the first at which the suspect departs.

The graph is cut into pieces. Each is built and run alone by the suspect on the reference's own inputs, in depth order,
and one that departs is cut again, down to one layer. So no error but the piece's own is seen, however deep it lies:
neither what rounding gathered before, nor what a normalisation behind takes away again. All pieces of a round together
are no more than the graph, those of the next no more than one of them, and a few tensors at a time leave the device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.blame.layers import Layer, Layers, Piece, shapes_of
from harness.blame.sides import Images, Side, Values
from harness.model.parity import Deviation, deviations

PARTS = 8
WORTH_A_LOOK = 0.2
"""Excess of a piece that does not depart, from which on one of its layers may: its error may get less on the way."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Bounds:
    """Relative L2 error that the precision explains: of one layer, and of the whole graph."""

    layer: float
    whole: float

    def of(self, layers: int) -> float:
        """Of some layers: independent roundings add up in squares, to no more than the whole graph's."""
        return min(self.layer * math.sqrt(layers), max(self.whole, self.layer))


@dataclass(frozen=True)
class Seen:
    """What became of one piece: the worst of its outputs, and what its layers explain."""

    piece: Piece
    worst: Deviation
    bound: float

    @property
    def excess(self) -> float:
        """Its error, as a multiple of what its layers explain."""
        return self.worst.relative / self.bound

    @property
    def departs(self) -> bool:
        """It is further off than its layers explain."""
        return not self.excess <= 1


@dataclass(frozen=True)
class Found:
    """The first layer that departs; where none does, of those that were run alone the one that adds most.

    seen: of that layer alone. together: the fewest layers that depart in one engine where none does alone, None where
    there are none. inputs, wanted, found: the layer's inputs and output in the reference, and what the suspect makes of
    the same inputs.
    """

    layers: Layers
    seen: Seen
    together: Seen | None
    inputs: Values
    wanted: Values
    found: Values

    @property
    def departs(self) -> bool:
        """A layer does, or several do that are in one engine."""
        return self.seen.departs or self.together is not None

    @property
    def layer(self) -> Layer:
        """The layer itself."""
        return self.seen.piece.layers[0]


@dataclass(frozen=True)
class Search:
    """Looks for the layer on `images` `[batch, 3, H, W]`, once; `tell` is told of what departs.

    Raises:
        GraphError: the graphs have nothing in common.
        EngineError: the suspect does not build or run a piece.
    """

    reference: Side
    suspect: Side
    images: Images
    bounds: Bounds
    tell: Tell
    departing: list[Seen] = field(default_factory=list)

    def run(self) -> Found:
        """The layer, run once more alone."""
        layers = Layers(self.suspect.graph, shapes_of(self.reference.graph))
        piece = self._leaf(layers, layers.whole).piece
        values = self.reference.values(self.images, [*piece.inputs, *piece.outputs])
        seen, found = self._alone(layers, piece, values)
        inputs, wanted = ({name: values[name] for name in names} for names in (piece.inputs, piece.outputs))
        together = None if seen.departs else min(self.departing, key=lambda one: len(one.piece), default=None)
        return Found(layers, seen, together, inputs, wanted, found)

    def _leaf(self, layers: Layers, piece: Piece) -> Seen:
        """The first layer of the piece that departs, else the worst of those that were run."""
        parts = layers.split(piece, PARTS)
        values = self.reference.values(self.images, [name for one in parts for name in (*one.inputs, *one.outputs)])
        leaves, others = [], []
        for part in parts:
            seen, _ = self._alone(layers, part, values)
            if len(part) > 1 and not seen.departs:
                others.append(seen)
                continue
            if seen.departs:
                self.departing.append(seen)
                self.tell(f"departs by {seen.worst.relative:.2g}: {_names(part)}")
            leaves.append(seen if len(part) == 1 else self._leaf(layers, part))
            if leaves[-1].departs:
                return leaves[-1]
        for seen in sorted(others, key=lambda one: -one.excess):
            if leaves and seen.excess < WORTH_A_LOOK:
                break
            leaves.append(self._leaf(layers, seen.piece))
            if leaves[-1].departs:
                return leaves[-1]
        return max(leaves, key=lambda one: one.excess)

    def _alone(self, layers: Layers, piece: Piece, values: Values) -> tuple[Seen, Values]:
        found = self.suspect.outputs(layers.cut(piece), values)
        worst = deviations({name: values[name] for name in piece.outputs}, found)[0]
        return Seen(piece, worst, self.bounds.of(len(piece))), found


def _names(piece: Piece) -> str:
    first, last = piece.layers[0].name, piece.layers[-1].name
    return first if len(piece) == 1 else f"{len(piece)} layers from {first} to {last}"
