"""Takes URLs; gives HTTP answers: with time-outs, proxies, a mirror, and a reason in words when there is none."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import responses
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

import requests
from urllib3.exceptions import ProtocolError

from harness import __version__
from harness.errors import FetchError, UsageError
from harness.fetch.progress import say

ATTEMPTS = 5  # in a row without a further byte
BACK_OFF_S = 1.0  # before the second attempt; doubles with each
TIMEOUT_S = (10.0, 30.0)  # to connect; between two pieces of an answer
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
RANGE_NOT_SATISFIABLE = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
WRONG_URL = (
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    requests.TooManyRedirects,
)

Result = TypeVar("Result")


class Dropped(Exception):
    """An attempt failed in a way that another one may mend; says how."""


class Client:
    """HTTP for one `fetch` command. Proxies and CA bundles are those that `requests` reads from the environment.

    Args:
        mirror: base of a copy of the web, laid out as `BASE/HOST/PATH`; None asks the hosts themselves.
        command: the command line that is being carried out, for remedies.

    Raises:
        UsageError: the mirror is not an HTTP URL.
    """

    def __init__(self, mirror: str | None, command: str) -> None:
        if mirror is not None and (urlsplit(mirror).scheme not in ("http", "https") or not urlsplit(mirror).hostname):
            raise UsageError(
                f"--mirror '{shown(mirror)}': wanted an http:// or https:// URL", "give --mirror https://HOST/FOLDER"
            )
        self.command = command
        self._mirror = mirror and mirror.rstrip("/")
        self._session = requests.Session()
        # Compressed in transit, neither ranges nor lengths would be those of the file.
        self._session.headers.update({"User-Agent": f"detgate/{__version__}", "Accept-Encoding": "identity"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._session.close()

    def address(self, url: str) -> str:
        """Where `url` is really asked for: itself, or its place in the mirror."""
        if self._mirror is None:
            return url
        parts = urlsplit(url)
        query = f"?{parts.query}" if parts.query else ""
        return f"{self._mirror}/{parts.netloc.rpartition('@')[2]}{parts.path}{query}"

    def label(self, url: str) -> str:
        """`address` for messages: without the password that a mirror's URL may hold."""
        return shown(self.address(url))

    @contextmanager
    def get(self, url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        """The answer to one GET, its body unread; redirects are followed.

        Raises:
            Dropped: no answer, or one that ended early; also while the body is read inside the `with`.
            FetchError: an answer that further attempts will not change.
        """
        with (
            self._explained(url),
            self._session.get(self.address(url), headers=headers, stream=True, timeout=TIMEOUT_S) as response,
        ):
            self._refuse_status(url, response.status_code)
            yield response

    def size(self, url: str) -> int | None:
        """Bytes of the file at `url`, None when the server does not say.

        Raises:
            Dropped, FetchError: as `get`.
        """
        with (
            self._explained(url),
            self._session.head(self.address(url), allow_redirects=True, timeout=TIMEOUT_S) as response,
        ):
            self._refuse_status(url, response.status_code)
            return content_length(response)

    def persist(self, attempt: Callable[[], Result], reached: Callable[[], int]) -> Result:
        """What `attempt` gives, tried again with growing pauses as long as it is `Dropped`.

        Args:
            reached: bytes held; only an attempt that got further than all before it earns new patience.

        Raises:
            FetchError: dropped `ATTEMPTS` times in a row; says how to go on.
        """
        failures, furthest = 0, reached()
        while True:
            try:
                return attempt()
            except Dropped as dropped:
                failures = failures + 1 if reached() <= furthest else 1
                furthest = max(furthest, reached())
                if failures == ATTEMPTS:
                    raise FetchError(
                        f"{dropped} ({ATTEMPTS} attempts in a row)",
                        f"run it again, it goes on where it stopped: {self.command}; behind a proxy set HTTPS_PROXY and"
                        " HTTP_PROXY, elsewhere give --mirror BASE_URL",
                    ) from dropped
                pause_s = BACK_OFF_S * 2 ** (failures - 1)
                say(f"{dropped}; next attempt in {pause_s:.0f} s")
                time.sleep(pause_s)

    @contextmanager
    def _explained(self, url: str) -> Iterator[None]:
        address = self.label(url)
        try:
            yield
        except requests.exceptions.SSLError as error:
            raise FetchError(
                f"{address}: the certificate is not trusted: {_innermost(error)}",
                f"set REQUESTS_CA_BUNDLE to the file of your organisation's CA, then {self.command}",
            ) from error
        except requests.exceptions.ProxyError as error:
            raise FetchError(
                f"{address}: the proxy does not let it through: {_innermost(error)}",
                f"mend HTTPS_PROXY, HTTP_PROXY or NO_PROXY, then {self.command}",
            ) from error
        except WRONG_URL as error:
            raise FetchError(
                f"{address} cannot be asked for: {error}",
                "mend 'checkpoint.url' in the model's file, --mirror or the proxy variables",
            ) from error
        except requests.RequestException as error:
            raise Dropped(f"{address}: {_why_dropped(error)}") from error

    def _refuse_status(self, url: str, status: int) -> None:
        if status < 400 or status == RANGE_NOT_SATISFIABLE:
            return
        cause = f"{self.label(url)}: {responses.get(status, 'refused')} (HTTP {status})"
        if status in TRANSIENT:
            raise Dropped(cause)
        raise FetchError(
            cause,
            "give --mirror BASE_URL of a copy, or put the file in place by hand: "
            f"`{self.command} --dry-run` says where it belongs",
        )


def content_length(response: requests.Response) -> int | None:
    """`Content-Length` in bytes; None when it is absent or no number."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def validator(response: requests.Response) -> str:
    """What `If-Range` takes (RFC 9110, 13.1.5): a strong ETag, else Last-Modified, else nothing."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def shown(url: str) -> str:
    """`url` without user name and password: messages end up in logs."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _why_dropped(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout) or "Read timed out" in str(error):
        connect_s, read_s = TIMEOUT_S
        return f"no answer within {connect_s if isinstance(error, requests.ConnectTimeout) else read_s:g} s"
    return f"the connection failed: {_innermost(error)}"


def _innermost(error: Exception) -> str:
    """The reason below the wrappers of requests and urllib3, which repeat host and path."""
    inner: object = error.args[0] if error.args else error
    inner = getattr(inner, "reason", inner)
    if isinstance(inner, ProtocolError):
        inner = inner.args[-1]
    return re.sub(r"^\w+\(host=[^)]*\): ", "", str(inner))
