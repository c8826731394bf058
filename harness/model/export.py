"""Takes a detector's module; gives its raw head maps, as a torch module and as ONNX with a dynamic batch."""

import io
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.errors import ExportError
from harness.model.mmdet import HeadSpec
from harness.model.parity import first_shift
from harness.tolerances import TOLERANCES

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

OPSET = 17

Maps = Mapping[str, npt.NDArray[np.float32]]
GraphRunner = Callable[["onnx.ModelProto", npt.NDArray[np.float32]], dict[str, npt.NDArray[np.float32]]]


def raw_maps(module: "nn.Module") -> "nn.Module":
    """A module from images `[N, 3, H, W]` to the flat tuple of head maps, in the order of `HeadSpec.output_names`."""
    from torch import nn

    detector: Any = module

    class RawMaps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = module

        def forward(self, images: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
            features = detector.neck(detector.backbone(images))
            kinds: tuple[list[torch.Tensor], ...] = detector.bbox_head(features)
            return tuple(level for kind in kinds for level in kind)

    return RawMaps().eval()


def run_module(
    module: "nn.Module", head: HeadSpec, images: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[np.float32]]:
    """The head maps that torch computes for `images` `[N, 3, H, W]`, by output name."""
    import torch

    with torch.inference_mode():
        maps = raw_maps(module)(torch.from_numpy(images))
    return {name: level.float().cpu().numpy() for name, level in zip(head.output_names, maps, strict=True)}


def export(
    module: "nn.Module",
    head: HeadSpec,
    input_name: str,
    images: npt.NDArray[np.float32],
    run_graph: GraphRunner,
    target: Path,
) -> None:
    """Write the detector's raw head maps as ONNX to `target`, and check the file against torch on `images`.

    Args:
        images: preprocessed photographs `[N, 3, H, W]`, N >= 2; the first is also run alone, as the batch is dynamic.
        run_graph: runs an ONNX model on images.

    Raises:
        ExportError: torch could not export, or the ONNX does not compute what torch computes.
    """
    import onnx
    import torch

    dynamic = {name: {0: "batch"} for name in (input_name, *head.output_names)}
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                raw_maps(module),
                (torch.from_numpy(images[:2]),),
                str(target),
                dynamo=False,
                opset_version=OPSET,
                input_names=[input_name],
                output_names=list(head.output_names),
                dynamic_axes=dynamic,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError) as error:
            raise ExportError(
                f"torch.onnx could not export the module: {str(error).splitlines()[0]}",
                "see which operator the message names; torch 2.13 and mmdet 3.3.0 are expected",
            ) from error
    _check(module, head, images, run_graph, onnx.load(str(target)))


def _check(
    module: "nn.Module",
    head: HeadSpec,
    images: npt.NDArray[np.float32],
    run_graph: GraphRunner,
    model: "onnx.ModelProto",
) -> None:
    wanted = run_module(module, head, images)
    alone = {name: maps[:1] for name, maps in wanted.items()}
    for reference, batch in ((wanted, images), (alone, images[:1])):
        shift = first_shift(reference, run_graph(model, batch), TOLERANCES["export"].relative)
        if shift is not None:
            raise ExportError(
                f"the exported graph differs from torch at batch {len(batch)}, output '{shift.output}': "
                f"wanted {shift.wanted}, found {shift.found}",
                "do not use this graph: look for an operator that traced a constant (torch's warnings name the line)",
            )
