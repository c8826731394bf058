"""Takes a baselines directory; gives the models and engines as text or plain data. Imports nothing heavy."""

from pathlib import Path
from typing import Any

from harness.engines.base import Capabilities
from harness.engines.table import ENGINES, get_engine
from harness.model.registry import PRECISIONS, Precision, load_models
from harness.report.grid import markdown_table


def as_json(baselines: Path) -> dict[str, Any]:
    """`{"models": [...], "engines": [...]}`; models as their files say, engines with what each takes."""
    models = [spec.model_dump(mode="json", by_alias=True) for spec in load_models(baselines).values()]
    engines = []
    for name in ENGINES:
        able = get_engine(name).capabilities
        row = {
            "name": name,
            "precisions": list(able.precisions),
            "computes": dict(able.computes),
            "device": able.device,
        }
        engines.append(row | {"source": able.source, "options": dict(able.options)})
    return {"models": models, "engines": engines}


def engines_table() -> str:
    """Markdown: what each engine can do, from its capabilities; the README holds it."""
    head = ("engine", "runs on", "fp32", "fp16", "int8", "tells what ran", "options", "verified")
    rows = []
    for name in ENGINES:
        engine = get_engine(name)
        able = engine.capabilities
        precisions = [_support(able, precision) for precision in PRECISIONS]
        options = ", ".join(f"`{key}`" for key in able.options) or "–"
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


def as_text(baselines: Path) -> str:
    """Two short tables, one line a model and one an engine."""
    content = as_json(baselines)
    lines = ["models:"]
    for model in content["models"]:
        size = f"{model['input']['height']}x{model['input']['width']}"
        lines.append(f"  {model['name']:<10} {size:>9}  {model['dataset']:<9} {model['title']}")
        for row in model["published"]:
            where = f"{row['engine']} on {row['device']}, {row['sdk']} ({row['release']})"
            figures = f"AP {row['map_50_95']}, AP50 {row['map_50']}, {row['fps']} FPS at batch {row['batch']}"
            lines.append(f"  {'':<21}published {row['precision']}: {figures}, {where}")
    lines.append("engines:")
    for engine in content["engines"]:
        computes = ", ".join(f"{p} (computes in {c})" if p != c else p for p, c in engine["computes"].items())
        lines.append(f"  {engine['name']:<12} {engine['device']:<11} {computes}")
    return "\n".join(lines)
