"""Takes a zip and the members wanted of it; gives their files in one folder, each whole, none outside it."""

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from harness.errors import FetchError
from harness.fetch.download import require_room
from harness.fetch.progress import progress
from harness.files import write_atomically


class _Refused(Exception):
    """The archive is readable, but not what it should be."""


# What zipfile raises at archives that are cut short, overwritten, encrypted or of an unknown compression, and ours.
_FAULTS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, UnicodeError, _Refused)


class ArchiveError(FetchError):
    """A zip that is damaged, or that nobody should unpack."""


@contextmanager
def opened(name: str, content: Path | BinaryIO, remedy: str) -> Iterator[zipfile.ZipFile]:
    """The zip at a path or in a stream.

    Raises:
        ArchiveError: it is damaged, or `members` refused it; also while members are read inside the `with`.
    """
    try:
        with zipfile.ZipFile(content) as archive:
            yield archive
    except _FAULTS as error:
        raise ArchiveError(f"{name} is not unpacked: {error}", remedy) from error


def members(archive: zipfile.ZipFile, pattern: str, count: int) -> list[zipfile.ZipInfo]:
    """The first `count` members, by name, whose whole name matches the regular expression.

    Every name in the archive is looked at, wanted or not: one that leads outside the folder, or a link, says that
    somebody has tampered with all of it. Inside `opened`, what is raised here becomes an ArchiveError.
    """
    every = archive.infolist()
    for info in every:
        fault = _unsafe(info)
        if fault:
            raise _Refused(f"it holds {info.orig_filename!r}, {fault}")
    found = sorted((info for info in every if re.fullmatch(pattern, info.filename)), key=lambda info: info.filename)
    if len(found) < count:
        raise _Refused(f"wanted {count:,} members {pattern}, found {len(found):,}")
    return found[:count]


def unpack(archive: zipfile.ZipFile, wanted: Sequence[zipfile.ZipInfo], folder: Path) -> None:
    """Write the members to `folder`, under the last part of their names; those that are there already are kept.

    A file appears with all of its content or not at all (its CRC-32 is checked), so that this can be interrupted and
    called again.

    Raises:
        FetchError: no room for what is not there yet.
        OSError: `folder` cannot be written.
    """
    targets = {folder / PurePosixPath(info.filename).name: info for info in wanted}
    absent = {target: info for target, info in targets.items() if not _holds(target, info)}
    require_room(folder, sum(info.file_size for info in absent.values()))
    total = sum(info.file_size for info in wanted)
    with progress(folder.name, total - sum(info.file_size for info in absent.values()), total) as advance:
        for target, info in absent.items():
            write_atomically(target, archive.read(info))
            advance(info.file_size)


def _holds(target: Path, info: zipfile.ZipInfo) -> bool:
    """Whether the file is the member, byte for byte as far as CRC-32 tells."""
    if not target.is_file() or target.stat().st_size != info.file_size:
        return False
    return zlib.crc32(target.read_bytes()) == info.CRC


def _unsafe(info: zipfile.ZipInfo) -> str | None:
    # Both separators, for the name as it is stored: zipfile cuts it at a null byte.
    parts = re.split(r"[\\/]", info.orig_filename)
    if not parts[0] or re.match(r"[A-Za-z]:", parts[0]):
        return "an absolute path"
    if ".." in parts or "\0" in info.orig_filename:
        return "a path that leads outside"
    kind = stat.S_IFMT(info.external_attr >> 16)
    return None if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "a link or device"
