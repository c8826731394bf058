"""Takes a matplotlib figure drawn in INK; gives SVG for a page: in its colours and font, with ids of its own."""

import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Drawn with, and what the page makes of it by its own variables, in light and dark.
INK = {
    "ink": "#010101",
    "faint": "#020202",
    "grid": "#030303",
    "now": "#040404",
    "before": "#050505",
    "other": "#060606",
    "bad": "#070707",
    "paper": "#080808",
}
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_STYLE = re.compile(r"\s*<style type=\"text/css\">.*?</style>", re.DOTALL)
_COMMENT = re.compile(r"\s*<!--.*?-->", re.DOTALL)
_OPENING = re.compile(r"<svg [^>]*?viewBox=\"([^\"]+)\"[^>]*>", re.DOTALL)
_FONT = re.compile(r"font: (\d+(?:\.\d+)?)px [^;\"]*")
_ID = re.compile(r'(?<= )id="([^"]+)"')
_USED = re.compile(r'(?:href="#|url\(#)([^")]+)')
_DECIMALS = re.compile(r"(\d+\.\d{2})\d+")
_SPACE = re.compile(r">\s+<")


def settings() -> dict[str, object]:
    """Of matplotlib, while such a figure is drawn."""
    ink, faint = INK["ink"], INK["faint"]
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "detgate",
        "text.parse_math": False,
        "font.size": 9,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": faint,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": INK["grid"],
        "grid.linewidth": 0.7,
        "xtick.color": faint,
        "ytick.color": faint,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "legend.labelcolor": ink,
        "path.simplify_threshold": 0.5,
    }


def as_svg(figure: "Figure", name: str) -> str:
    """The figure as one element of a page; `name` keeps its ids apart from those of the others."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return cleaned(out.getvalue(), name)


def cleaned(text: str, name: str) -> str:
    """matplotlib's SVG without what a page does not need."""
    text = _HEAD.sub("", text, count=1)
    for useless in (_METADATA, _STYLE, _COMMENT):
        text = useless.sub("", text)
    text = _FONT.sub(r"font-size: \1px", text)
    text = _DECIMALS.sub(r"\1", text)
    for variable, colour in INK.items():
        text = text.replace(colour, f"var(--{variable})")
    text = _own_ids(text, name).replace("xlink:href", "href")
    text = _OPENING.sub(r'<svg viewBox="\1" role="img" aria-label="{{ALT}}" focusable="false">', text, count=1)
    return _SPACE.sub("><", text).strip()


def _own_ids(text: str, name: str) -> str:
    used = set(_USED.findall(text))
    text = _ID.sub(lambda found: f'id="{name}-{found[1]}"' if found[1] in used else "", text)
    return _USED.sub(lambda found: found[0].replace(f"#{found[1]}", f"#{name}-{found[1]}"), text)
