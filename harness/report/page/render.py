"""Takes what the page shows; gives one HTML file: no script, no request, what comes from files escaped."""

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from harness.judge.verdict import Status
from harness.report.page.shown import Page
from harness.report.page.words import SYMBOLS

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATE, STYLE = "page.html.j2", "page.css"


def html(page: Page) -> str:
    """The whole file."""
    return fill(TEMPLATE, page)


def fill(template: str, page: object) -> str:
    """A template of this folder, with what it shows and the style that all pages share."""
    style = (files(__package__) / STYLE).read_text(encoding="utf-8")
    return _environment().get_template(template).render(page=page, style=style)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("harness.report.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters["symbol"] = _symbol
    made.filters["tone"] = _tone
    return made


def _symbol(status: Status) -> str:
    return SYMBOLS[status]


def _tone(status: Status) -> str:
    """The class that a status is coloured by."""
    return f"is-{status.lower()}"
