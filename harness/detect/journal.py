"""Takes the parts of a run as they are finished; gives them back to the run that takes up a killed one."""

import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

from harness.detect.detections import Detections
from harness.errors import EvaluationError

_FRAME = struct.Struct("<QI")
"""Before each part: its length in bytes and the CRC-32 of its content."""


class Journal:
    """Finished parts of one run, one behind the other in a file that only grows; a torn end is cut off.

    parts: what an earlier run finished, in order, then what `add` was given.
    """

    def __init__(self, path: Path, wanted: Sequence[Sequence[int]]) -> None:
        """Open the journal, or begin one.

        Args:
            wanted: the image ids of each part of the whole run, in order; a part of other images ends the reading.

        Raises:
            OSError: the file can be neither read nor made.
        """
        self._path = path
        self.parts, end = _whole_parts(path.read_bytes() if path.exists() else b"", wanted)
        self._writable = True
        with path.open("ab") as file:
            file.truncate(end)

    def add(self, part: Detections) -> None:
        """Keep a finished part. Where it cannot be written the run goes on; a kill then costs more."""
        self.parts.append(part)
        content = part.to_bytes()
        frame = _FRAME.pack(len(content), zlib.crc32(content)) + content
        try:
            if self._writable:
                with self._path.open("ab") as file:
                    file.write(frame)
        except OSError as error:
            self._writable = False
            warnings.warn(
                f"cannot write {self._path}: {error.strerror}; if this run is killed, it is taken up again at image "
                f"{sum(len(done.images) for done in self.parts[:-1]) + 1}",
                stacklevel=2,
            )


def _whole_parts(content: bytes, wanted: Sequence[Sequence[int]]) -> tuple[list[Detections], int]:
    """The parts before the first that is torn, damaged or of other images, and where they end."""
    parts: list[Detections] = []
    end = 0
    for ids in wanted:
        if end + _FRAME.size > len(content):
            break
        length, checksum = _FRAME.unpack_from(content, end)
        part = content[end + _FRAME.size : end + _FRAME.size + length]
        if len(part) != length or zlib.crc32(part) != checksum:
            break
        try:
            detections = Detections.from_bytes(part)
        except EvaluationError:
            break
        if detections.images.tolist() != list(ids):
            break
        parts.append(detections)
        end += _FRAME.size + length
    return parts, end
