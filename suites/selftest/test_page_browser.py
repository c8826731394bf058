"""The page in Chromium, opened from its file without network: silent, alone, quick, accessible, on phone and paper.

Skipped where these are not here: `pip install playwright`; a Chromium, `apt-get install chromium` or CHROMIUM=FILE; and
axe-core, `npm install axe-core` and then AXE_CORE=.../axe-core/axe.min.js.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.report.page.sources import Request
from harness.report.page.write import MOST_BYTES, write_page
from suites.selftest.pages import Place, conformance_report

pytestmark = [
    pytest.mark.selftest,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="needs: pip install playwright"),
]

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
AXE = os.environ.get("AXE_CORE", "")
DESKTOP, PHONE = (1280, 800), (390, 844)
FIRST_PAINT_MS = 1000
LOADS = 5  # the quickest counts: how long the others took is the machine's matter
BUSY_MS = 300
"""An empty page takes less where there is a core for it."""
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Place.make(tmp_path_factory.mktemp("page"))
    target = place.root / "page.html"
    write_page(Request((place.results,), target, "-o FILE", Path("coco"), against=place.before))
    return target


@pytest.fixture(scope="module")
def conformance_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conformance_report(tmp_path_factory.mktemp("conformance") / "page.html")


@pytest.fixture(params=["run", "conformance"])
def any_page(request: pytest.FixtureRequest, page_file: Path, conformance_file: Path) -> Path:
    """Each kind of page."""
    return {"run": page_file, "conformance": conformance_file}[request.param]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("needs: apt-get install chromium, or CHROMIUM=FILE")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser: Any, file: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light") -> Any:
    """The page in a window of its own, without network; what it says and asks for is kept as `said` and `asked`."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, offline=True, bypass_csp=bool(AXE)
    )
    page = context.new_page()
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(file.as_uri())
    return page


def first_paint(browser: Any, file: Path) -> float:
    """Milliseconds, the quickest of LOADS."""
    script = "performance.getEntriesByType('paint').map(entry => entry.startTime)"
    paints: list[float] = []
    for _ in range(LOADS):
        page = opened(browser, file)
        page.wait_for_timeout(500)
        paints += page.evaluate(script)
        page.context.close()
    return min(paints)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_silent_and_asks_for_nothing_but_itself(browser: Any, any_page: Path, scheme: str) -> None:
    page = opened(browser, any_page, scheme=scheme)
    page.wait_for_timeout(300)
    assert page.said == []
    assert [url for url in page.asked if not url.startswith("data:")] == [any_page.as_uri()]


def test_a_picture_from_elsewhere_would_be_seen(browser: Any, page_file: Path, tmp_path: Path) -> None:
    """So that the test above can fail."""
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_text(page_file.read_text().replace("</main>", '<img alt="" src="https://example.org/x.png"></main>'))
    page = opened(browser, spoilt)
    page.wait_for_timeout(300)
    assert page.said or len(page.asked) > 1


def test_it_is_small_and_painted_within_a_second(browser: Any, page_file: Path, tmp_path: Path) -> None:
    assert page_file.stat().st_size < MOST_BYTES
    empty = tmp_path / "empty.html"
    empty.write_text('<!doctype html><html lang="en"><title>empty</title><p>empty')
    idle = first_paint(browser, empty)
    if idle > BUSY_MS:
        pytest.skip(f"the machine is busy: an empty page is painted after {idle:.0f} ms, wanted at most {BUSY_MS}")
    assert first_paint(browser, page_file) < FIRST_PAINT_MS


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_does_not_scroll_sideways(browser: Any, any_page: Path, size: tuple[int, int]) -> None:
    page = opened(browser, any_page, size)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


@pytest.mark.skipif(not Path(AXE).is_file(), reason="needs: npm install axe-core, then AXE_CORE=.../axe.min.js")
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, any_page: Path, scheme: str, size: tuple[int, int]) -> None:
    page = opened(browser, any_page, size, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.evaluate(Path(AXE).read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    faults = {
        one["id"]: [node["html"][:120] for node in one["nodes"][:3]]
        for one in found["violations"]
        if one["impact"] in SERIOUS
    }
    assert found["passes"]
    assert faults == {}


def test_on_paper_what_is_folded_is_open(browser: Any, page_file: Path) -> None:
    page = opened(browser, page_file)
    page.emulate_media(media="print", color_scheme="dark")
    folded = page.locator("details.cell:not([open]) >> text=Run it again").first
    assert folded.bounding_box()["height"] > 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
