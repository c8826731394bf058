"""Takes the options of `python -m harness blame`; gives what it prints, and writes the layer and the page."""

from dataclasses import dataclass, replace
from pathlib import Path

from harness.blame import reproducer
from harness.blame.case import blame as blamed
from harness.blame.search import Tell
from harness.pipeline import Cell, Pipeline, Settings
from harness.report.blame import render, write_html
from harness.report.grid import Format
from harness.sides.arguments import cell_names


@dataclass(frozen=True)
class Request:
    """What is asked: a cell, another to compare its layers with, where to write, and how to print."""

    cell: str
    against: str | None
    out: Path
    page: Path | None
    form: Format
    columns: int


def blame(request: Request, settings: Settings, tell: Tell) -> tuple[str, bool]:
    """What is to be printed, and whether nothing departs.

    Raises:
        UsageError, Missing, EngineError: as `harness.blame.case.blame`. ResultsError: a file cannot be written.
    """
    pipeline = Pipeline(settings)
    cell = _cell(request.cell, settings, "cell, nor a folder that blame wrote")
    against = None if request.against is None else _cell(request.against, settings)
    found = blamed(pipeline, cell, against, tell)
    if found.found is not None:
        folder = request.out / cell.id
        reproducer.write(folder, found.found, cell, pipeline.engine(cell.engine).options, found.in_engine)
        found = replace(found, folder=folder)
    if request.page is not None:
        write_html(found, request.page)
        tell(f"wrote {request.page}")
    return render(found, request.form, request.columns), found.healthy


def _cell(name: str, settings: Settings, wanted: str = "cell") -> Cell:
    model, precision, engine = cell_names(name, settings.baselines, wanted, settings.engine_options)
    return Cell(model, precision, engine)  # type: ignore[arg-type]


def run_alone(folder: Path, settings: Settings) -> tuple[str, bool]:
    """What a layer that was kept gives when it is built and run again, and whether it departs.

    Raises:
        UsageError: the folder holds none.
    """
    facts = reproducer.facts_of(folder)
    engine = facts.cell.rpartition("-")[2]
    options = {engine: {**facts.engine_options, **settings.engine_options.get(engine, {})}}
    settings = replace(settings, engine_options=options)
    worst = reproducer.run_alone(Pipeline(settings), _cell(facts.cell, settings), folder, facts.in_engine)
    where = facts.cell if facts.in_engine else "ONNX Runtime"
    departs = not worst.relative <= facts.bound
    line = (
        f"{'DEPARTS' if departs else 'HOLDS'} {facts.layer} ({facts.type}) alone in {where}: {worst.relative:.3g} off "
        f"(relative L2), explained {facts.bound:g}; when it was kept: {facts.relative:.3g}"
    )
    return line, departs
