"""Takes a `Blame`; gives it for a terminal, as Markdown, as JSON, and as an HTML page that needs nothing else."""

import html
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.blame.case import Blame, Nearby
from harness.blame.ranges import Range
from harness.blame.search import Found
from harness.errors import ResultsError
from harness.measure.hops import Hop
from harness.report.grid import Format, markdown_table, text_table
from harness.tolerances import TOLERANCES

HOPS = ("hop", "output", "relative", "at most", "mean", "largest", "cosine", "AP", "change", "kept")
RANGES = ("tensor", "side", "lowest", "highest", "zeros", "saturated", "Inf", "NaN")
NEARBY = ("layer", "type", "relative", "")
BAR = 24
LEAST_ERROR = 1e-8
MARK = "<- this one"


def render(found: Blame, form: Format, width: int) -> str:
    """In one of three forms."""
    if form == "json":
        return json.dumps(as_json(found), indent=1)
    table = _markdown if form == "markdown" else lambda headings, rows: text_table(headings, rows, width)
    lines = [
        f"{found.cell.id}: what each hop costs",
        "",
        table(HOPS, [_hop(one, one is found.hops[0]) for one in found.hops]),
        "",
        verdict(found),
    ]
    if found.found is None:
        return "\n".join(lines)
    lines += ["", *_layer(found, found.found), "", table(RANGES, [_range(one) for one in found.ranges])]
    lines += ["", "errors around it, in the whole graph (relative L2, a bar grows with its power of ten)", ""]
    lines += [table(NEARBY, _bars(found.nearby, found.found))]
    return "\n".join([*lines, "", *_footer(found)])


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(headings, rows)


def verdict(found: Blame) -> str:
    """One sentence: which hop breaks and which layer departs."""
    hop = f"{found.broken.hop.name} breaks: {found.broken.reason}" if found.broken else "no hop breaks"
    if found.found is None:
        return f"{hop}; {found.why}"
    layer, seen = found.found.layer, found.found.seen
    if seen.departs:
        return f"{hop}; the first layer that departs is {layer.name} ({layer.type})"
    most = f"{layer.name} ({layer.type}) adds most, {seen.worst.relative:.2g}, and {seen.bound:g} is explained"
    return f"{hop}; no layer that was run alone departs: {most}{_together(found.found)}"


def _together(found: Found) -> str:
    """What only several layers in one engine do, as where it fuses them."""
    if found.together is None:
        return ""
    layers, worst = found.together.piece.layers, found.together.worst.relative
    return f"; {len(layers)} layers from {layers[0].name} to {layers[-1].name} in one engine depart by {worst:.2g}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2e}"


def _hop(hop: Hop, first: bool) -> list[str]:
    worst, ap = hop.worst, hop.map_50_95
    name = f"{hop.before if first else ''} -> {hop.after}".strip()
    tolerance = f"{TOLERANCES[hop.step].relative:g}"
    error = [hop.broken or "–", "–", tolerance, "–", "–", "–"]
    if worst is not None:
        figures = (worst.mean_abs, worst.max_abs)
        error = [worst.output, _number(worst.relative), tolerance, *map(_number, figures), f"{worst.cosine:.6f}"]
    kept = "–" if hop.matched is None else f"{hop.matched:.1%}"
    change = "–" if hop.change is None else f"{hop.change:+.4f}"
    return [name, *error, "–" if ap is None else f"{ap[1]:.4f}", change, kept]


def _layer(found: Blame, at: Found) -> list[str]:
    assert found.reference is not None
    assert found.suspect is not None
    layer, shapes, seen = at.layer, at.layers.shapes, at.seen
    number = at.layers.layers.index(layer) + 1
    nodes = f", with {', '.join(layer.nodes[:-1])}" if len(layer.nodes) > 1 else ""
    return [
        f"layer {number} of {len(at.layers.layers)}: {layer.name} ({layer.type}){nodes}",
        f"  makes      {layer.output} {list(shapes[layer.output])}",
        *(f"  of         {name} {list(shapes[name])}" for name in layer.inputs),
        *([f"  attributes {attributes(at)}"] if attributes(at) else []),
        f"  reference  {found.reference.name}",
        f"  suspect    {found.suspect.name}",
        f"  alone      {seen.worst.relative:.2g} off (relative L2) on the reference's inputs, explained {seen.bound:g}",
    ]


def attributes(found: Found) -> str:
    """Of the node that makes the layer's output, in short."""
    from onnx import helper

    own = found.layers.producer(found.layer.output)
    given = {one.name: helper.get_attribute_value(one) for one in own.attribute}
    return ", ".join(f"{name}={value.decode() if isinstance(value, bytes) else value}" for name, value in given.items())


def _range(one: Range) -> list[str]:
    shares = ("–" if share is None else f"{share:.2%}" for share in (one.zeros, one.saturated, one.inf, one.nan))
    return [one.tensor, one.side, f"{one.low:.4g}", f"{one.high:.4g}", *shares]


def _bars(nearby: Sequence[Nearby], found: Found) -> list[list[str]]:
    return [
        [
            one.layer.name,
            one.layer.type,
            _number(one.relative),
            f"{bar(one.relative)} {MARK if one.layer == found.layer else ''}",
        ]
        for one in nearby
    ]


def bar(relative: float) -> str:
    """Longer by the same for each power of ten above 1e-8; full from 1 on."""
    if relative <= LEAST_ERROR:
        return ""
    if not relative < 1:  # NaN too
        return "█" * BAR
    return "█" * max(1, round(BAR * (1 - math.log10(relative) / math.log10(LEAST_ERROR))))


def _footer(found: Blame) -> list[str]:
    assert found.reference is not None
    assert found.suspect is not None
    suspect, reference = found.suspect.runs, found.reference.runs
    runs = f"{suspect} of the suspect, all but one of parts of the graph; {reference} of the reference"
    lines = [f"extra runs: {runs}; {found.seconds:.1f} s"]
    if found.folder is not None:
        lines += [
            f"the layer alone, with its inputs and what they should give: {found.folder}; to run it:",
            f"  python -m harness blame {found.folder}",
        ]
    return lines


def as_json(found: Blame) -> dict[str, Any]:
    """Plain data; Inf and NaN are null."""
    content: dict[str, Any] = {
        "schema": 1,
        "cell": found.cell.id,
        "verdict": verdict(found),
        "healthy": found.healthy,
        "hops": [
            {**asdict(hop), "change": hop.change, "tolerance": asdict(TOLERANCES[hop.step])} for hop in found.hops
        ],
        "broken": found.broken.hop.name if found.broken else None,
        "layer": None,
    }
    at = found.found
    if at is not None and found.suspect is not None and found.reference is not None:
        content["layer"] = {
            **asdict(at.layer),
            "departs": at.seen.departs,
            "relative": at.seen.worst.relative,
            "explained": at.seen.bound,
            "shape": at.layers.shapes[at.layer.output],
            "attributes": attributes(at),
            "together": None if at.together is None else [layer.name for layer in at.together.piece.layers],
            "ranges": [asdict(one) for one in found.ranges],
            "nearby": [
                {"layer": one.layer.name, "type": one.layer.type, "relative": one.relative} for one in found.nearby
            ],
            "runs": {"suspect": found.suspect.runs, "reference": found.reference.runs, "seconds": found.seconds},
            "folder": None if found.folder is None else str(found.folder),
        }
    plain: dict[str, Any] = _finite(content)
    return plain


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_html(found: Blame, path: Path) -> None:
    """The same as a page with a picture of the errors around the layer.

    Raises:
        ResultsError: it cannot be written.
    """
    parts = [f"<h1>{html.escape(found.cell.id)}</h1>", f"<p><b>{html.escape(verdict(found))}</b></p>"]
    parts += [
        "<h2>What each hop costs</h2>",
        _html_table(HOPS, [_hop(one, one is found.hops[0]) for one in found.hops]),
    ]
    if found.found is not None:
        parts += [f"<h2>{html.escape(found.found.layer.name)}</h2>", _preformatted(_layer(found, found.found))]
        parts += [_html_table(RANGES, [_range(one) for one in found.ranges])]
        parts += ["<h2>Errors around it</h2>", picture(found.nearby, found.found), _preformatted(_footer(found))]
    style = (
        "body{font-family:sans-serif;margin:2em}td,th{padding:.2em .7em;text-align:right;border-bottom:1px solid #ddd}"
    )
    page = f"<!doctype html><meta charset='utf-8'><title>{html.escape(found.cell.id)}</title><style>{style}</style>"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([page, *parts, ""]), encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}", "give a writable path: --html FILE") from error


def _preformatted(lines: Sequence[str]) -> str:
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return "\n".join(["<table>", row(headings, "th"), *(row(cells, "td") for cells in rows), "</table>"])


def picture(nearby: Sequence[Nearby], found: Found) -> str:
    """The errors of the layers near the one that departs, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.8 + 0.3 * len(nearby)), layout="constrained")
    axes = figure.subplots()
    errors = [min(max(one.relative, LEAST_ERROR), 10.0) for one in nearby]
    colours = ["C3" if one.layer == found.layer else "C0" for one in nearby]
    axes.barh(range(len(nearby)), errors, color=colours)
    axes.set_yticks(range(len(nearby)), [f"{one.layer.name} ({one.layer.type})" for one in nearby], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(LEAST_ERROR, 10.0)
    axes.set_xlabel("relative L2 error of the output, each side with its own values; Inf as 10")
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]
