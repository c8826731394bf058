"""Takes nothing; gives `Job`: what a side's processes time, as `prepare` leaves it for `run`."""

from dataclasses import dataclass
from pathlib import Path

from harness.engines.base import Source


@dataclass(frozen=True)
class Job:
    """All that timing needs: the process that times imports the engine and little else.

    engine, options: as on the command line. source, file: what the engine opens.
    """

    engine: str
    options: dict[str, str]
    source: Source
    file: Path
