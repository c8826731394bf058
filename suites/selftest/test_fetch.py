"""`python -m harness fetch` against a server of our own: what it asks for, keeps, refuses, and goes on with."""

import dataclasses
import hashlib
import io
import json
import re
import shutil
import socket
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock
from PIL import Image

from harness.__main__ import main
from harness.detect.dataset import ANNOTATION_FILE, load_coco
from harness.fetch import archive, client, command, download, progress
from harness.model.registry import load_models
from harness.pipeline import CALIBRATION_IMAGES

pytestmark = pytest.mark.selftest

CONTENT = bytes(range(250)) * 4
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PUBLISHED = load_models()["pisa"].checkpoint
WEIGHTS = (PUBLISHED.url or "").removeprefix("https://")
ANNOTATIONS, VAL, TRAIN = (
    source.url.removeprefix("http://") for source in (command.ANNOTATIONS, command.VAL_IMAGES, command.TRAIN_IMAGES)
)


# --- a server that can misbehave


class Asked(NamedTuple):
    """One request, as far as tests look at it."""

    method: str
    path: str
    range: str | None
    if_range: str | None


class Server(ThreadingHTTPServer):
    """Serves `files`, and knows what it was asked for.

    cuts: bytes after which each next answer ends early; None ends none. statuses: what each next answer is in place
    of a file. validators: headers that tell versions apart. longest: bytes that one range gives at most.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.cuts: list[int | None] = []
        self.statuses: list[int] = []
        self.validators = {"ETag": '"1"'}
        self.ranges = self.if_range = True
        self.stalls = False
        self.longest = 10**9
        self.content_range = "bytes {first}-{last}/{size}"
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def spans(self) -> list[str | None]:
        """The ranges that were asked for, in order."""
        return [asked.range for asked in self.asked]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what many tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def _answer(self, send_body: bool) -> None:
        server, path = self.server, self.path.removeprefix("http://").lstrip("/")
        server.asked.append(Asked(self.command, path, self.headers["Range"], self.headers["If-Range"]))
        if server.statuses or path not in server.files:
            self.send_response(server.statuses.pop(0) if server.statuses else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = server.files[path]
        span = self._asked_range(len(content))
        first, last = span or (0, len(content) - 1)
        if first >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = content[first : last + 1]
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", server.content_range.format(first=first, last=last, size=len(content)))
        for name, value in server.validators.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send_body:
            self._send(body)

    def _asked_range(self, size: int) -> tuple[int, int] | None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        same = self.headers["If-Range"] in (None, *self.server.validators.values())
        if not found or not self.server.ranges or (self.server.if_range and not same):
            return None
        first = int(found[1])
        return first, min(int(found[2] or size), size - 1, first + self.server.longest - 1)

    def _send(self, body: bytes) -> None:
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        self.wfile.write(body[:cut])
        self.wfile.flush()
        if cut is not None:
            self.close_connection = True
            if self.server.stalls:
                self.server.over.wait()


@pytest.fixture
def web() -> Iterator[Server]:
    with Server() as server:
        server.files[WEIGHTS] = CONTENT
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


Fetch = Callable[..., int]


@pytest.fixture
def fetch(web: Server, tmp_path: Path, baselines: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """The command with its places below `tmp_path`, where `web` is a mirror of all that is published."""
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    monkeypatch.setattr(client, "BACK_OFF_S", 0.0)
    monkeypatch.setattr(download, "CHUNK", 100)
    monkeypatch.setenv("DETGATE_MIRROR", web.url)
    monkeypatch.setenv("CHECKPOINTS_DIR", str(tmp_path / "weights"))
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path / "coco"))
    change_model(baselines, sha256=SHA256[:8])
    return lambda *words: main(["fetch", "--baselines", str(baselines), *map(str, words)])


def change_model(baselines: Path, **keys: str | None) -> None:
    path = baselines / "models" / "pisa.json"
    content = json.loads(path.read_text())
    content["checkpoint"] |= keys
    path.write_text(json.dumps(content))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where pisa's checkpoint belongs."""
    return tmp_path / "weights" / PUBLISHED.file


@pytest.fixture
def part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def begun(part: Path, content: bytes, version: str = '"1"') -> None:
    """What an interrupted call leaves."""
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(content)
    part.with_name(part.name + ".version").write_text(version)


def names(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- checkpoints


def test_a_checkpoint_is_fetched_to_its_place(fetch: Fetch, target: Path) -> None:
    assert fetch("pisa") == 0
    assert target.read_bytes() == CONTENT


def test_nothing_else_is_left(fetch: Fetch, target: Path) -> None:
    fetch("pisa")
    assert names(target.parent) == [target.name]


def test_it_is_asked_for_once(fetch: Fetch, web: Server) -> None:
    fetch("pisa", "pisa")
    assert web.asked == [Asked("GET", WEIGHTS, None, None)]


def test_the_second_call_asks_for_nothing(fetch: Fetch, web: Server, capsys: pytest.CaptureFixture[str]) -> None:
    fetch("pisa")
    web.asked.clear()
    assert fetch("pisa") == 0
    assert web.asked == []
    assert capsys.readouterr().out.endswith(" is there already\n")


def test_a_place_on_the_command_line_goes_before_the_environment(fetch: Fetch, tmp_path: Path) -> None:
    fetch("pisa", "--checkpoints", tmp_path / "elsewhere")
    assert names(tmp_path / "elsewhere") == [PUBLISHED.file]


def test_another_hash_is_refused_and_removed(
    fetch: Fetch, web: Server, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web.files[WEIGHTS] = b"another"
    assert fetch("pisa") == 4
    found = hashlib.sha256(b"another").hexdigest()
    assert f"wanted SHA-256 {SHA256[:8]}…, found {found[:16]}…; removed" in capsys.readouterr().err
    assert names(target.parent) == [f".{target.name}.lock"]


def test_a_file_of_another_hash_in_its_place_is_refused_and_stays(
    fetch: Fetch, web: Server, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target.parent.mkdir()
    target.write_bytes(b"mine")
    assert fetch("pisa") == 4
    assert (target.read_bytes(), web.asked) == (b"mine", [])
    assert f"mend it: rm {target} && python -m harness fetch pisa --checkpoints {target.parent}" in (
        capsys.readouterr().err
    )


# --- going on after an interruption


def test_a_connection_cut_at_60_percent_is_resumed_there(fetch: Fetch, web: Server, target: Path) -> None:
    web.cuts = [600]
    assert fetch("pisa") == 0
    assert [asked[2:] for asked in web.asked] == [(None, None), ("bytes=600-", '"1"')]
    assert target.read_bytes() == CONTENT


def test_the_next_call_resumes_what_the_last_gave_up(
    fetch: Fetch, web: Server, target: Path, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ATTEMPTS", 1)
    web.cuts = [600]
    assert fetch("pisa") == 4
    assert part.read_bytes() == CONTENT[:600]
    assert fetch("pisa") == 0
    assert web.spans == [None, "bytes=600-"]
    assert target.read_bytes() == CONTENT


def test_giving_up_names_the_command_that_goes_on(
    fetch: Fetch, web: Server, baselines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web.cuts = [0] * client.ATTEMPTS
    assert fetch("pisa") == 4
    cause, remedy = capsys.readouterr().err.splitlines()[-2:]
    why = "the connection failed: IncompleteRead(0 bytes read, 1000 more expected)"
    assert cause == f"fetch: {web.url}/{WEIGHTS}: {why} ({client.ATTEMPTS} attempts in a row)"
    assert "run it again, it goes on where it stopped: python -m harness fetch pisa --checkpoints " in remedy
    assert f" --baselines {baselines} --mirror {web.url};" in remedy


def test_attempts_that_get_further_are_not_counted(fetch: Fetch, web: Server, target: Path) -> None:
    web.cuts = [100] * 9
    assert fetch("pisa") == 0
    assert target.read_bytes() == CONTENT


def test_attempts_that_get_no_further_end(fetch: Fetch, web: Server) -> None:
    web.ranges = False
    web.cuts = [600] * 50
    assert fetch("pisa") == 4
    assert len(web.asked) == client.ATTEMPTS


def test_pauses_between_attempts_grow(fetch: Fetch, web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(client, "BACK_OFF_S", 1.0)
    monkeypatch.setattr(client.time, "sleep", pauses.append)
    web.cuts = [0, 0, 0]
    assert fetch("pisa") == 0
    assert pauses == [1.0, 2.0, 4.0]


def test_a_file_that_changed_meanwhile_starts_anew(fetch: Fetch, web: Server, target: Path, part: Path) -> None:
    begun(part, b"o" * 600, version='"0"')
    assert fetch("pisa") == 0
    assert [asked[2:] for asked in web.asked] == [("bytes=600-", '"0"')]
    assert target.read_bytes() == CONTENT


def test_a_server_that_ignores_if_range_does_not_mix_two_files(
    fetch: Fetch, web: Server, target: Path, part: Path
) -> None:
    begun(part, b"o" * 600, version='"0"')
    web.if_range = False
    assert fetch("pisa") == 0
    assert web.spans == ["bytes=600-", None]
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_starts_anew(fetch: Fetch, web: Server, target: Path) -> None:
    web.ranges = False
    web.cuts = [600]
    assert fetch("pisa") == 0
    assert web.spans == [None, "bytes=600-"]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("validators", "asked"),
    [
        ({"Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}, ("bytes=600-", "Wed, 01 Jan 2025 00:00:00 GMT")),
        ({"ETag": 'W/"1"', "Last-Modified": "yesterday"}, ("bytes=600-", "yesterday")),
        ({"ETag": 'W/"1"'}, (None, None)),
        ({}, (None, None)),
    ],
    ids=["date", "date beside a weak ETag", "weak ETag", "none"],
)
def test_only_what_tells_versions_apart_for_sure_is_resumed_by(
    fetch: Fetch, web: Server, target: Path, validators: dict[str, str], asked: tuple[str | None, str | None]
) -> None:
    web.validators = validators
    web.cuts = [600]
    assert fetch("pisa") == 0
    assert web.asked[1][2:] == asked
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("content_range", ["bytes 500-999/1000", "bytes */1000", "nonsense", "bytes 0-/7"])
def test_a_range_that_was_not_asked_for_is_not_taken(
    fetch: Fetch, web: Server, target: Path, part: Path, content_range: str
) -> None:
    begun(part, CONTENT[:600])
    web.content_range = content_range
    assert fetch("pisa") == 0
    assert web.spans == ["bytes=600-", None]
    assert target.read_bytes() == CONTENT


def test_a_range_of_unknown_total_is_taken(fetch: Fetch, web: Server, target: Path, part: Path) -> None:
    begun(part, CONTENT[:600])
    web.content_range = "bytes {first}-{last}/*"
    assert fetch("pisa") == 0
    assert target.read_bytes() == CONTENT


def test_a_server_that_gives_less_than_the_range_is_asked_for_the_rest(
    fetch: Fetch, web: Server, target: Path, part: Path
) -> None:
    begun(part, CONTENT[:600])
    web.longest = 300
    assert fetch("pisa") == 0
    assert web.spans == ["bytes=600-", "bytes=900-"]
    assert target.read_bytes() == CONTENT


def test_a_part_that_is_whole_is_taken_as_it_is(fetch: Fetch, web: Server, target: Path, part: Path) -> None:
    begun(part, CONTENT)
    assert fetch("pisa") == 0
    assert web.spans == ["bytes=1000-"]
    assert target.read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_starts_anew(fetch: Fetch, web: Server, target: Path, part: Path) -> None:
    begun(part, CONTENT + b"more")
    assert fetch("pisa") == 0
    assert web.spans == ["bytes=1004-", None]
    assert target.read_bytes() == CONTENT


def test_an_interrupt_leaves_what_can_be_resumed(
    fetch: Fetch, part: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress._Lines, "advance", _interrupts)
    assert fetch("pisa") == 130
    assert part.read_bytes() == CONTENT[:100]
    assert "interrupted; to go on where it stopped: python -m harness fetch pisa" in capsys.readouterr().err


def _interrupts(*_: object) -> None:
    raise KeyboardInterrupt


def test_two_processes_do_not_fetch_the_same_file(
    fetch: Fetch, web: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.parent.mkdir()
    other = FileLock(target.with_name(f".{target.name}.lock"), thread_local=False)
    other.acquire()

    def other_ends(text: str) -> None:
        assert text == f"another process is fetching {target}: waiting for it"
        target.write_bytes(CONTENT)
        other.release()

    monkeypatch.setattr(command, "say", other_ends)
    assert fetch("pisa") == 0
    assert web.asked == []


# --- servers that give no file


@pytest.mark.parametrize(
    ("status", "said"), [(404, "Not Found (HTTP 404)"), (403, "Forbidden (HTTP 403)"), (499, "refused (HTTP 499)")]
)
def test_a_refusal_is_final_and_explained(
    fetch: Fetch, web: Server, capsys: pytest.CaptureFixture[str], status: int, said: str
) -> None:
    web.statuses = [status]
    assert fetch("pisa") == 4
    cause, remedy = capsys.readouterr().err.splitlines()
    assert cause == f"fetch: {web.url}/{WEIGHTS}: {said}"
    assert remedy.startswith("  mend it: give --mirror BASE_URL of a copy, or put the file in place by hand")
    assert len(web.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(fetch: Fetch, web: Server, status: int) -> None:
    web.statuses = [status, status]
    assert fetch("pisa") == 0
    assert len(web.asked) == 3


@pytest.mark.parametrize("sent", [0, 600], ids=["at once", "on the way"])
def test_a_time_out_is_explained(
    fetch: Fetch, web: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sent: int
) -> None:
    monkeypatch.setattr(client, "TIMEOUT_S", (5.0, 0.1))
    monkeypatch.setattr(client, "ATTEMPTS", 1)
    web.stalls, web.cuts = True, [sent]
    assert fetch("pisa") == 4
    cause, remedy = capsys.readouterr().err.splitlines()
    assert cause == f"fetch: {web.url}/{WEIGHTS}: no answer within 0.1 s (1 attempts in a row)"
    assert "behind a proxy set HTTPS_PROXY" in remedy


@pytest.fixture
def closed_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def test_a_server_that_is_not_there_is_explained(
    fetch: Fetch, closed_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch("pisa", "--mirror", f"http://127.0.0.1:{closed_port}") == 4
    assert "the connection failed: Failed to establish a new connection: " in capsys.readouterr().err


def test_a_server_without_tls_is_explained(fetch: Fetch, web: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch("pisa", "--mirror", web.url.replace("http:", "https:")) == 4
    assert "set REQUESTS_CA_BUNDLE" in capsys.readouterr().err


def test_a_proxy_of_the_environment_is_used(fetch: Fetch, web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    web.files["nowhere.invalid/" + WEIGHTS] = CONTENT
    monkeypatch.setenv("http_proxy", web.url)
    assert fetch("pisa", "--mirror", "http://nowhere.invalid") == 0


def test_a_proxy_that_is_not_there_is_explained(
    fetch: Fetch, closed_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port}")
    assert fetch("pisa", "--mirror", "http://nowhere.invalid") == 4
    assert "mend it: mend HTTPS_PROXY, HTTP_PROXY or NO_PROXY" in capsys.readouterr().err


def test_a_url_of_another_kind_is_explained(
    fetch: Fetch, baselines: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DETGATE_MIRROR")
    change_model(baselines, url="ftp://example.org/a.pth")
    assert fetch("pisa") == 4
    assert "ftp://example.org/a.pth cannot be asked for" in capsys.readouterr().err


# --- mirrors


def test_a_mirror_has_a_folder_for_each_host(fetch: Fetch, web: Server) -> None:
    web.files = {f"base/{WEIGHTS}": CONTENT}
    assert fetch("pisa", "--mirror", f"{web.url}/base/") == 0
    assert web.asked[0].path == f"base/{WEIGHTS}"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://example.org:8443/a/b.pth?version=2", "example.org:8443/a/b.pth?version=2"),
        ("http://me:secret@example.org/b.pth", "example.org/b.pth"),
    ],
)
def test_a_mirror_keeps_port_and_query_and_drops_the_password(url: str, path: str) -> None:
    with client.Client("http://mirror", "") as to:
        assert to.address(url) == f"http://mirror/{path}"


def test_without_a_mirror_the_url_is_asked_for(
    fetch: Fetch, web: Server, baselines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DETGATE_MIRROR")
    change_model(baselines, url=f"{web.url}/own.pth")
    web.files["own.pth"] = CONTENT
    assert fetch("pisa") == 0


@pytest.mark.parametrize("mirror", ["ftp://host/folder", "host/folder", "http://"])
def test_a_mirror_that_is_no_url_is_refused(
    fetch: Fetch, web: Server, capsys: pytest.CaptureFixture[str], mirror: str
) -> None:
    assert fetch("pisa", "--mirror", mirror) == 4
    assert f"usage: --mirror '{mirror}': wanted an http:// or https:// URL" in capsys.readouterr().err
    assert web.asked == []


def test_the_password_of_a_mirror_is_not_printed(fetch: Fetch, web: Server, capsys: pytest.CaptureFixture[str]) -> None:
    web.statuses = [404]
    fetch("pisa", "--mirror", web.url.replace("//", "//me:secret@"))
    printed = capsys.readouterr()
    assert web.url in printed.out
    assert "secret" not in printed.out + printed.err


# --- room


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - free, free))


@pytest.mark.parametrize(("free", "code"), [(999, 4), (1000, 0)])
def test_a_disk_without_room_for_the_file_is_refused(
    fetch: Fetch, part: Path, monkeypatch: pytest.MonkeyPatch, free: int, code: int
) -> None:
    with_free(monkeypatch, free)
    assert fetch("pisa") == code
    assert not part.exists()


@pytest.mark.parametrize(("free", "code"), [(399, 4), (400, 0)])
def test_what_is_there_needs_no_more_room(
    fetch: Fetch, part: Path, monkeypatch: pytest.MonkeyPatch, free: int, code: int
) -> None:
    begun(part, CONTENT[:600])
    with_free(monkeypatch, free)
    assert fetch("pisa") == code


def test_no_room_says_how_much_is_wanted(
    fetch: Fetch, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], web: Server
) -> None:
    web.files[WEIGHTS] = CONTENT * 1000
    with_free(monkeypatch, 400_000)
    fetch("pisa")
    cause, remedy = capsys.readouterr().err.splitlines()
    assert cause == f"fetch: no room in {target.parent}: wanted 1.0 MB, found 0.4 MB"
    assert remedy.startswith("  mend it: free 0.6 MB, or ")


def test_a_folder_that_cannot_be_made_is_explained(
    fetch: Fetch, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target.parent.touch()
    assert fetch("pisa") == 4
    assert f"fetch: cannot use {target.parent}: File exists" in capsys.readouterr().err


# --- dry run


def test_a_dry_run_writes_nothing(fetch: Fetch, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert fetch("--dry-run", "pisa", "coco2017-val", "coco2017-train") == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_asks_for_no_content(fetch: Fetch, web: Server) -> None:
    fetch("--dry-run", "pisa", "coco2017-val", "coco2017-train")
    assert [asked[:2] for asked in web.asked] == [("HEAD", WEIGHTS)]


@pytest.mark.parametrize(
    ("name", "origin", "where"),
    [
        ("pisa", f"{WEIGHTS} (1.0 MB)", f"weights/{PUBLISHED.file}"),
        ("coco2017-val", f"{ANNOTATIONS} (252.9 MB)", f"coco/{ANNOTATION_FILE}"),
        ("coco2017-val", f"{VAL} (815.6 MB)", "coco/images/val2017"),
        ("coco2017-train", f"{TRAIN} (about 30.0 MB of 19.34 GB)", "coco/images/train2017"),
    ],
)
def test_a_dry_run_says_what_from_where_how_large_and_to_where(
    fetch: Fetch, web: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, origin: str, where: str
) -> None:
    web.files[WEIGHTS] = CONTENT * 1000
    fetch("--dry-run", name)
    assert f"{name}: {web.url}/{origin} -> {tmp_path}/{where}\n" in capsys.readouterr().out


@pytest.mark.parametrize("status", [404, 503])
def test_a_dry_run_without_a_server_still_says_the_rest(
    fetch: Fetch, web: Server, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    web.statuses = [status]
    assert fetch("--dry-run", "pisa") == 0
    assert f"{WEIGHTS} (size unknown) -> " in capsys.readouterr().out


# --- names


def test_without_names_all_that_there_is_is_listed(fetch: Fetch, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch() == 4
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [*load_models(), "coco2017-val", "coco2017-train"]


def test_without_names_an_example_is_the_remedy(fetch: Fetch, capsys: pytest.CaptureFixture[str]) -> None:
    fetch()
    assert "mend it: python -m harness fetch coco2017-val, for example" in capsys.readouterr().err


def test_an_embedded_model_needs_nothing(fetch: Fetch, web: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch("pisa-mini") == 0
    assert capsys.readouterr().out == "pisa-mini: comes with detgate, nothing to fetch\n"
    assert web.asked == []


def test_an_unknown_name_is_refused_before_anything_is_fetched(
    fetch: Fetch, web: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch("pisa", "yolo") == 4
    assert "usage: 'yolo': wanted one of paa-mini, paa, " in capsys.readouterr().err
    assert web.asked == []


def test_a_model_without_a_url_is_refused(fetch: Fetch, baselines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_model(baselines, url=None)
    assert fetch("pisa") == 4
    assert f"or write its URL into {baselines}/models/pisa.json" in capsys.readouterr().err


def test_a_model_without_a_url_is_listed_so(fetch: Fetch, baselines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_model(baselines, url=None)
    fetch()
    assert re.search(r"^pisa +'checkpoint.url' is null$", capsys.readouterr().out, re.MULTILINE)


def test_a_checkpoint_does_not_leave_its_folder(
    fetch: Fetch, web: Server, baselines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_model(baselines, file="../outside.pth")
    assert fetch("pisa") == 4
    assert "wanted a file name, found the path '../outside.pth'" in capsys.readouterr().err
    assert web.asked == []


# --- COCO


Members = dict[str | zipfile.ZipInfo, bytes]


def zipped(members: Members) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
    return stream.getvalue()


def picture(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 12), (shade, 0, 0)).save(stream, "JPEG")
    return stream.getvalue()


IMAGES = {f"{number:012}.jpg": picture(number) for number in (1, 2, 3)}
INSTANCES = json.dumps(
    {
        "images": [{"id": int(name[:12]), "file_name": name, "width": 16, "height": 12} for name in IMAGES],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "person"}],
    }
).encode()


class Coco:
    """COCO as `web` publishes it, and where it goes."""

    def __init__(self, web: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.web, self.root, self._monkeypatch = web, root, monkeypatch

    def publish(self, which: str, members: Members | bytes) -> bytes:
        """Publish a zip as ANNOTATIONS, VAL_IMAGES or TRAIN_IMAGES, with its size and hash known."""
        content = members if isinstance(members, bytes) else zipped(members)
        source: download.Source = getattr(command, which)
        self.web.files[source.url.removeprefix("http://")] = content
        known = dataclasses.replace(source, size=len(content), digest=hashlib.md5(content).hexdigest())
        self._monkeypatch.setattr(command, which, known)
        return content


@pytest.fixture
def coco(web: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Coco:
    made = Coco(web, tmp_path / "coco", monkeypatch)
    annotations = {
        f"annotations/{kind}_{split}2017.json": b"{}" for kind in ("captions",) for split in ("train", "val")
    }
    made.publish("ANNOTATIONS", {**annotations, ANNOTATION_FILE: INSTANCES})
    made.publish("VAL_IMAGES", {"val2017/": b""} | {f"val2017/{name}": content for name, content in IMAGES.items()})
    train = {f"train2017/{number:012}.jpg": picture(number) * 400 for number in range(20, 0, -1)}
    made.publish("TRAIN_IMAGES", {"train2017/": b""} | train)
    monkeypatch.setattr(command, "VAL2017_IMAGES", len(IMAGES))
    monkeypatch.setattr(command, "VAL2017_SHA256", {hashlib.sha256(INSTANCES).hexdigest()})
    monkeypatch.setattr(command, "TRAIN_SAMPLE", 2)
    return made


def test_coco_is_unpacked_as_the_suites_read_it(fetch: Fetch, coco: Coco) -> None:
    assert fetch("coco2017-val") == 0
    assert [record.path.read_bytes() for record in load_coco(coco.root, "coco2017").images] == list(IMAGES.values())


def test_only_what_is_needed_is_left(fetch: Fetch, coco: Coco) -> None:
    fetch("coco2017-val")
    assert names(coco.root) == [ANNOTATION_FILE, *(f"images/val2017/{name}" for name in IMAGES)]


def test_coco_that_is_there_is_not_asked_for(fetch: Fetch, coco: Coco) -> None:
    fetch("coco2017-val")
    coco.web.asked.clear()
    assert fetch("coco2017-val") == 0
    assert coco.web.asked == []


def test_coco_may_lie_in_its_other_folder(fetch: Fetch, coco: Coco) -> None:
    fetch("coco2017-val")
    (coco.root / "images" / "val2017").rename(coco.root / "val2017")
    coco.web.asked.clear()
    assert fetch("coco2017-val") == 0
    assert coco.web.asked == []


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(path.read_bytes()[:-20] + bytes(20)),
    ],
    ids=["missing", "empty", "cut short", "overwritten"],
)
def test_a_damaged_image_is_brought_back(fetch: Fetch, coco: Coco, damage: Callable[[Path], object]) -> None:
    fetch("coco2017-val")
    damage(coco.root / "images" / "val2017" / "000000000002.jpg")
    assert fetch("coco2017-val") == 0
    assert (coco.root / "images" / "val2017" / "000000000002.jpg").read_bytes() == IMAGES["000000000002.jpg"]


def test_other_annotations_make_room_and_are_kept(fetch: Fetch, coco: Coco) -> None:
    file = coco.root / ANNOTATION_FILE
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    assert fetch("coco2017-val") == 0
    assert file.read_bytes() == INSTANCES
    assert file.with_name("instances_val2017.json.prev").read_text() == "mine"


def test_an_interrupted_unpacking_goes_on_without_asking_again(
    fetch: Fetch, coco: Coco, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, data: bytes) -> None:
        if path.name.endswith("2.jpg"):
            raise KeyboardInterrupt
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    with monkeypatch.context() as patched:
        patched.setattr(archive, "write_atomically", interrupted)
        assert fetch("coco2017-val") == 130
    first = (coco.root / "images" / "val2017" / "000000000001.jpg").stat()
    coco.web.asked.clear()
    assert fetch("coco2017-val") == 0
    assert coco.web.asked == []
    again = (coco.root / "images" / "val2017" / "000000000001.jpg").stat()
    assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert names(coco.root / "images" / "val2017") == list(IMAGES)


def test_an_archive_put_there_by_hand_is_used_and_stays(fetch: Fetch, coco: Coco) -> None:
    coco.root.mkdir()
    for path in (ANNOTATIONS, VAL):
        (coco.root / Path(path).name).write_bytes(coco.web.files[path])
    assert fetch("coco2017-val") == 0
    assert coco.web.asked == []
    assert (coco.root / "val2017.zip").exists()


def test_a_dry_run_names_an_archive_put_there_by_hand(
    fetch: Fetch, coco: Coco, capsys: pytest.CaptureFixture[str]
) -> None:
    coco.root.mkdir()
    (coco.root / "val2017.zip").write_bytes(coco.web.files[VAL])
    fetch("--dry-run", "coco2017-val")
    assert f"coco2017-val: {coco.root}/val2017.zip (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "fault"),
    [(lambda zip_: zip_[:-1] + b"x", "wanted MD5 .*…, found "), (lambda zip_: zip_[:-1], "wanted .* bytes, found ")],
    ids=["hash", "size"],
)
def test_an_archive_put_there_by_hand_is_checked_and_stays(
    fetch: Fetch, coco: Coco, capsys: pytest.CaptureFixture[str], change: Callable[[bytes], bytes], fault: str
) -> None:
    own = coco.root / "annotations_trainval2017.zip"
    coco.root.mkdir()
    own.write_bytes(change(coco.web.files[ANNOTATIONS]))
    assert fetch("coco2017-val") == 4
    assert re.search(f"{own}: {fault}.*\n  mend it: rm {own} && python -m harness", capsys.readouterr().err)
    assert own.exists()


def test_an_archive_of_another_size_is_refused_before_it_is_fetched(
    fetch: Fetch, coco: Coco, capsys: pytest.CaptureFixture[str]
) -> None:
    coco.web.files[ANNOTATIONS] += b"x"
    size = len(coco.web.files[ANNOTATIONS])
    assert fetch("coco2017-val") == 4
    assert f"wanted {size - 1:,} bytes, the server offers {size:,}" in capsys.readouterr().err
    assert not list(coco.root.glob("*.part"))


def test_a_full_disk_is_refused_before_coco_is_asked_for(
    fetch: Fetch, coco: Coco, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, 20_000_000 + len(coco.web.files[ANNOTATIONS]) - 1)
    assert fetch("coco2017-val") == 4
    assert coco.web.asked == []


def test_what_does_not_fit_when_unpacked_is_refused_and_the_archive_kept(
    fetch: Fetch, coco: Coco, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = coco.root / "annotations_trainval2017.zip.part"
    coco.root.mkdir()
    part.write_bytes(coco.web.files[ANNOTATIONS])
    with_free(monkeypatch, len(INSTANCES) - 1)
    assert fetch("coco2017-val") == 4
    assert part.exists()
    assert not (coco.root / ANNOTATION_FILE).exists()


# --- archives that nobody should unpack


def special(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    return info


UNSAFE: dict[str, tuple[str | zipfile.ZipInfo, str]] = {
    "parent": ("../evil.jpg", "a path that leads outside"),
    "parent in between": ("val2017/../../evil.jpg", "a path that leads outside"),
    "parent with backslashes": ("val2017\\..\\..\\evil.jpg", "a path that leads outside"),
    "absolute": ("/evil.jpg", "an absolute path"),
    "drive": ("C:\\evil.jpg", "an absolute path"),
    "link": (special("val2017/link.jpg", stat.S_IFLNK), "a link or device"),
    "device": (special("val2017/null.jpg", stat.S_IFCHR), "a link or device"),
    "pipe": (special("val2017/pipe.jpg", stat.S_IFIFO), "a link or device"),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_an_archive_with_one_unsafe_member_is_refused_and_removed(
    fetch: Fetch, coco: Coco, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    member, fault = UNSAFE[kind]
    coco.publish("ANNOTATIONS", {ANNOTATION_FILE: INSTANCES, member: b"/etc/passwd"})
    assert fetch("coco2017-val") == 4
    assert f", {fault}\n  mend it: it is removed; " in capsys.readouterr().err
    assert names(coco.root) == [".annotations_trainval2017.zip.lock"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"<html>log in first</html>", "File is not a zip file"),
        (zipped({ANNOTATION_FILE: INSTANCES}).replace(b"person", b"parson"), "Bad CRC-32"),
        (zipped({"annotations/other.json": INSTANCES}), "wanted 1 members annotations/instances_val2017"),
    ],
    ids=["no zip", "changed", "without what is wanted"],
)
def test_an_archive_that_is_damaged_is_refused_and_removed(
    fetch: Fetch, coco: Coco, capsys: pytest.CaptureFixture[str], content: bytes, fault: str
) -> None:
    coco.publish("ANNOTATIONS", content)
    assert fetch("coco2017-val") == 4
    assert f"annotations_trainval2017.zip.part is not unpacked: {fault}" in capsys.readouterr().err
    assert names(coco.root) == [".annotations_trainval2017.zip.lock"]


# --- a few training images of a zip that is not fetched


def test_the_first_training_images_are_fetched(fetch: Fetch, coco: Coco) -> None:
    assert fetch("coco2017-train") == 0
    assert names(coco.root) == [f"images/train2017/{number:012}.jpg" for number in (1, 2)]


def test_they_are_as_many_as_int8_is_calibrated_on() -> None:
    assert command.TRAIN_SAMPLE == CALIBRATION_IMAGES


def test_most_of_the_archive_is_not_asked_for(fetch: Fetch, coco: Coco, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "READ_AHEAD", 1000)
    fetch("coco2017-train")
    spans = [re.fullmatch(r"bytes=(\d+)-(\d+)", asked.range or "") for asked in coco.web.asked]
    asked = sum(int(span[2]) - int(span[1]) + 1 for span in spans if span)
    assert None not in spans
    assert asked < len(coco.web.files[TRAIN]) / 5


def test_a_training_archive_put_there_by_hand_is_used_and_stays(fetch: Fetch, coco: Coco) -> None:
    coco.root.mkdir()
    (coco.root / "train2017.zip").write_bytes(coco.web.files[TRAIN])
    assert fetch("coco2017-train") == 0
    assert coco.web.asked == []
    assert names(coco.root) == [*(f"images/train2017/{number:012}.jpg" for number in (1, 2)), "train2017.zip"]


def test_training_images_that_are_there_are_not_asked_for(fetch: Fetch, coco: Coco) -> None:
    fetch("coco2017-train")
    coco.web.asked.clear()
    assert fetch("coco2017-train") == 0
    assert coco.web.asked == []


def test_a_dropped_piece_is_asked_for_again(fetch: Fetch, coco: Coco) -> None:
    coco.web.cuts = [None, 7, None, 0]
    assert fetch("coco2017-train") == 0


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda web: setattr(web, "ranges", False), "wanted a part of it (HTTP 206), found all of it (HTTP 200)"),
        (lambda web: web.files.update({TRAIN: web.files[TRAIN] + b"x"}), " bytes, the server offers "),
        (lambda web: setattr(web, "content_range", "bytes {first}-{last}/*"), "the server offers None"),
        (lambda web: setattr(web, "longest", 5), " bytes of it, found 5 ("),
    ],
    ids=["no ranges", "another size", "unknown size", "less than asked for"],
)
def test_a_server_that_cannot_give_pieces_is_refused(
    fetch: Fetch, coco: Coco, capsys: pytest.CaptureFixture[str], change: Callable[[Server], None], fault: str
) -> None:
    change(coco.web)
    assert fetch("coco2017-train") == 4
    assert fault in capsys.readouterr().err


def test_pieces_of_two_versions_are_not_mixed(coco: Coco) -> None:
    coco.web.if_range = False
    with client.Client(coco.web.url, "") as to:
        stream = command.RemoteFile(to, command.TRAIN_IMAGES)
        coco.web.validators = {"ETag": '"2"'}
        with pytest.raises(client.FetchError, match="it changed on the server"):
            stream.read(10)


@pytest.mark.parametrize(
    ("whence", "offset", "found"), [(io.SEEK_SET, 2, b"cd"), (io.SEEK_CUR, 1, b"de"), (io.SEEK_END, -1, b"f")]
)
def test_a_remote_file_reads_like_a_file(coco: Coco, whence: int, offset: int, found: bytes) -> None:
    coco.web.files["example.org/letters"] = b"abcdef"
    with client.Client(coco.web.url, "") as to:
        stream = command.RemoteFile(to, download.Source("http://example.org/letters"))
        stream.seek(2)
        stream.seek(offset, whence)
        assert stream.read(2) == found


def test_a_remote_file_ends(coco: Coco) -> None:
    coco.web.files["example.org/letters"] = b"abcdef"
    with client.Client(coco.web.url, "") as to:
        stream = command.RemoteFile(to, download.Source("http://example.org/letters"))
        assert (stream.read(), stream.read(), stream.tell()) == (b"abcdef", b"", 6)


# --- progress


def test_a_log_has_a_line_now_and_then(
    fetch: Fetch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter(range(0, 100, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    fetch("pisa")
    assert capsys.readouterr().err.splitlines() == [
        f"{PUBLISHED.file}: 0.0 MB of 0.0 MB",
        f"{PUBLISHED.file}: 0.0 MB of 0.0 MB",
        f"{PUBLISHED.file}: 0.0 MB of 0.0 MB",
    ]


def test_a_terminal_has_a_bar(
    fetch: Fetch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert fetch("pisa") == 0
    assert "100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "text"), [(None, "size unknown"), (815_585_330, "815.6 MB"), (19 * 10**9, "19.00 GB")]
)
def test_sizes_are_in_decimal_units(size: int | None, text: str) -> None:
    assert progress.size_text(size) == text
