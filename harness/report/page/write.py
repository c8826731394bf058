"""Takes a request; gives the page's file: the one function below `pytest --report` and `python -m harness report`."""

from harness.files import write_atomically
from harness.report.page.gather import ROOM_BYTES, Room, gather
from harness.report.page.render import html
from harness.report.page.sources import Request, Sources, gather_sources, require_target
from harness.report.results import unwritable

MOST_BYTES = 3_000_000


def write_page(request: Request) -> int:
    """Write the page; gives its size in bytes.

    Raises:
        UsageError: the target does not end in .html, or there is no cell to show.
        ResultsError, RecordError: what it is made of cannot be read, or the file cannot be written.
    """
    require_target(request.target, request.option)
    content = page_of(gather_sources(request), request).encode()
    try:
        write_atomically(request.target, content)
    except OSError as error:
        raise unwritable(request.target, error, request.option) from error
    return len(content)


def page_of(sources: Sources, request: Request) -> str:
    """The page; where it is too long all the same, without what is large."""
    for room in (ROOM_BYTES, ROOM_BYTES // 4, 0):
        text = html(gather(sources, request.data_dir, Room(room)))
        if len(text.encode()) < MOST_BYTES:
            break
    return text
