"""Takes names of models and COCO's sets; gives the lines that tell how each came to lie where it is looked for."""

import io
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from harness.cache import sha256_of
from harness.detect.dataset import ANNOTATION_FILE, VAL2017_IMAGES, VAL2017_SHA256, load_coco
from harness.errors import DatasetError, FetchError, Missing, UsageError
from harness.fetch.archive import ArchiveError, members, opened, unpack
from harness.fetch.client import Client, Dropped, shown
from harness.fetch.download import Source, discard, download, mismatch, require_room
from harness.fetch.progress import say, size_text
from harness.fetch.remote import READ_AHEAD, RemoteFile
from harness.model.checkpoint import find
from harness.model.registry import SHIPPED_BASELINES, ModelSpec, load_models

# Sizes and hashes as many projects that use these files have them; COCO itself publishes none.
VAL_IMAGES = Source(
    "http://images.cocodataset.org/zips/val2017.zip", 815_585_330, "md5", "442b8da7639aecaf257c1dceb8ba8c80"
)
TRAIN_IMAGES = Source(
    "http://images.cocodataset.org/zips/train2017.zip", 19_336_861_798, "md5", "cced6f7f71b7629ddf16f17bbcfab6b2"
)
ANNOTATIONS = Source(
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    252_907_541,
    "md5",
    "f4bbac642086de4f52a3fdda2de5fa2c",
)

VAL, TRAIN = "coco2017-val", "coco2017-train"
TRAIN_SAMPLE = 64  # images; what the pipeline calibrates int8 on
SETS = {
    VAL: f"COCO's {VAL2017_IMAGES:,} validation images and their annotations, 1.1 GB",
    TRAIN: f"the first {TRAIN_SAMPLE} of COCO's training images, for int8; about 30 MB of a zip of 19 GB",
}


@dataclass(frozen=True)
class Request:
    """One command line. `mirror` is a base URL that serves `BASE/HOST/PATH`."""

    names: tuple[str, ...]
    baselines: Path
    checkpoints: Path
    data_dir: Path
    mirror: str | None
    dry_run: bool

    @property
    def command(self) -> str:
        """The command line again, independent of the environment, without a password that the mirror may hold."""
        words = ["python", "-m", "harness", "fetch", *self.names]
        words += ["--checkpoints", str(self.checkpoints)] if set(self.names) - set(SETS) else []
        words += ["--data-dir", str(self.data_dir)] if set(self.names) & set(SETS) else []
        words += ["--baselines", str(self.baselines)] if self.baselines != SHIPPED_BASELINES else []
        words += ["--mirror", shown(self.mirror)] if self.mirror else []
        return shlex.join(words)


@dataclass(frozen=True)
class _Item(ABC):
    """One published file and what becomes of it. `target` names the lock and the `.part` beside it."""

    source: Source
    target: Path

    @property
    def part(self) -> Path:
        return self.target.with_name(self.target.name + ".part")

    @property
    @abstractmethod
    def place(self) -> Path:
        """Where people find it afterwards."""

    @abstractmethod
    def present(self) -> bool:
        """Whether there is nothing to do."""

    @abstractmethod
    def take(self, client: Client) -> None:
        """Fetch it to its place; goes on where an interrupted call stopped."""

    def origin(self, client: Client) -> str:
        """Where it comes from."""
        return client.label(self.source.url)

    def volume(self, client: Client) -> str:
        """How much there is to fetch; asks the server when it is not known beforehand."""
        try:
            return size_text(self.source.size or client.size(self.source.url))
        except (Dropped, FetchError) as error:
            say(error.cause if isinstance(error, FetchError) else str(error))
            return size_text(None)


@dataclass(frozen=True)
class _CheckpointFile(_Item):
    """The weights of one model."""

    spec: ModelSpec
    baselines: Path

    @property
    def place(self) -> Path:
        return self.target

    def present(self) -> bool:
        try:
            find(self.spec, [self.target.parent], self.baselines)
        except Missing:
            return False
        return True

    def take(self, client: Client) -> None:
        download(client, self.source, self.part, room=0)
        self.part.replace(self.target)
        discard(self.part)


@dataclass(frozen=True)
class _Members(_Item):
    """The first `count` members, by name, of a zip, in `folder`.

    pattern: regular expression of the members' whole names. unpacked: their bytes, roughly.
    """

    pattern: str
    count: int
    unpacked: int
    folder: Path

    @property
    def place(self) -> Path:
        return self.folder

    def origin(self, client: Client) -> str:
        return str(self.target) if self.target.is_file() else super().origin(client)

    def _unpack(self, name: str, content: Path | BinaryIO, remedy: str) -> None:
        with opened(name, content, remedy) as archive:
            unpack(archive, members(archive, self.pattern, self.count), self.folder)


class _Archive(_Members):
    """Members of a zip that is fetched whole, and removed when they are unpacked; one put there by hand stays."""

    def take(self, client: Client) -> None:
        if self.target.is_file():
            remedy = f"rm {shlex.quote(str(self.target))} && {client.command}"
            fault = mismatch(self.target, self.source)
            if fault:
                raise FetchError(f"{self.target}: {fault}", remedy)
            self._unpack(str(self.target), self.target, remedy)
            return
        download(client, self.source, self.part, room=self.unpacked)
        try:
            self._unpack(str(self.part), self.part, f"it is removed; fetch it where it is published: {client.command}")
        except ArchiveError:
            discard(self.part)
            raise
        discard(self.part)


class _Annotations(_Archive):
    """COCO's annotations of val2017, byte for byte; another file in their place is kept beside them."""

    @property
    def place(self) -> Path:
        return self.folder / Path(ANNOTATION_FILE).name

    def present(self) -> bool:
        return self.place.is_file() and sha256_of(self.place) in VAL2017_SHA256

    def _unpack(self, name: str, content: Path | BinaryIO, remedy: str) -> None:
        if self.place.exists():
            other = self.place.with_name(self.place.name + ".prev")
            self.place.replace(other)
            say(f"{self.place} was not COCO's own: it is {other.name} now")
        super()._unpack(name, content, remedy)


class _Images(_Archive):
    """The images of val2017; they are there when the suites would take them."""

    def present(self) -> bool:
        try:
            load_coco(self.target.parent, VAL)
        except (DatasetError, Missing):
            return False
        return True


class _Sample(_Members):
    """A few members of a zip of which the rest is not fetched."""

    def present(self) -> bool:
        return sum(path.stat().st_size > 0 for path in self.folder.glob("*.jpg")) >= self.count

    def volume(self, client: Client) -> str:
        return f"about {size_text(self.unpacked)} of {super().volume(client)}"

    def take(self, client: Client) -> None:
        if self.target.is_file():
            remedy = f"rm {shlex.quote(str(self.target))} && {client.command}"
            self._unpack(str(self.target), self.target, remedy)
            return
        require_room(self.folder, self.unpacked)
        remedy = f"give another --mirror BASE_URL, or none: {client.command}"
        with io.BufferedReader(RemoteFile(client, self.source), READ_AHEAD) as stream:
            self._unpack(client.label(self.source.url), stream, remedy)


def fetch(request: Request) -> Iterator[str]:
    """Fetch what is named; a line for each file. What is there already causes no request.

    Raises:
        UsageError: no name, an unknown one, or one that nothing is published for; before anything is fetched.
        CheckpointError: another file lies where a checkpoint belongs.
        FetchError: see `download` and `unpack`; what was fetched so far stays for the next call.
    """
    models = load_models(request.baselines)
    if not request.names:
        yield from _catalogue(models)
        raise UsageError("wanted names of what to fetch, found none", f"python -m harness fetch {VAL}, for example")
    plan = {name: _items(request, models, name) for name in dict.fromkeys(request.names)}
    with Client(request.mirror, request.command) as client:
        for name, items in plan.items():
            if not items:
                yield f"{name}: comes with detgate, nothing to fetch"
            for item in items:
                yield from _carry_out(name, item, client, request.dry_run)


def _carry_out(name: str, item: _Item, client: Client, dry_run: bool) -> Iterator[str]:
    try:
        if item.present():
            yield f"{name}: {item.place} is there already"
            return
        if dry_run:
            yield f"{name}: {item.origin(client)} ({item.volume(client)}) -> {item.place}"
            return
        yield f"{name}: {item.origin(client)} -> {item.place}"
        with _alone(item.target):
            if not item.present():
                item.take(client)
        yield f"{name}: {item.place} is complete"
    except OSError as error:
        raise FetchError(
            f"cannot use {error.filename or item.place}: {error.strerror}",
            "give it the rights or the room it needs, or name another folder (--checkpoints DIR, --data-dir DIR); "
            f"then {client.command}",
        ) from error


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Only one process at a time fetches the same file to the same place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"another process is fetching {target}: waiting for it")
        lock.acquire()
    try:
        yield
        # Whoever holds or awaits a lock that was removed finds the file there, and does nothing.
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def _catalogue(models: dict[str, ModelSpec]) -> Iterator[str]:
    for spec in models.values():
        published = spec.checkpoint.file if spec.checkpoint.url else _why_not(spec)
        yield f"{spec.name:<15} {published}"
    yield from (f"{name:<15} {what}" for name, what in SETS.items())


def _why_not(spec: ModelSpec) -> str:
    return "comes with detgate, nothing to fetch" if spec.dataset == "mini" else "'checkpoint.url' is null"


def _items(request: Request, models: dict[str, ModelSpec], name: str) -> tuple[_Item, ...]:
    if name == VAL:
        return _val2017(request.data_dir)
    if name == TRAIN:
        return _train2017(request.data_dir)
    if name not in models:
        raise UsageError(
            f"'{name}': wanted one of {', '.join([*models, *SETS])}",
            "choose from that list; models of your own are found with --baselines DIR",
        )
    return _checkpoint(request, models[name])


def _checkpoint(request: Request, spec: ModelSpec) -> tuple[_Item, ...]:
    source, target = spec.checkpoint, request.checkpoints / spec.checkpoint.file
    if source.url is None and spec.dataset == "mini":
        return ()
    if source.url is None:
        raise UsageError(
            f"no checkpoint of '{spec.name}' is published: 'checkpoint.url' is null in its model file",
            f"put the file at {target}, or write its URL into {request.baselines / 'models' / spec.name}.json",
        )
    if Path(source.file).name != source.file:
        raise UsageError(
            f"'checkpoint.file' of '{spec.name}': wanted a file name, found the path '{source.file}'",
            f"edit {request.baselines / 'models' / spec.name}.json",
        )
    return (_CheckpointFile(Source(source.url, digest=source.sha256), target, spec, request.baselines),)


def _val2017(root: Path) -> tuple[_Item, ...]:
    annotations = _Annotations(
        source=ANNOTATIONS,
        target=root / "annotations_trainval2017.zip",
        pattern=re.escape(ANNOTATION_FILE),
        count=1,
        unpacked=20_000_000,
        folder=root / "annotations",
    )
    images = _Images(
        source=VAL_IMAGES,
        target=root / "val2017.zip",
        pattern=r"val2017/[^/]+\.jpg",
        count=VAL2017_IMAGES,
        unpacked=820_000_000,
        folder=root / "images" / "val2017",
    )
    return annotations, images


def _train2017(root: Path) -> tuple[_Item, ...]:
    sample = _Sample(
        source=TRAIN_IMAGES,
        target=root / "train2017.zip",
        pattern=r"train2017/[^/]+\.jpg",
        count=TRAIN_SAMPLE,
        unpacked=30_000_000,
        folder=root / "images" / "train2017",
    )
    return (sample,)
