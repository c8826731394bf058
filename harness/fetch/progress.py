"""Takes the bytes of a long transfer as they come; gives a bar on a terminal, and a line now and then in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 10.0


def say(text: str) -> None:
    """One line for the person who waits, on stderr."""
    print(text, file=sys.stderr, flush=True)


def size_text(size: int | None) -> str:
    """A number of bytes as people read it (1 MB is 10^6 bytes); None is a size that only the server knows."""
    if size is None:
        return "size unknown"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@contextmanager
def progress(name: str, done: int, total: int | None) -> Iterator[Callable[[int], object]]:
    """A callable that is told of further bytes.

    Args:
        done: bytes that were there before.
        total: bytes in the end, None when that is not known.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=name, initial=done, total=total, unit="B", unit_scale=True) as bar:
            yield bar.update
    else:
        yield _Lines(name, done, total).advance


class _Lines:
    """Progress for a log, where a bar would be a heap of carriage returns."""

    def __init__(self, name: str, done: int, total: int | None) -> None:
        self._name, self._done, self._total = name, done, total
        self._last = time.monotonic()

    def advance(self, size: int) -> None:
        self._done += size
        now = time.monotonic()
        if now - self._last >= LINE_EVERY_S:
            self._last = now
            say(f"{self._name}: {size_text(self._done)} of {size_text(self._total)}")
