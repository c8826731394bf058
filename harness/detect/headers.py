"""Takes an open image file; gives what its first and last bytes tell: its size, and whether its end is there."""

import io
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

_HEAD_BYTES, _TAIL_BYTES = 16 * 1024, 4 * 1024
_JPEG_START, _JPEG_END, _JPEG_START_OF_SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_EXIF_ORIENTATION, _ON_ITS_SIDE = 0x0112, range(5, 9)
# What OpenCV reads too; Pillow has more, some of which take almost anything for theirs.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")


@dataclass(frozen=True)
class Header:
    """Sizes of a picture in pixels: as it is stored, and as it is read (turned upright by its EXIF orientation)."""

    stored_width: int
    stored_height: int
    on_its_side: bool

    @property
    def width(self) -> int:
        return self.stored_height if self.on_its_side else self.stored_width

    @property
    def height(self) -> int:
        return self.stored_width if self.on_its_side else self.stored_height


def read_header(file: BinaryIO) -> Header | None:
    """The sizes that the file's header gives, without reading pixels; None where Pillow finds no image."""
    from PIL import Image

    file.seek(0)
    try:
        image = Image.open(file, formats=_FORMATS)
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError):
        return None
    return Header(*image.size, on_its_side=_orientation(image.info.get("exif")) in _ON_ITS_SIDE)


def _orientation(exif: bytes | None) -> object:
    """The orientation in an EXIF block; None where it has none or is damaged, which turns no picture.

    From the block alone, as OpenCV takes it: Pillow's own `getexif` would ask XMP too.
    """
    from PIL import Image

    tags = Image.Exif()
    try:
        tags.load(exif or b"")
        return tags.get(_EXIF_ORIENTATION)
    except (SyntaxError, struct.error):
        return None


def is_complete(file: BinaryIO) -> bool:
    """Whether a JPEG has an end marker behind the start of its image data, or a PNG its last chunk.

    What follows that end does not matter, and an end inside an EXIF thumbnail does not count. Other formats are
    taken for complete. Of a sound file the first 16 KiB and the last 4 are read, of another one all.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    if head.startswith(_PNG_START):
        return _found_behind(file, _PNG_END, len(_PNG_START))
    if not head.startswith(_JPEG_START):
        return True
    scan = _start_of_scan(head) or _start_of_scan(head + file.read())
    return scan is not None and _found_behind(file, _JPEG_END, scan)


def _start_of_scan(data: bytes) -> int | None:
    """Where a JPEG's image data begins, as far as `data` reaches."""
    position = len(_JPEG_START)
    while found := _JPEG_MARKER.search(data, position):
        if found[1][0] == _JPEG_START_OF_SCAN:
            return found.end()
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return None


def _found_behind(file: BinaryIO, end: bytes, start: int) -> bool:
    size = file.seek(0, io.SEEK_END)
    for position in (max(start, size - _TAIL_BYTES), start):
        file.seek(position)
        if end in file.read():
            return True
    return False
