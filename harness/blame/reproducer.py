"""Takes the layer that departs; gives a folder with it as ONNX, its inputs and what they should give; and runs it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.blame.search import Found
from harness.blame.sides import EngineRunner, Runner, Side
from harness.engines import Source
from harness.engines.reference import run_graph
from harness.errors import ResultsError, UsageError
from harness.model import graph
from harness.model.parity import Deviation, deviations
from harness.pipeline import Cell, Pipeline

LAYER, VALUES, FACTS = "layer.onnx", "layer.npz", "layer.json"


@dataclass(frozen=True)
class Facts:
    """What a reproducer says of itself.

    cell: whose engine ran it; `in_engine` is False where the graph itself was the suspect, run by ONNX Runtime.
    bound: relative L2 error that one layer explains.
    """

    schema: int
    cell: str
    engine_options: dict[str, str]
    in_engine: bool
    layer: str
    type: str
    relative: float
    bound: float


def write(folder: Path, found: Found, cell: Cell, options: dict[str, str], in_engine: bool) -> None:
    """The layer, its inputs (`input_0` ...) and what they should give (`output_0` ...), in the order of the ONNX.

    Raises:
        ResultsError: the folder cannot be written.
    """
    import onnx

    model = found.layers.cut(found.seen.piece)
    columns = {f"input_{i}": found.inputs[value.name] for i, value in enumerate(model.graph.input)}
    columns |= {f"output_{i}": found.wanted[value.name] for i, value in enumerate(model.graph.output)}
    layer, seen = found.layer, found.seen
    facts = Facts(1, cell.id, options, in_engine, layer.name, layer.type, seen.worst.relative, seen.bound)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(model, str(folder / LAYER))
        np.savez_compressed(folder / VALUES, **columns)  # type: ignore[arg-type]
        (folder / FACTS).write_text(json.dumps(asdict(facts), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"cannot write to {folder}: {error.strerror}", "give a writable path: --out DIR") from error


def facts_of(folder: Path) -> Facts:
    """What `write` said.

    Raises:
        UsageError: no such folder.
    """
    try:
        content: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return Facts(**content)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{folder} holds no layer: {FACTS}, {LAYER} and {VALUES} are wanted",
            "give a cell, or a folder that `python -m harness blame CELL` wrote",
        ) from error


def run_alone(pipeline: Pipeline, cell: Cell, folder: Path, in_engine: bool) -> Deviation:
    """How far the layer's output is off, built and run by the cell's engine (or ONNX Runtime) from the folder alone.

    Raises:
        UsageError: the folder's files cannot be read. EngineError, GraphError: the layer is refused.
    """
    spec, engine = pipeline.models[cell.model], pipeline.engine(cell.engine)
    source = Source(spec, cell.precision, 1, None, None, {}, pipeline.models_directory)
    return run_with(EngineRunner(engine, source) if in_engine else run_graph, folder, spec.input.name)


def run_with(run: Runner, folder: Path, image: str) -> Deviation:
    """The same, by any runner of graphs whose one input is called `image`."""
    layer = graph.load(folder / LAYER)
    try:
        with np.load(folder / VALUES, allow_pickle=False) as columns:
            inputs = {value.name: columns[f"input_{i}"] for i, value in enumerate(layer.graph.input)}
            wanted = {value.name: columns[f"output_{i}"] for i, value in enumerate(layer.graph.output)}
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"cannot read {folder / VALUES}: {error}", "write it again: `python -m harness blame CELL`"
        ) from error
    found = Side("alone", layer, run, image).outputs(layer, inputs)
    return deviations(wanted, found)[0]
