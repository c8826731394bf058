"""Each conformance check catches a session that breaks just its promise, and a sound one keeps them all."""

import mmap
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from harness.conformance import contract, metamorphic
from harness.conformance.finding import Finding, measured, verdict
from harness.conformance.metamorphic import ask
from harness.conformance.subject import Images, Maps, Subject
from harness.detect.decode import Boxes
from harness.detect.detections import Detections
from harness.detect.preprocess import Geometry
from harness.engines.base import Engine
from harness.engines.elsewhere import Elsewhere
from harness.errors import EngineError, Missing, NotFinite
from harness.judge.verdict import Status

pytestmark = pytest.mark.selftest

BATCH, SIDE, CELL = 4, 64, 8
GRID = SIDE // CELL
SHAPES = {"cls_8": (BATCH, 1, GRID, GRID), "box_8": (BATCH, 4, GRID, GRID)}
CHECKS = {**metamorphic.CHECKS, **contract.CHECKS}
ENGINE_BYTES = b"an engine file" * 50_000


class Sound:
    """Scores every cell of 8 x 8 pixels by its mean, and calls it a box; keeps every promise."""

    def __init__(self, batch: int = BATCH) -> None:
        self.batch, self.closed = batch, False
        self.resident: Images | None = None
        self.left: Maps | None = None

    def infer(self, images: Images) -> Maps:
        self.require(images)
        return self.compute(images)

    def require(self, images: Images) -> None:
        wanted = (self.batch, 3, SIDE, SIDE)
        if self.closed or images.shape != wanted or images.dtype != np.float32 or not np.isfinite(images).all():
            raise EngineError(f"wanted {wanted} float32, found {images.shape} {images.dtype}", "give that")

    def compute(self, images: Images) -> Maps:
        means = images.mean(axis=1).reshape(len(images), GRID, CELL, GRID, CELL).mean(axis=(2, 4))
        scores = (4 * means - 2)[:, None].astype(np.float32)
        return {"cls_8": scores, "box_8": np.zeros((len(images), 4, GRID, GRID), np.float32) + self.aside}

    aside = 0.0

    def prepare(self, images: Images) -> Callable[[], None]:
        self.require(images)

        def call() -> None:
            self.left = self.timed(images)

        return call

    def timed(self, images: Images) -> Maps | None:
        return self.compute(images)

    def read_back(self) -> Maps | None:
        return self.left

    def inspect(self) -> object:
        if self.closed:
            raise EngineError("the session is closed", "open it")
        return "sound"

    def close(self) -> None:
        self.closed = True

    device_bytes: Callable[[], int | None] | None = None


# --- sessions that break a promise


class PlacedRows(Sound):
    """A row is scaled by its place."""

    def compute(self, images: Images) -> Maps:
        places = 1 + 1e-3 * np.arange(len(images), dtype=np.float32)[:, None, None, None]
        return {name: maps * places for name, maps in super().compute(images).items()}


class MixedRows(Sound):
    """The first row has a little of the last."""

    def compute(self, images: Images) -> Maps:
        maps = super().compute(images)
        maps["cls_8"][0] += 1e-2 * maps["cls_8"][-1]
        return maps


class DependsOnBatch(Sound):
    def compute(self, images: Images) -> Maps:
        return {name: maps * np.float32(1 + 1e-3 * len(images)) for name, maps in super().compute(images).items()}


class LeaksState(Sound):
    """Something of the last batch stays."""

    before: Any = np.float32(0)

    def compute(self, images: Images) -> Maps:
        maps = super().compute(images)
        maps["cls_8"] += np.float32(1e-3) * self.before
        self.before = images[0, 0, 0, 0]
        return maps


class OverwritesOutputs(Sound):
    """All calls share the memory of their outputs."""

    own: Maps | None = None

    def infer(self, images: Images) -> Maps:
        maps = super().infer(images)
        if self.own is None:
            self.own = maps
        for name, values in self.own.items():
            values[...] = maps[name]
        return dict(self.own)


class RoundsOnReopen(Sound):
    opened = 0

    def __init__(self, batch: int = BATCH) -> None:
        super().__init__(batch)
        type(self).opened += 1
        self.rounds = self.opened > 1

    def compute(self, images: Images) -> Maps:
        maps = super().compute(images)
        if self.rounds and self.batch > 1:
            maps["cls_8"] = maps["cls_8"].astype(np.float16).astype(np.float32)
        return maps


class BoundToThread(Sound):
    """Computes nothing in a thread that did not open it."""

    def __init__(self, batch: int = BATCH) -> None:
        super().__init__(batch)
        self.thread = threading.get_ident()

    def compute(self, images: Images) -> Maps:
        maps = super().compute(images)
        own = self.thread == threading.get_ident()
        return maps if own else {name: np.zeros_like(values) for name, values in maps.items()}


class SharedScratch(Sound):
    """All sessions compute in the same memory; two that meet there see each other's images."""

    meeting: ClassVar[threading.Barrier] = threading.Barrier(2)
    scratch: ClassVar[list[Images]] = [np.zeros(0, np.float32)]

    def compute(self, images: Images) -> Maps:
        self.scratch[0] = images
        if threading.current_thread() is not threading.main_thread():
            try:
                self.meeting.wait(timeout=0.5)
            except threading.BrokenBarrierError:
                self.meeting.reset()
        return super().compute(self.scratch[0])


class TimesSomethingElse(Sound):
    def timed(self, images: Images) -> Maps | None:
        return self.compute(images * np.float32(0.5))


class TimesNothing(Sound):
    """The timed call leaves what the last inference left."""

    def infer(self, images: Images) -> Maps:
        self.left = super().infer(images)
        return self.left

    def timed(self, images: Images) -> Maps | None:
        return self.left


class SpoiltByTiming(Sound):
    """Once a call was prepared for timing, whatever is inferred after it is a little off."""

    def prepare(self, images: Images) -> Callable[[], None]:
        call = super().prepare(images)
        self.aside = 1e-2

        def timed() -> None:
            call()
            self.left = Sound().compute(images)

        return timed


class MisplacesTheRight(Sound):
    """Boxes in the right quarter of an image lie elsewhere."""

    def compute(self, images: Images) -> Maps:
        maps = super().compute(images)
        maps["box_8"][..., 3 * GRID // 4 :] += SIDE
        return maps


class ShiftsBoxes(Sound):
    """Half a pixel to the right."""

    aside = 0.5


class IgnoresItsInput(Sound):
    def compute(self, images: Images) -> Maps:
        rows = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
        return super().compute(np.broadcast_to(rows, images.shape))


class Saturates(Sound):
    """Scores stop rising where most of them are."""

    def compute(self, images: Images) -> Maps:
        maps = super().compute(images)
        maps["cls_8"] = np.minimum(maps["cls_8"], 0.2)
        return maps


class OtherNames(Sound):
    def compute(self, images: Images) -> Maps:
        return dict(reversed(super().compute(images).items()))


class HalfPrecisionOutputs(Sound):
    def compute(self, images: Images) -> Any:
        maps = super().compute(images)
        return {**maps, "box_8": maps["box_8"].astype(np.float16)}


class GivesInf(Sound):
    def compute(self, images: Images) -> Maps:
        maps = super().compute(images)
        maps["box_8"][1, 0, 0, 0] = np.inf
        return maps


class SwallowsNaN(Sound):
    def infer(self, images: Images) -> Maps:
        return super().infer(np.nan_to_num(images))


class TakesAnything(Sound):
    def require(self, images: Images) -> None:
        if self.closed:
            raise EngineError("the session is closed", "open it")

    def compute(self, images: Images) -> Maps:
        fits = images.shape[1:] == (3, SIDE, SIDE) and images.dtype == np.float32
        return super().compute(images) if fits else {}


class RefusesInItsOwnWords(Sound):
    """What the runtime raises reaches the caller."""

    def require(self, images: Images) -> None:
        try:
            super().require(images)
        except EngineError as error:
            raise TypeError("incompatible function arguments") from error


class AnswersWhenClosed(Sound):
    def close(self) -> None:
        """Nothing is let go of."""


class OnDevice(Sound):
    """On an accelerator, of whose memory each open session has a megabyte."""

    used: ClassVar[list[int]]

    def __init_subclass__(cls) -> None:
        cls.used = []

    def __init__(self, batch: int = BATCH) -> None:
        super().__init__(batch)
        self.used.append(1 << 20)

    @classmethod
    def device_bytes(cls) -> int | None:
        return sum(cls.used)


class FreesDeviceMemory(OnDevice):
    """Keeps every promise."""

    def close(self) -> None:
        if not self.closed:
            self.used.pop()
        super().close()


class KeepsDeviceMemory(OnDevice):
    """Closing leaves it where it is."""


class HoardsDeviceMemory(FreesDeviceMemory):
    """Keeps the images of every call there."""

    def compute(self, images: Images) -> Maps:
        self.used[-1] += 2 * images.nbytes
        return super().compute(images)


def mapped(size: int) -> mmap.mmap:
    """Memory in use, from the system and not from what this process once freed."""
    memory = mmap.mmap(-1, size)
    memory.write(bytes(size))
    return memory


class OutlivesClosing(Sound):
    """Something keeps every session."""

    all: ClassVar[list[Any]] = []

    def __init__(self, batch: int = BATCH) -> None:
        super().__init__(batch)
        self.all.append((self, mapped(1 << 20)))


class Hoards(Sound):
    """Keeps the images of every call."""

    def __init__(self, batch: int = BATCH) -> None:
        super().__init__(batch)
        self.kept: list[mmap.mmap] = []

    def compute(self, images: Images) -> Maps:
        self.kept.append(mapped(2 * images.nbytes))
        return super().compute(images)


# --- what they are asked with


def boxes_of(maps: Maps) -> Detections:
    """A box for each cell of the grid that scores over a half."""

    def row(scores: Images, offsets: Images) -> Boxes:
        lines, columns = np.nonzero(scores[0] > 0)
        corners = np.stack([columns, lines, columns + 1, lines + 1], axis=1) * float(CELL)
        corners[:, [0, 2]] += offsets[0, lines, columns][:, None]
        probability = 1 / (1 + np.exp(-scores[0, lines, columns]))
        return Boxes(corners.astype(np.float32), probability, np.zeros(len(lines), np.int64))

    return Detections.from_boxes(enumerate(map(row, maps["cls_8"], maps["box_8"])), [1])


def healthy_elsewhere(file: Path, images: Images) -> Maps:
    if file.read_bytes() != ENGINE_BYTES:
        raise EngineError(f"{file} is no engine", "build it again")
    return Sound().infer(images)


@pytest.fixture
def subject_of(tmp_path: Path) -> Callable[..., Subject]:
    file = tmp_path / "toy.engine"
    file.write_bytes(ENGINE_BYTES)
    rng = np.random.default_rng(6)
    images = rng.random((BATCH, 3, GRID, GRID), np.float32).repeat(CELL, axis=2).repeat(CELL, axis=3)

    @contextmanager
    def opened(session: Any) -> Iterator[Any]:
        yield session
        session.close()

    def make(session_class: type[Sound], **changes: Any) -> Subject:
        geometry = Geometry(SIDE, SIDE, SIDE, SIDE, 1.0, 1.0)
        made = Subject(
            session=session_class(),
            images=images,
            geometries=[geometry] * BATCH,
            step=np.full(3, 1 / 255, np.float32),
            shapes=SHAPES,
            precision="fp32",
            repeatable=True,
            file=file,
            reopen=lambda: opened(session_class()),
            single=lambda: opened(session_class(1)),
            reference=lambda wanted: Sound(len(wanted)).infer(wanted),
            detect=boxes_of,
            elsewhere=lambda file: healthy_elsewhere(file, images),
            device_bytes=session_class.device_bytes,
        )
        return replace(made, **changes)

    return make


def broken(subject: Subject, checks: Mapping[str, metamorphic.Check] = CHECKS) -> set[str]:
    """The checks that `subject` does not hold."""
    return {name for name, check in checks.items() if not ask(name, check, subject).held}


# --- each check


@pytest.mark.parametrize("check", CHECKS)
def test_a_sound_engine_keeps_each_promise(subject_of: Callable[..., Subject], check: str) -> None:
    finding = ask(check, CHECKS[check], subject_of(Sound))
    assert (finding.check, finding.held) == (check, True), finding.seen


@pytest.mark.parametrize("check", ["closing_frees", "memory_growth"])
def test_a_sound_engine_on_a_device_leaves_its_memory_as_it_was(subject_of: Callable[..., Subject], check: str) -> None:
    assert ask(check, CHECKS[check], subject_of(FreesDeviceMemory)).held


ROWS = {"equal_rows", "permuted_rows", "batch_of_one"}
REFUSALS = {f"refuses_{kind}" for kind in contract.WRONG_INPUTS}
FAULTS = [
    (PlacedRows, ROWS),
    (MixedRows, {*ROWS, "padding"}),
    (DependsOnBatch, {"batch_of_one"}),
    (
        LeaksState,
        {"padding", "batch_of_one", "run_again", "reopened", "another_thread", "timed_call", "second_session"},
    ),
    (OverwritesOutputs, {"given_away"}),
    (RoundsOnReopen, {"reopened", "second_session"}),
    (BoundToThread, {"another_thread", "second_session"}),
    (SharedScratch, {"second_session"}),
    (TimesSomethingElse, {"timed_call"}),
    (TimesNothing, {"timed_call"}),
    (SpoiltByTiming, {"timed_call"}),
    (MisplacesTheRight, {"mirrored_boxes"}),
    (ShiftsBoxes, {"mirrored_aside"}),
    (IgnoresItsInput, {"brighter", "mirrored_boxes"}),
    (Saturates, {"brighter"}),
]


@pytest.mark.parametrize(("fault", "wanted"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_an_engine_that_breaks_a_relation_is_caught(
    subject_of: Callable[..., Subject], fault: type[Sound], wanted: set[str]
) -> None:
    assert broken(subject_of(fault), metamorphic.CHECKS) == wanted


BREACHES = [
    (OtherNames, {"interface"}),
    (HalfPrecisionOutputs, {"interface"}),
    (GivesInf, {"finite"}),
    (SwallowsNaN, {"nan_input"}),
    (TakesAnything, REFUSALS),
    (RefusesInItsOwnWords, REFUSALS),
    (AnswersWhenClosed, {"closed"}),
    (KeepsDeviceMemory, {"closing_frees"}),
    (HoardsDeviceMemory, {"memory_growth"}),
    (OutlivesClosing, {"closing_frees"}),
    (Hoards, {"memory_growth"}),
]


@pytest.mark.parametrize(("fault", "wanted"), BREACHES, ids=[fault.__name__ for fault, _ in BREACHES])
def test_an_engine_that_breaks_its_contract_is_caught(
    subject_of: Callable[..., Subject], fault: type[Sound], wanted: set[str]
) -> None:
    asked = {name: check for name, check in contract.CHECKS.items() if name in wanted}
    assert broken(subject_of(fault), asked) == wanted


def dies(_file: Path) -> Maps:
    raise BrokenProcessPool("the process died")


def takes_any_file(_file: Path) -> Maps:
    return {"cls_8": np.zeros(SHAPES["cls_8"], np.float32), "box_8": np.zeros(SHAPES["box_8"], np.float32)}


@pytest.mark.parametrize("elsewhere", [dies, takes_any_file])
@pytest.mark.parametrize("check", ["portable", "truncated", "foreign"])
def test_a_file_that_does_other_things_elsewhere_is_caught(
    subject_of: Callable[..., Subject], check: str, elsewhere: Callable[[Path], Maps]
) -> None:
    assert broken(subject_of(Sound, elsewhere=elsewhere), {check: CHECKS[check]}) == {check}


def test_every_check_has_an_engine_that_breaks_it() -> None:
    caught = {name for _, wanted in (*FAULTS, *BREACHES) for name in wanted}
    assert caught | {"portable", "truncated", "foreign"} == set(CHECKS)


# --- what a check may not do


def test_an_engine_that_fails_on_the_way_does_not_keep_the_promise(subject_of: Callable[..., Subject]) -> None:
    subject = subject_of(Sound)
    subject.session.close()
    finding = ask("run_again", metamorphic.run_again, subject)
    assert (finding.held, finding.detail[:10]) == (False, "it failed:")


def test_outputs_that_cannot_be_decoded_do_not_keep_the_promise(subject_of: Callable[..., Subject]) -> None:
    def undecodable(_maps: Maps) -> Detections:
        raise NotFinite("cls_8")

    finding = ask("mirrored_boxes", metamorphic.mirrored_boxes, subject_of(Sound, detect=undecodable))
    assert (finding.held, finding.detail) == (False, "it failed: NaN or Inf in raw output 'cls_8'")


def test_a_difference_within_the_precision_is_allowed_where_the_same_bits_are_not_claimed(
    subject_of: Callable[..., Subject],
) -> None:
    RoundsOnReopen.opened = 0
    subject = subject_of(RoundsOnReopen, repeatable=False, precision="fp16")
    assert ask("reopened", metamorphic.reopened, subject).held


def test_a_batch_of_one_has_no_rows_to_compare(subject_of: Callable[..., Subject]) -> None:
    subject = subject_of(Sound)
    with pytest.raises(Missing, match="no other rows"):
        metamorphic.equal_rows(replace(subject, images=subject.images[:1]))


def test_a_timed_call_that_cannot_be_read_back_is_missing(subject_of: Callable[..., Subject]) -> None:
    class KeepsNothing(Sound):
        def read_back(self) -> Maps | None:
            return None

    with pytest.raises(Missing, match="cannot be read back"):
        metamorphic.timed_call(subject_of(KeepsNothing))


def test_a_timed_call_whose_outputs_are_there_before_it_is_missing(subject_of: Callable[..., Subject]) -> None:
    class WarmsUp(TimesNothing):
        def prepare(self, images: Images) -> Callable[[], None]:
            call = super().prepare(images)
            self.left = self.compute(images)
            return call

    with pytest.raises(Missing, match="is there before it is called"):
        metamorphic.timed_call(subject_of(WarmsUp))


def test_memory_that_nothing_was_written_to_is_not_what_a_timed_call_left(subject_of: Callable[..., Subject]) -> None:
    class Fresh(Sound):
        def prepare(self, images: Images) -> Callable[[], None]:
            self.left = {name: np.full(shape, 0x7F800001, np.uint32).view(np.float32) for name, shape in SHAPES.items()}
            return super().prepare(images)

    assert metamorphic.timed_call(subject_of(Fresh)).held


@pytest.mark.parametrize("check", ["closing_frees", "memory_growth"])
def test_what_a_device_does_not_tell_of_its_memory_is_missing(subject_of: Callable[..., Subject], check: str) -> None:
    with pytest.raises(Missing, match="does not tell how much"):
        CHECKS[check](subject_of(Sound, device_bytes=lambda: None))


@pytest.mark.parametrize(("fault", "check"), [(Hoards, "memory_growth"), (OutlivesClosing, "closing_frees")])
def test_what_stays_on_the_host_is_seen_whatever_the_device_tells(
    subject_of: Callable[..., Subject], fault: type[Sound], check: str
) -> None:
    for told in (None, 1 << 30):
        assert not CHECKS[check](subject_of(fault, device_bytes=lambda told=told: told)).held


@pytest.mark.parametrize(
    ("fault", "check"), [(HoardsDeviceMemory, "memory_growth"), (KeepsDeviceMemory, "closing_frees")]
)
def test_what_grows_on_a_device_that_others_may_use_is_inconclusive(
    subject_of: Callable[..., Subject], fault: type[Sound], check: str
) -> None:
    found = verdict(CHECKS[check](subject_of(fault)), "cell", "pytest")
    assert found.status is Status.INCONCLUSIVE
    assert "on the device, where others count too" in found.reason


def test_an_engine_that_finds_nothing_lies_nowhere(subject_of: Callable[..., Subject]) -> None:
    class Blind(Sound):
        def compute(self, images: Images) -> Maps:
            maps = super().compute(images)
            return {**maps, "cls_8": np.full_like(maps["cls_8"], -9)}

    assert {"mirrored_boxes", "mirrored_aside"} <= broken(subject_of(Blind), metamorphic.CHECKS)


def test_a_model_that_finds_nothing_cannot_be_mirrored(subject_of: Callable[..., Subject]) -> None:
    nothing = {name: np.full(shape, -9, np.float32) for name, shape in SHAPES.items()}
    with pytest.raises(Missing, match="fp32 finds no box"):
        metamorphic.mirrored_boxes(subject_of(Sound, reference=lambda _images: nothing))


# --- findings and verdicts


@pytest.mark.parametrize(("figure", "held"), [(0.5, True), (1.0, True), (1.1, False), (float("nan"), False)])
def test_a_figure_is_held_up_to_its_bound(figure: float, held: bool) -> None:
    assert measured("check", "it is so", figure, 1.0, "units").held is held


@pytest.mark.parametrize(("held", "status"), [(True, Status.PASS), (False, Status.INVALID)])
def test_a_promise_that_is_not_held_is_invalid(held: bool, status: Status) -> None:
    assert verdict(Finding("check", "it is so", held), "cell", "pytest").status is status


def test_a_verdict_names_promise_figure_bound_and_the_command() -> None:
    message = verdict(measured("check", "it is so", 2.0, 1.0, "units"), "cell", "pytest -k check").message()
    assert message == "INVALID cell check: it is so: 2 units, at most 1\n  next: pytest -k check"


# --- the other process


class Deadly(Engine):
    """Opening its file ends the process."""

    name, file_suffix = "deadly", ".x"

    @property
    def capabilities(self) -> Any:
        return None

    def available(self) -> str | None:
        return None

    def version(self) -> str:
        return "1"

    def build(self, source: Any, target: Path) -> None: ...

    def open(self, source: Any, file: Path) -> Any:
        os._exit(1)


class Harmless(Deadly):
    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        self.options = dict(options or {})

    def open(self, source: Any, file: Path) -> AbstractContextManager[Sound]:
        return nullcontext(Sound())


def test_a_file_that_takes_its_process_down_leaves_the_next_one_a_process(tmp_path: Path) -> None:
    images, elsewhere = np.zeros((BATCH, 3, SIDE, SIDE), np.float32), Elsewhere()
    try:
        with pytest.raises(BrokenProcessPool):
            elsewhere.infer(Deadly.__new__(Deadly), None, tmp_path, images)  # type: ignore[arg-type]
        found = elsewhere.infer(Harmless(), None, tmp_path, images)  # type: ignore[arg-type]
    finally:
        elsewhere.close()
    assert list(found) == list(SHAPES)
