"""Takes the words after `blame`; gives the stage, and the layer, in which a cell loses accuracy."""

import argparse
from pathlib import Path

from harness.commands.shared import (
    EXIT_FOUND,
    EXIT_OK,
    Commands,
    add_baselines,
    add_batch_size,
    add_command,
    add_engine_option,
    add_format,
    add_places,
    as_path,
    cache_dir_of,
    checkpoints_of,
    columns,
    data_dir_of,
    tell,
)
from harness.model.registry import DATASETS

BLAMED = Path("results/blame")


def add(commands: Commands) -> None:
    """`blame`."""
    blame = add_command(
        commands,
        "blame",
        _blame,
        "which stage, and which layer, a cell loses accuracy in",
        "Take the same images through torch, ONNX, the simplified and the typed graph and the engine, tell "
        "what each hop costs, and look within the graph of the first that breaks for the first layer that departs. "
        "That layer is kept as an ONNX of its own, with its inputs. Given such a folder in place of a cell, run it "
        "again.",
        finding="a hop breaks or a layer departs",
    )
    blame.add_argument("cell", metavar="CELL|FOLDER", help="e.g. pisa-fp16-tensorrt, or a folder that this wrote")
    blame.add_argument("--against", metavar="CELL", help="compare layers with this cell's, in place of ONNX Runtime's")
    blame.add_argument("--html", type=as_path, metavar="FILE", help="write a page too")
    blame.add_argument(
        "--out",
        type=as_path,
        default=BLAMED,
        metavar="DIR",
        help=f"where the layer is kept, by cell (default {BLAMED})",
    )
    blame.add_argument("--onnx", type=as_path, metavar="FILE", help="start from this ONNX of the raw head maps")
    blame.add_argument("--engine-file", type=as_path, metavar="FILE", help="start from this engine file")
    add_engine_option(blame, "--engine-option", "set an engine's option, e.g. onnxruntime.provider=cuda; repeatable")
    blame.add_argument(
        "--dataset",
        choices=DATASETS,
        default="auto",
        help="auto (default): the embedded set for mini models, COCO for the others",
    )
    add_format(blame)
    add_batch_size(blame)
    add_baselines(blame)
    add_places(blame, "checkpoints", "data-dir", "cache-dir")


def _blame(options: argparse.Namespace) -> int:
    from harness.blame.command import Request, blame, run_alone
    from harness.engines.table import parse_options
    from harness.pipeline import Settings
    from harness.sides.arguments import is_cell

    settings = Settings(
        baselines=options.baselines,
        cache_dir=cache_dir_of(options),
        checkpoints=checkpoints_of(options),
        data_dir=data_dir_of(options),
        dataset=options.dataset,
        batch_size=options.batch_size,
        onnx=options.onnx,
        engine_file=options.engine_file,
        engine_options=parse_options(options.engine_option),
    )
    if as_path(options.cell).is_dir() and not is_cell(options.cell, options.baselines, settings.engine_options):
        line, departs = run_alone(as_path(options.cell), settings)
        print(line)
        return EXIT_FOUND if departs else EXIT_OK
    request = Request(options.cell, options.against, options.out, options.html, options.format, columns())
    text, healthy = blame(request, settings, tell)
    print(text)
    return EXIT_OK if healthy else EXIT_FOUND
