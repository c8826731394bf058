"""Takes an engine file and images; gives what another process makes of them, which a damaged file may take down."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from harness.engines.base import Engine, Images, Maps, Source


class Elsewhere:
    """A process of its own, started with the first call and kept for the next: runtimes take seconds to load."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def infer(self, engine: Engine, source: Source, file: Path, images: Images) -> Maps:
        """Head maps of one batch by an engine file that the other process opens.

        Raises:
            DetgateError: as `Engine.open` and `Session.infer`.
            BrokenProcessPool: the process died; the next call starts another.
        """
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            return self._pool.submit(_infer, engine, source, file, images).result()
        except BrokenProcessPool:
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None


def _infer(engine: Engine, source: Source, file: Path, images: Images) -> Maps:
    with engine.open(source, file) as session:
        return {name: maps.copy() for name, maps in session.infer(images).items()}
