"""Takes the URL of a large file; gives a stream that fetches only what is read, for a few members of a huge zip."""

import io
from typing import TYPE_CHECKING

from harness.errors import FetchError
from harness.fetch.client import Client, Dropped, validator
from harness.fetch.download import Source, span

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

READ_AHEAD = 1 << 18  # bytes; about one photograph of COCO


class RemoteFile(io.RawIOBase):
    """A published file, read in pieces by HTTP ranges. Its hash cannot be checked; a zip's members have CRC-32.

    Raises:
        FetchError: on opening and on reading: not to be had, of another size, without ranges, or changed meanwhile.
    """

    def __init__(self, client: Client, source: Source) -> None:
        super().__init__()
        self._client, self._source = client, source
        self._position, self._size, self._version = 0, source.size, ""
        client.persist(lambda: self._piece(0, 1), lambda: 0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size or 0}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        start, stop = self._position, min(self._position + len(view), self._size or 0)
        if start >= stop:
            return 0
        view[: stop - start] = self._client.persist(lambda: self._piece(start, stop), lambda: 0)
        self._position = stop
        return stop - start

    def _piece(self, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of the file, in one attempt."""
        headers = {"Range": f"bytes={start}-{stop - 1}"} | ({"If-Range": self._version} if self._version else {})
        with self._client.get(self._source.url, headers) as response:
            begins, size = span(response)
            if response.status_code != 206 or begins != start:
                raise self._refusal(f"wanted a part of it (HTTP 206), found all of it (HTTP {response.status_code})")
            if size is None or self._size not in (None, size):
                raise self._refusal(f"wanted {self._size} bytes, the server offers {size}")
            if self._version not in ("", validator(response)):
                raise self._refusal("it changed on the server")
            self._size, self._version = size, validator(response)
            content = response.content
        if len(content) != stop - start:
            raise Dropped(
                f"{self._client.label(self._source.url)}: wanted {stop - start} bytes of it, found {len(content)}"
            )
        return content

    def _refusal(self, cause: str) -> FetchError:
        return FetchError(
            f"{self._client.label(self._source.url)}: {cause}",
            f"give --mirror BASE_URL of a server that has this file and serves ranges, then {self._client.command}",
        )
