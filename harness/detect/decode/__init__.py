"""Takes a `HeadSpec` and an `InputSpec`; gives the `Decoder` that turns the head's raw maps into `Boxes`."""

from typing import TYPE_CHECKING

from harness.detect.decode.boxes import Boxes, Decoder
from harness.detect.decode.outputs import output_shapes

if TYPE_CHECKING:
    from harness.model.mmdet import HeadSpec, InputSpec

__all__ = ["Boxes", "Decoder", "make_decoder", "output_shapes"]


def make_decoder(head: "HeadSpec", input_spec: "InputSpec") -> Decoder:
    """The decoder of the head's family for this input size."""
    # Here, not above: these load numba, and the code that it compiled on the first import.
    from harness.detect.decode.anchor import AnchorDecoder
    from harness.detect.decode.paa import PAADecoder

    families: dict[str, type[AnchorDecoder | PAADecoder]] = {"anchor": AnchorDecoder, "paa": PAADecoder}
    return families[head.family](head, input_spec)
