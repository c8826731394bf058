"""Takes a path and the whole content; gives the file, which holds either its old content or all of the new one."""

from pathlib import Path
from uuid import uuid4


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`; the folders above it are made, and a failure leaves nothing behind.

    The file has the mode that the umask gives any new file; `tempfile` would make it the owner's alone.

    Raises:
        OSError: it cannot be written; the old content is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        part.write_bytes(data.encode() if isinstance(data, str) else data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
