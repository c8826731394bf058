"""Takes how a command line names a side; gives `Asked`: a cell, an engine file, or a virtual environment."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from harness.engines.table import ENGINES, get_engine, parse_options
from harness.errors import UsageError
from harness.model.registry import PRECISIONS, load_models
from harness.sides.process import Asked

EngineOptions = Mapping[str, Mapping[str, str]]
PYTHONS = (Path("bin/python"), Path("Scripts/python.exe"))


@dataclass(frozen=True)
class Places:
    """What both sides share: where things are, and the images of a call."""

    baselines: Path
    checkpoints: Path
    cache_dir: Path
    batch_size: int | None


def asked(side: str, cell: str | None, options: list[str], places: Places) -> Asked:
    """The side that `side` names.

    Args:
        side: a cell id; an engine file; or the folder of a virtual environment. cell: for the latter two.
        options: `ENGINE.KEY=VALUE` each.

    Raises:
        UsageError: it names none of these, or says not which cell to run.
    """
    path, python, engine_file = Path(side), sys.executable, None
    if path.is_dir():
        python = _python_of(path)
    elif path.is_file():
        engine_file = path.resolve()
    else:
        cell = side
    if cell is None:
        raise UsageError(f"'{side}' does not say which cell it runs", "name it: --cell MODEL-PRECISION-ENGINE")
    parsed = parse_options(options)
    names = cell_names(cell, places.baselines, "cell, engine file or virtual environment", parsed)
    return Asked(
        label=side,
        cell=names,
        python=python,
        options=_options_of(names[2], parsed),
        baselines=places.baselines,
        checkpoints=places.checkpoints,
        cache_dir=places.cache_dir,
        batch_size=places.batch_size,
        engine_file=engine_file,
    )


def _python_of(folder: Path) -> str:
    found = next((folder / name for name in PYTHONS if (folder / name).is_file()), None)
    if found is None:
        raise UsageError(
            f"{folder} is no virtual environment: it has no {PYTHONS[0]}",
            "give the folder that `python -m venv` made, an engine file, or a cell",
        )
    return str(found.absolute())  # not resolved: a link to the system's Python would leave the environment


def _options_of(engine: str, parsed: EngineOptions) -> Mapping[str, str]:
    others = sorted(set(parsed) - {engine})
    if others:
        raise UsageError(f"an option of {others[0]} was given, but this side runs {engine}", "name the side's engine")
    return parsed.get(engine, {})


def is_cell(name: str, baselines: Path, options: EngineOptions) -> bool:
    """Whether `name` is the id of a cell of a known model, with these options of the engines."""
    try:
        cell_names(name, baselines, options=options)
    except UsageError:
        return False
    return True


def cell_names(
    cell: str, baselines: Path, wanted: str = "cell", options: EngineOptions = MappingProxyType({})
) -> tuple[str, str, str]:
    """Model, precision and engine of a cell id.

    Args:
        wanted: what may stand in its place, for the message. options: of the engines, which may give them precisions.

    Raises:
        UsageError: not a known one.
    """
    model, precision, engine = [*cell.rsplit("-", 2), "", ""][:3]
    parts = {
        "model": (model, load_models(baselines)),
        "precision": (precision, PRECISIONS),
        "engine": (engine, ENGINES),
    }
    remedy = "cells are called MODEL-PRECISION-ENGINE: `pytest -m accuracy --collect-only -q` lists them"
    for part, (name, known) in parts.items():
        if name not in known:
            raise UsageError(f"'{cell}' is no {wanted}: there is no {part} '{name}', only {', '.join(known)}", remedy)
    able = get_engine(engine, options.get(engine, {})).capabilities.precisions
    if precision not in able:
        raise UsageError(f"'{cell}' is no {wanted}: {engine} has no {precision}, only {', '.join(able)}", remedy)
    return model, precision, engine
