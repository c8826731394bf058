"""Takes a baselines directory; gives models, engines, their options and the cache as text, JSON or Markdown.

Imports nothing heavy.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.engines.base import Capabilities
from harness.engines.table import ENGINES, get_engine
from harness.errors import UsageError
from harness.model.registry import PRECISIONS, Precision, load_models
from harness.report.grid import Format, markdown_table

if TYPE_CHECKING:
    from harness.cache import CacheEntry


def render(lists: "Mapping[str, Listing]", what: Sequence[str], baselines: Path, form: Format) -> str:
    """Those of the lists that are asked for, in one of the formats.

    Raises:
        UsageError: another list.
    """
    for name in what:
        if name not in lists:
            raise UsageError(f"no list '{name}'; known: {', '.join(lists)}", "choose of them, or leave it out")
    if form == "json":
        return json.dumps({name: lists[name].data(baselines) for name in what}, indent=1)
    if form == "markdown":
        return "\n\n".join(lists[name].markdown(baselines) for name in what)
    return "\n".join(lists[name].text(baselines) for name in what)


def _models(baselines: Path) -> list[dict[str, Any]]:
    return [spec.model_dump(mode="json", by_alias=True) for spec in load_models(baselines).values()]


def _engines(_baselines: Path) -> list[dict[str, Any]]:
    rows = []
    for name in ENGINES:
        engine = get_engine(name)
        able = engine.capabilities
        row = {
            "name": name,
            "precisions": list(able.precisions),
            "computes": dict(able.computes),
            "device": able.device,
            "source": able.source,
            "options": {key: option.text for key, option in engine.known_options.items()},
        }
        rows.append(row)
    return rows


def _options(_baselines: Path) -> list[dict[str, Any]]:
    return [
        {"name": f"{name}.{key}", "values": option.values, "default": option.default, "sets": option.text}
        for name in ENGINES
        for key, option in get_engine(name).known_options.items()
    ]


def _size(model: dict[str, Any]) -> str:
    return f"{model['input']['height']}x{model['input']['width']}"


def _published(row: dict[str, Any]) -> str:
    where = f"{row['engine']} on {row['device']}, {row['sdk']} ({row['release']})"
    figures = f"AP {row['map_50_95']}, AP50 {row['map_50']}, {row['fps']} FPS at batch {row['batch']}"
    return f"published {row['precision']}: {figures}, {where}"


def models_table(baselines: Path) -> str:
    """Markdown: models with their input sizes, data sets and published rows."""
    head = ("model", "input", "data set", "title", "published")
    rows = [
        (f"`{m['name']}`", _size(m), m["dataset"], m["title"], "; ".join(map(_published, m["published"])) or "–")
        for m in _models(baselines)
    ]
    return markdown_table(head, rows)


def _models_text(baselines: Path) -> str:
    lines = ["models:"]
    for model in _models(baselines):
        lines.append(f"  {model['name']:<10} {_size(model):>9}  {model['dataset']:<9} {model['title']}")
        lines += [f"  {'':<21}{_published(row)}" for row in model["published"]]
    return "\n".join(lines)


def _engines_text() -> str:
    lines = ["engines:"]
    for engine in _engines(Path()):
        computes = ", ".join(f"{p} (computes in {c})" if p != c else p for p, c in engine["computes"].items())
        lines.append(f"  {engine['name']:<12} {engine['device']:<11} {computes}")
    return "\n".join(lines)


def options_table() -> str:
    """Markdown: what `--engine-option` may set; docs/engines.md holds it."""
    rows = [(f"`{o['name']}`", o["values"], o["default"], o["sets"]) for o in _options(Path())]
    return markdown_table(("option", "values", "default", "sets"), rows)


def _options_text() -> str:
    rows = [(o["name"], f"{o['values']} (default: {o['default']})", o["sets"]) for o in _options(Path())]
    lines = [f"  {name:<27} {values:<43} {sets}" for name, values, sets in rows]
    return "\n".join(["engine options, --engine-option ENGINE.KEY=VALUE:", *lines])


def render_cache(entries: "Sequence[CacheEntry]", directory: Path, word: str, form: Format) -> str:
    """Entries of the cache; `word` says what became of them, before the directory."""
    total = f"{len(entries)} entries, {sum(e.size for e in entries) / 1e6:.1f} MB {word} {directory}"
    if form == "json":
        rows = [{"kind": e.kind, "key": e.key, "bytes": e.size, "engine": e.inputs.get("engine")} for e in entries]
        return json.dumps({"directory": str(directory), "entries": rows}, indent=1)
    shown = [(e.kind, e.key, f"{e.size / 1e6:.1f} MB", e.inputs.get("engine", "")) for e in entries]
    if form == "markdown":
        return f"{markdown_table(('kind', 'key', 'size', 'engine'), shown)}\n\n{total}"
    return "\n".join([*(f"{kind:<11} {key}  {size:>12}  {engine}" for kind, key, size, engine in shown), total])


def engines_table() -> str:
    """Markdown: what each engine can do, from its capabilities; the README holds it."""
    head = ("engine", "runs on", "fp32", "fp16", "int8", "tells what ran", "options", "verified")
    rows = []
    for name in ENGINES:
        engine = get_engine(name)
        able = engine.capabilities
        precisions = [_support(able, precision) for precision in PRECISIONS]
        options = ", ".join(f"`{key}`" for key in engine.known_options) or "–"
        tells = "yes" if able.inspection else "no: proved by effect"
        rows.append((f"`{name}`", able.device, *precisions, tells, options, engine.verified))
    return markdown_table(head, rows)


def _support(able: Capabilities, precision: Precision) -> str:
    if precision not in able.computes:
        return "–"
    word = "native" if able.native(precision) else f"stored, computes in {able.computes[precision]}"
    scheme = f" ({able.int8_scheme})" if precision == "int8" else ""
    built = f", from the {able.builds_from[precision]} graph" if precision in able.builds_from else ""
    return f"{word}{scheme}{built}"


@dataclass(frozen=True)
class Listing:
    """One list in its three forms."""

    data: Callable[[Path], list[dict[str, Any]]]
    markdown: Callable[[Path], str]
    text: Callable[[Path], str]


LISTS = {
    "models": Listing(_models, models_table, _models_text),
    "engines": Listing(_engines, lambda _: engines_table(), lambda _: _engines_text()),
    "options": Listing(_options, lambda _: options_table(), lambda _: _options_text()),
}
