"""Takes a `Subject`; gives findings on what every engine owes its caller: its interface, refusals, memory, its file."""

import ctypes
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.conformance.finding import Finding, measured
from harness.conformance.metamorphic import Check, same_outputs
from harness.conformance.subject import Images, Maps, Session, Subject
from harness.engines.base import first_line
from harness.errors import DetgateError, EngineError, Missing

# Inferences over which memory must not grow: where an image has up to this many pixels, and where it has more.
SMALL_IMAGE, MANY_CALLS, FEW_CALLS = 512 * 512, 200, 10
LEAKED = 1 / 8
"""Of the bytes that go in and out of a call: less than that is the allocator's own, more is a buffer that is kept."""
REOPENINGS = 6
STATM = Path("/proc/self/statm")

WRONG_INPUTS: Mapping[str, Callable[[Images], npt.NDArray[np.generic]]] = {
    "rank": lambda images: images[0],
    "channels": lambda images: images[:, :1],
    "size": lambda images: images[..., 1:],
    "batch": lambda images: np.concatenate([images, images[:1]]),
    "dtype": lambda images: images.astype(np.float64),
}


def interface(subject: Subject) -> Finding:
    """Names, shapes and types of the outputs, in the order of the model's head."""
    wanted = {name: (shape, "float32") for name, shape in subject.shapes.items()}
    found = {name: (maps.shape, str(maps.dtype)) for name, maps in subject.first(subject.images).items()}
    held = list(found.items()) == list(wanted.items())
    promise = "outputs have the names, order, shapes and type of the model's"
    return Finding("interface", promise, held, detail="" if held else f"wanted {wanted}, found {found}")


def finite(subject: Subject) -> Finding:
    """NaN and Inf in the outputs for photographs."""
    found = subject.first(subject.images)
    broken = [name for name, maps in found.items() if not np.isfinite(maps).all()]
    detail = f"NaN or Inf in {', '.join(broken)}" if broken else ""
    return Finding("finite", "outputs are finite", not broken, detail=detail)


def nan_input(subject: Subject) -> Finding:
    """One image that holds a NaN."""
    images = subject.images.copy()
    images[0, :, images.shape[2] // 2, images.shape[3] // 2] = np.nan
    promise = "NaN in an image is refused, or shows in the outputs: it never becomes boxes"
    try:
        found = subject.session.infer(images)
    except EngineError as error:
        return Finding("nan_input", promise, held=True, detail=f"refused: {error.cause}")
    shows = any(np.isnan(maps[0]).any() for maps in found.values())
    return Finding("nan_input", promise, shows, detail="" if shows else "the outputs are finite")


def refusal(kind: str) -> Check:
    """The check that input which is wrong in one way is refused."""

    def check(subject: Subject) -> Finding:
        images = WRONG_INPUTS[kind](subject.images)
        refused, said = _refusal(lambda: subject.session.infer(images))  # type: ignore[arg-type]
        held = refused and str(images.shape) in said and str(images.dtype) in said
        promise = f"images of another {kind} are refused, with what was found"
        return Finding(f"refuses_{kind}", promise, held, detail=said)

    check.__doc__ = f"Images of another {kind}."
    return check


def closed(subject: Subject) -> Finding:
    """Calls to a session that was closed."""
    with subject.reopen() as session:
        session.close()
        uses: dict[str, Callable[[], object]] = {
            "infer": lambda: session.infer(subject.images),
            "prepare": lambda: session.prepare(subject.images),
            "inspect": session.inspect,
        }
        answers = {name: _refusal(use) for name, use in uses.items()}
    others = [f"{name} {said}" for name, (refused, said) in answers.items() if not refused]
    return Finding("closed", "a closed session refuses", not others, detail="; ".join(others))


def closing_frees(subject: Subject) -> Finding:
    """Memory after a session was opened, used and closed again and again; the first times fill the runtime's pools.

    It is the process's own and, where the engine runs on one, what of the accelerator is in use: what the session
    itself says that it holds is nothing that it could have left behind.

    Raises:
        Missing: one of them is not known.
    """
    used = [_used_after_a_session(subject) for _ in range(REOPENINGS)]
    bound = subject.file.stat().st_size / 2
    promise = f"closing a session frees its memory, {REOPENINGS} times"

    def growth(held: Sequence[int]) -> float:
        return float(np.median(np.diff(held)[-REOPENINGS // 2 :]))

    return _by_memory(
        subject, lambda grown: measured("closing_frees", promise, grown, bound, "bytes a session"), growth, used
    )


def memory_growth(subject: Subject) -> Finding:
    """Memory over many inferences of one image: median of the last third less that of the middle.

    Raises:
        Missing: that of the process, or of the accelerator that the engine runs on, is not known.
    """
    calls = MANY_CALLS if subject.images[0, 0].size <= SMALL_IMAGE else FEW_CALLS
    used = []
    with _lightest(subject) as (session, images):
        for _ in range(calls):
            session.infer(images)
            used.append(_used(subject))
    third, bound = calls // 3, LEAKED * _call_bytes(subject) * len(images) / len(subject.images)
    promise = f"memory does not grow over {calls} inferences"

    def growth(held: Sequence[int]) -> float:
        return float(np.median(held[-third:]) - np.median(held[-2 * third : -third])) / third

    return _by_memory(
        subject, lambda grown: measured("memory_growth", promise, grown, bound, "bytes an inference"), growth, used
    )


def portable(subject: Subject) -> Finding:
    """The engine file, copied to another folder and opened in another process."""
    promise = "the engine file gives the same outputs in another folder and process"
    wanted = subject.first(subject.images)
    with _copy(subject.file) as copy:
        return _elsewhere(subject, "portable", promise, copy, wanted)


def truncated(subject: Subject) -> Finding:
    """The first half of the engine file."""
    return _file_refused(subject, "truncated", "an engine file that was cut short", lambda data: data[: len(data) // 2])


def foreign(subject: Subject) -> Finding:
    """A file of the same size that holds something else."""
    content = b"no engine of any runtime\n"
    return _file_refused(subject, "foreign", "a file that is no engine", lambda data: content * (len(data) // 25 + 1))


CHECKS: Mapping[str, Check] = {
    **{check.__name__: check for check in (interface, finite, nan_input)},
    **{f"refuses_{kind}": refusal(kind) for kind in WRONG_INPUTS},
    **{check.__name__: check for check in (closed, closing_frees, memory_growth, portable, truncated, foreign)},
}


def _refusal(use: Callable[[], object]) -> tuple[bool, str]:
    """Whether a use is refused with an `EngineError`, and what it said; any other error is none of ours."""
    try:
        use()
    except EngineError as error:
        return True, error.cause
    except Exception as error:  # noqa: BLE001  whatever a runtime raises is what its caller would have to look at
        return False, f"raised {type(error).__name__}: {first_line(error)}"
    return False, "accepted"


@contextmanager
def _lightest(subject: Subject) -> Iterator[tuple[Session, Images]]:
    """The engine for one image where that can be built, else the one that is open; with images for it."""
    try:
        alone = subject.single()
    except Missing:
        yield subject.session, subject.images
        return
    with alone as session:
        yield session, subject.images[:1]


class Used(NamedTuple):
    """Bytes in use: of this process, and of the accelerator by whatever process; None where none tells."""

    host: int
    device: int | None


def _used(subject: Subject) -> Used:
    return Used(_resident_bytes(), None if subject.device_bytes is None else subject.device_bytes())


def _used_after_a_session(subject: Subject) -> Used:
    with subject.reopen() as session:
        session.infer(subject.images)
    del session  # and with it what only the garbage collector would let go of
    gc.collect()
    return _used(subject)


def _by_memory(
    subject: Subject,
    finding: Callable[[float], Finding],
    growth: Callable[[Sequence[int]], float],
    used: Sequence[Used],
) -> Finding:
    """By this process's memory; where that holds, by the accelerator's, which others than the engine may have grown.

    Raises:
        Missing: there is an accelerator, and it does not tell.
    """
    host = finding(growth([one.host for one in used]))
    if not host.held or subject.device_bytes is None:
        return host
    device = [one.device for one in used if one.device is not None]
    if len(device) < len(used):
        raise Missing(
            "the engine does not tell how much of its device's memory is in use",
            "implement `device_bytes` of the engine, where its runtime has it",
        )
    found = finding(growth(device))
    return found if found.held else replace(found, doubt="on the device, where others count too: repeat it alone there")


def _call_bytes(subject: Subject) -> int:
    """What goes in and out of one call."""
    return int(subject.images.nbytes + sum(4 * np.prod(shape) for shape in subject.shapes.values()))


def _resident_bytes() -> int:
    """Of this process, without what its allocator keeps for later: that goes up and down by more than a session has.

    Raises:
        Missing: this system does not tell.
    """
    if not STATM.exists():
        raise Missing(f"this system has no {STATM}: the process's memory is not known", "check this on Linux")
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _copy(file: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="detgate-") as folder:
        yield Path(shutil.copy(file, Path(folder) / file.name))


def _elsewhere(subject: Subject, check: str, promise: str, file: Path, wanted: Maps) -> Finding:
    try:
        return same_outputs(subject, check, promise, wanted, subject.elsewhere(file))
    except BrokenProcessPool:
        return Finding(check, promise, held=False, detail="the process died")


def _file_refused(subject: Subject, check: str, what: str, change: Callable[[bytes], bytes]) -> Finding:
    promise = f"{what} is refused"
    with _copy(subject.file) as copy:
        copy.write_bytes(change(copy.read_bytes()))
        try:
            subject.elsewhere(copy)
        except DetgateError as error:
            return Finding(check, promise, held=True, detail=f"refused: {error.cause}".replace(str(copy), copy.name))
        except BrokenProcessPool:
            return Finding(check, promise, held=False, detail="the process died")
    return Finding(check, promise, held=False, detail="it was opened and ran")
