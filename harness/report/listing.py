"""Takes a baselines directory; gives the models and engines as text or plain data. Imports nothing heavy."""

from pathlib import Path
from typing import Any

from harness.engines.table import ENGINES, get_engine
from harness.model.registry import load_models


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
        lines.append(f"  {engine['name']:<12} {engine['device']:<4} {computes}")
    return "\n".join(lines)
