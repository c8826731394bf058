"""Takes a published file; gives it on disk: whole, checked, resumed where an earlier attempt stopped."""

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import requests

from harness.errors import FetchError
from harness.fetch.client import RANGE_NOT_SATISFIABLE, Client, Dropped, content_length, validator
from harness.fetch.progress import progress, size_text

CHUNK = 1 << 16  # bytes; what is lost at most of a connection that breaks


@dataclass(frozen=True)
class Source:
    """A published file and how it is known to be the right one.

    size: bytes, None when only the server knows. digest: the first hex digits, or all, of its `algorithm` hash; empty
    when none is published.
    """

    url: str
    size: int | None = None
    algorithm: Literal["md5", "sha256"] = "sha256"
    digest: str = ""


def download(client: Client, source: Source, part: Path, room: int) -> None:
    """The file of `source` at `part`, whole and checked. What is there of it already is not asked for again.

    `If-Range` makes a file that changed meanwhile start anew, as does a server without ranges or validators. The
    validator is kept beside `part`; an interrupted call leaves both for the next one. `discard` ends that.

    Args:
        room: bytes that the caller will write beside it.

    Raises:
        FetchError: not to be had, no room, or not the file that was wanted (then `part` is removed).
        OSError: `part` cannot be written.
    """
    if source.size is None or size_of(part) != source.size:
        if source.size is not None:
            require_room(part.parent, source.size - size_of(part) + room)
        part.parent.mkdir(parents=True, exist_ok=True)
        client.persist(lambda: _receive(client, source, part, room), lambda: size_of(part))
    fault = mismatch(part, source)
    if fault:
        discard(part)
        raise FetchError(
            f"{client.label(source.url)}: {fault}; removed",
            f"try once more: {client.command}; when that ends alike the server has another file: give --mirror "
            "BASE_URL of the right one, or correct 'checkpoint.sha256' of a model of your own",
        )


def mismatch(path: Path, source: Source) -> str | None:
    """How a file differs in size or hash from what is known of `source`; None when it does not."""
    if source.size is not None and size_of(path) != source.size:
        return f"wanted {source.size:,} bytes, found {size_of(path):,}"
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, source.algorithm).hexdigest()
    if found.startswith(source.digest):
        return None
    name = {"md5": "MD5", "sha256": "SHA-256"}[source.algorithm]
    return f"wanted {name} {source.digest[:16]}…, found {found[:16]}…"


def require_room(folder: Path, needed: int) -> None:
    """Raises FetchError unless the disk of `folder`, which need not exist yet, has `needed` bytes left."""
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if free < needed:
        raise FetchError(
            f"no room in {folder}: wanted {size_text(needed)}, found {size_text(free)}",
            f"free {size_text(needed - free)}, or name a folder on a larger disk (--checkpoints DIR, --data-dir DIR)",
        )


def discard(part: Path) -> None:
    """Remove `part` and what is kept beside it."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, 0 when it is not there."""
    return path.stat().st_size if path.exists() else 0


def _receive(client: Client, source: Source, part: Path, room: int) -> None:
    """One attempt to complete `part`."""
    have = size_of(part)
    known = _note(part).read_text() if have and _note(part).exists() else ""
    headers = {"Range": f"bytes={have}-", "If-Range": known} if known else {}
    with client.get(source.url, headers) as response:
        offset, total = span(response)
        if response.status_code == RANGE_NOT_SATISFIABLE and total == have:
            return
        if offset and (offset != have or validator(response) != known):
            discard(part)
            raise Dropped(f"{client.label(source.url)}: the file changed on the server, which starts it anew")
        _append(client, source, response, part, offset, total, room)
    if total is not None and size_of(part) < total:
        raise Dropped(f"{part.name}: the connection ended at {size_of(part):,} of {total:,} bytes")


def _append(
    client: Client, source: Source, response: requests.Response, part: Path, offset: int, total: int | None, room: int
) -> None:
    if None not in (source.size, total) and source.size != total:
        raise FetchError(
            f"{client.label(source.url)}: wanted {source.size:,} bytes, the server offers {total:,}",
            f"it is another file: give --mirror BASE_URL of the right one, then {client.command}",
        )
    require_room(part.parent, (total or 0) - offset + room)
    with part.open("ab" if offset else "wb") as stream, progress(part.stem, offset, total) as advance:
        if not offset:
            _note(part).write_text(validator(response))
        for chunk in response.iter_content(CHUNK):
            stream.write(chunk)
            advance(len(chunk))


def span(response: requests.Response) -> tuple[int, int | None]:
    """Where the body of an answer begins in the file (-1: nowhere), and the size of the whole file, in bytes.

    Content-Range (RFC 9110, 14.4) is `bytes FIRST-LAST/SIZE` of an answer 206, and `bytes */SIZE` of 416.
    """
    if response.status_code not in (206, RANGE_NOT_SATISFIABLE):
        return 0, content_length(response)
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if found is None:
        return -1, None
    first, size = found.groups()
    return -1 if first is None else int(first), None if size == "*" else int(size)


def _note(part: Path) -> Path:
    """Where the validator of the version that `part` is of is kept."""
    return part.with_name(part.name + ".version")
