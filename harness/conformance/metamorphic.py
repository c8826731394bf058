"""Takes a `Subject`; gives findings that need no ground truth: how outputs must follow when the images change.

Outputs are the raw head maps, before decoding; a figure is the worst output's, unless it says otherwise.
"""

import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from harness.conformance.finding import Finding, measured
from harness.conformance.subject import Images, Maps, Session, Subject
from harness.detect.detections import Detections
from harness.errors import DetgateError, Missing
from harness.measure.compare import CONFIDENT, match
from harness.model.parity import deviations
from harness.model.registry import Precision
from harness.tolerances import RELATIONS

Check = Callable[[Subject], Finding]


BRIGHTER = 16
"""Levels of 255: less than that is lost among the steps of int8."""
CONCURRENT_CALLS = 3
RELATIVE = "relative L2 error"


def equal_rows(subject: Subject) -> Finding:
    """One image in every row of a batch."""
    _require_rows(subject)
    found = subject.session.infer(np.repeat(subject.images[:1], len(subject.images), axis=0))
    first = {name: np.repeat(maps[:1], len(maps), axis=0) for name, maps in found.items()}
    return same_outputs(subject, "equal_rows", "equal images in one batch give equal outputs", first, found, rows=True)


def permuted_rows(subject: Subject) -> Finding:
    """The rows of a batch, moved on by one."""
    _require_rows(subject)
    wanted = _rolled(subject.first(subject.images))
    found = subject.session.infer(np.roll(subject.images, 1, axis=0))
    return same_outputs(
        subject, "permuted_rows", "images in another order give the same outputs", wanted, found, rows=True
    )


def padding(subject: Subject) -> Finding:
    """A last batch that is half full."""
    _require_rows(subject)
    kept = len(subject.images) // 2
    wanted = _rows(subject.first(subject.images), kept)
    padded = subject.images.copy()
    padded[kept:] = 0
    found = _rows(subject.session.infer(padded), kept)
    return same_outputs(
        subject, "padding", "a padded last batch gives its images the same outputs", wanted, found, rows=True
    )


def batch_of_one(subject: Subject) -> Finding:
    """The engine built for one image, image by image."""
    _require_rows(subject)
    with subject.single() as session:
        alone = [_copied(session.infer(image[None])) for image in subject.images]
    wanted = {name: np.concatenate([maps[name] for maps in alone]) for name in alone[0]}
    found = subject.first(subject.images)
    promise = "built for one image it computes what each row of a batch gives"
    return same_outputs(subject, "batch_of_one", promise, wanted, found, rows=True)


def run_again(subject: Subject) -> Finding:
    """The same batch with another one between."""
    wanted = subject.first(subject.images)
    subject.session.infer(_other(subject.images))
    found = subject.session.infer(subject.images)
    return same_outputs(subject, "run_again", "the same images again give the same outputs", wanted, found)


def given_away(subject: Subject) -> Finding:
    """Outputs of a call, looked at after the next one."""
    given = subject.session.infer(subject.images)
    wanted = _copied(given)
    subject.session.infer(_other(subject.images))
    promise = "a call leaves the outputs of the one before alone"
    return measured("given_away", promise, _distance(wanted, given), 0, RELATIVE)


def reopened(subject: Subject) -> Finding:
    """The same file, opened again."""
    wanted = subject.first(subject.images)
    with subject.reopen() as again:
        found = _copied(again.infer(subject.images))
    return same_outputs(subject, "reopened", "the same file opened again gives the same outputs", wanted, found)


def another_thread(subject: Subject) -> Finding:
    """The session called in a thread that did not open it."""
    wanted = subject.first(subject.images)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: _copied(subject.session.infer(subject.images))).result()
    return same_outputs(subject, "another_thread", "another thread gets the same outputs", wanted, found)


def second_session(subject: Subject) -> Finding:
    """Two sessions of the file at work at once, each in a thread of its own, on different images."""
    batches = subject.images, _other(subject.images)
    wanted = subject.first(batches[0]), _copied(subject.session.infer(batches[1]))
    start = threading.Barrier(2)

    def work(session: Session, images: Images, alone: Maps) -> float:
        start.wait()
        return max(_distance(alone, session.infer(images)) for _ in range(CONCURRENT_CALLS))

    with subject.reopen() as second, ThreadPoolExecutor(2) as pool:
        figures = list(pool.map(work, (subject.session, second), batches, wanted))
    promise = "two sessions at work at once give what each gives alone"
    return measured(
        "second_session", promise, max(figures), same_bound(subject.precision, subject.repeatable), RELATIVE
    )


def timed_call(subject: Subject) -> Finding:
    """What the call that is timed leaves in the engine's own memory, and what `infer` gives after it.

    Raises:
        Missing: the runtime does not keep it, or it was there before the call.
    """
    wanted, bound = subject.first(subject.images), same_bound(subject.precision, subject.repeatable)
    subject.session.infer(_other(subject.images))
    call = subject.session.prepare(subject.images)
    before = subject.session.read_back()
    with np.errstate(all="ignore"):  # nothing may have been written there yet
        there = before is not None and _distance(wanted, before) <= bound
    if there:
        raise Missing(
            "what the timed call computes is there before it is called, so that one that does nothing would pass",
            "let `prepare` of the engine's session clear the outputs of what it runs itself",
        )
    call()
    found = subject.session.read_back()
    if found is None:
        raise Missing(
            "what the timed call computes cannot be read back", "implement `read_back` of the engine's session"
        )
    left = _copied(found)
    worst = max((left, subject.session.infer(subject.images)), key=lambda maps: _distance(wanted, maps))
    promise = "the call that is timed computes what inference gives, before it and after"
    return same_outputs(subject, "timed_call", promise, wanted, worst)


def mirrored_boxes(subject: Subject) -> Finding:
    """Confident boxes without a partner of the same class in the mirrored image."""
    ours, theirs = _asymmetries(subject)
    tolerance = RELATIONS[subject.precision].mirrored
    promise = "mirrored images give mirrored boxes, as many as fp32's"
    return measured("mirrored_boxes", promise, ours.lost, theirs.lost + tolerance, "of the boxes lost")


def mirrored_aside(subject: Subject) -> Finding:
    """How far the median box lies aside of its mirrored partner: a shift to one side shows twice."""
    ours, theirs = _asymmetries(subject)
    promise = "boxes of mirrored images lie no further aside than fp32's"
    figure, tolerance = abs(ours.aside - theirs.aside), RELATIONS[subject.precision].aside
    return measured("mirrored_aside", promise, figure, tolerance, "of a box's width")


def brighter(subject: Subject) -> Finding:
    """How far class scores follow a little more light, as a share of what fp32's do."""
    brightened = subject.images + BRIGHTER * subject.step[:, None, None]

    ours = _scores(subject.session.infer(brightened)) - _scores(subject.first(subject.images))
    theirs = _scores(subject.reference(brightened)) - _scores(subject.reference(subject.images))
    size = float(theirs @ theirs)
    share = float(ours @ theirs) / size if size else 0.0
    promise = f"{BRIGHTER} levels more light move the scores as much as fp32's"
    tolerance = RELATIONS[subject.precision].brightness
    return measured("brighter", promise, abs(share - 1), tolerance, "off fp32's", f"{share:.3f} of fp32's movement")


CHECKS: Mapping[str, Check] = {
    check.__name__: check
    for check in (
        equal_rows,
        permuted_rows,
        padding,
        batch_of_one,
        run_again,
        given_away,
        reopened,
        another_thread,
        second_session,
        timed_call,
        mirrored_boxes,
        mirrored_aside,
        brighter,
    )
}


def ask(check: str, ask_subject: Check, subject: Subject) -> Finding:
    """The finding of a check; an engine that fails on the way does not keep the promise.

    Raises:
        Missing: the check cannot be made of this engine here.
    """
    try:
        return ask_subject(subject)
    except Missing:
        raise
    except DetgateError as error:
        promise = " ".join((ask_subject.__doc__ or check).split("\n")[0].split())
        return Finding(check, promise, held=False, detail=f"it failed: {error.cause}")


def same_outputs(subject: Subject, check: str, promise: str, wanted: Maps, found: Maps, rows: bool = False) -> Finding:
    """Outputs for the same images: bit for bit where the engine claims it, else within the precision's tolerance.

    Args:
        rows: the images went through other rows or another batch, for which no engine claims the same bits.
    """
    bound = same_bound(subject.precision, subject.repeatable and not rows)
    return measured(check, promise, _distance(wanted, found), bound, RELATIVE)


def same_bound(precision: Precision, repeatable: bool) -> float:
    """Relative L2 error up to which outputs are the same: none where the engine claims the same bits."""
    return 0.0 if repeatable else RELATIONS[precision].same


def _distance(wanted: Maps, found: Maps) -> float:
    return deviations(wanted, found)[0].relative


def _require_rows(subject: Subject) -> None:
    if len(subject.images) < 2:
        raise Missing("a batch of 1 has no other rows to compare with", "give more: --batch-size 2")


def _copied(maps: Maps) -> Maps:
    """Its own memory: a session may give views of what the next call overwrites, which `given_away` tells."""
    return {name: values.copy() for name, values in maps.items()}


def _rolled(maps: Maps) -> Maps:
    return {name: np.roll(values, 1, axis=0) for name, values in maps.items()}


def _rows(maps: Maps, count: int) -> Maps:
    return {name: values[:count] for name, values in maps.items()}


def _other(images: Images) -> Images:
    """A batch of which no row is that of `images`."""
    return np.ascontiguousarray(images[::-1, :, ::-1])


def _scores(maps: Maps) -> npt.NDArray[np.float64]:
    """Class scores 0 to 1 of all levels, flat."""
    logits = np.concatenate([values.ravel() for name, values in maps.items() if name.startswith("cls")])
    scores: npt.NDArray[np.float64] = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return scores


@dataclass(frozen=True)
class Asymmetry:
    """lost: share of the confident boxes without a mirrored partner. aside: median distance, fraction of the width.

    A detector without confident boxes has lost all, and none lies anywhere.
    """

    lost: float
    aside: float


def _asymmetries(subject: Subject) -> tuple[Asymmetry, Asymmetry]:
    """The engine's own, and that of the model's fp32 graph.

    Raises:
        Missing: fp32 finds no mirrored box either.
    """
    theirs = _asymmetry(subject, subject.reference)
    if theirs.lost == 1:
        raise Missing(
            f"fp32 finds no box with a score over {CONFIDENT} on {len(subject.images)} images and their mirrored ones",
            "give trained weights: put the checkpoint into --checkpoints",
        )
    return _asymmetry(subject, subject.first), theirs


def _asymmetry(subject: Subject, infer: Callable[[Images], Maps]) -> Asymmetry:
    flipped = subject.images.copy()
    for row, geometry in zip(flipped, subject.geometries, strict=True):
        width = geometry.content_width
        row[..., :width] = row[..., :width][..., ::-1].copy()
    before = subject.detect(infer(subject.images))
    after = _flipped(subject, subject.detect(infer(flipped)))
    confident = int(np.count_nonzero(before.score > CONFIDENT))
    pairs = match(before, after)
    if not len(pairs.before):
        return Asymmetry(1, math.nan)
    one, other = before.xywh[pairs.before].astype(np.float64), after.xywh[pairs.after].astype(np.float64)
    shift = (other[:, 0] + other[:, 2] / 2 - one[:, 0] - one[:, 2] / 2) / np.maximum(one[:, 2], 1e-6)
    return Asymmetry(1 - len(one) / confident, float(np.median(shift)))


def _flipped(subject: Subject, found: Detections) -> Detections:
    widths = np.array([geometry.original_width for geometry in subject.geometries], np.float32)[found.image_id]
    boxes = found.xywh.copy()
    boxes[:, 0] = widths - boxes[:, 0] - boxes[:, 2]
    return replace(found, xywh=boxes)
