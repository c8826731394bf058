"""Takes a cell's record and the earlier run's; gives what changed: AP with its interval, classes, checks, the pair."""

from dataclasses import dataclass
from math import isclose
from pathlib import Path

from harness.detect.dataset import Dataset
from harness.errors import DetgateError
from harness.judge.accuracy import METRICS, Metric
from harness.judge.previous import Pair, judge_all
from harness.judge.verdict import Verdict
from harness.measure.curves import ABSENT
from harness.report.compare import MANY_IMAGES, Change, ClassChange, pair_of, provenance
from harness.report.page.sources import Source
from harness.report.results import AgainstResult

Sets = dict[tuple[str, int], Dataset]


@dataclass(frozen=True, eq=False)
class Since:
    """What became of a cell since the earlier run.

    changes: by metric; an interval only where `interval_is_due`. verdicts: of the checks; empty where the results have
    them. pair: None where the data set is not at hand, and `note` says so. provenance: what made the two differs in.
    """

    before: str
    identical: bool
    changes: dict[str, Change]
    classes: tuple[ClassChange, ...]
    verdicts: tuple[Verdict, ...]
    pair: Pair | None
    note: str
    provenance: tuple[str, ...]


def changes_of(sources: tuple[Source, ...], data_dir: Path) -> dict[int, Since]:
    """By the place of the source: what changed of every cell that both runs recorded."""
    sets: Sets = {}
    pairs = {place: _pair(source, data_dir, sets) for place, source in enumerate(sources) if source.before is not None}
    wanted = {
        place: pair
        for place, pair in pairs.items()
        if isinstance(pair, Pair) and made_by_tests(sources[place]) is None and not _takes_long(pair)
    }
    judged = dict(zip(wanted, judge_all(list(wanted.values())), strict=True))
    return {place: _since(sources[place], pair, tuple(judged.get(place, ()))) for place, pair in pairs.items()}


def made_by_tests(source: Source) -> AgainstResult | None:
    """The checks that the run made itself, with `pytest --against`, where they are of the same earlier run."""
    part, before = source.cell.against, source.before
    if part is None or before is None:
        return part
    check = part.checks.get("map_50_95")
    if check is None or check.expected is None:
        return part
    return part if isclose(check.expected, before.recorded.record.metrics["map_50_95"], abs_tol=1e-9) else None


def _takes_long(pair: Pair) -> bool:
    return len(pair.dataset.images) >= MANY_IMAGES and not pair.comparison.identical


def _pair(source: Source, data_dir: Path, sets: Sets) -> Pair | str:
    """The pair, or why there is none."""
    assert source.before is not None
    assert source.now is not None
    try:
        return pair_of(source.before.recorded, source.now.recorded, data_dir, sets)
    except DetgateError as error:
        return f"{error.cause}; next: {error.remedy}"


def _since(source: Source, pair: Pair | str, verdicts: tuple[Verdict, ...]) -> Since:
    assert source.before is not None
    assert source.now is not None
    before, now = source.before.recorded, source.now.recorded
    found = pair if isinstance(pair, Pair) else None
    return Since(
        before=before.record.id,
        identical=before.detections.identical(now.detections),
        changes={
            metric: Change(before.record.metrics[metric], now.record.metrics[metric], _interval(found, metric, source))
            for metric in METRICS
        },
        classes=_classes(source),
        verdicts=verdicts,
        pair=found,
        note="" if isinstance(pair, Pair) else pair,
        provenance=provenance(before.record, now.record),
    )


def _interval(pair: Pair | None, metric: Metric, source: Source) -> tuple[float, float] | None:
    """As in the tests, only where a verdict depends on it: the change is its margin or more; nor one of minutes."""
    made = made_by_tests(source)
    if made is not None:
        return made.checks[metric].interval if metric in made.checks else None
    if pair is None or _lacks_images(pair) or pair.comparison.identical:
        return None
    if abs(pair.comparison.change(metric)) < getattr(pair.margins, metric):
        return None
    if len(pair.dataset.images) >= MANY_IMAGES:
        return None
    return pair.comparison.differences[metric].interval()


def _lacks_images(pair: Pair) -> bool:
    wanted = {image.id for image in pair.dataset.images}
    runs = pair.before.detections, pair.after.detections
    return any(wanted != set(run.images.tolist()) or not len(run) for run in runs)


def _classes(source: Source) -> tuple[ClassChange, ...]:
    """AP of the classes of both runs' curves that have ground truth."""
    before, now = source.before and source.before.curves, source.now and source.now.curves
    if not before or not now or before.class_names != now.class_names:
        return ()
    rows = zip(now.class_names, before.average_precision[:, 0], now.average_precision[:, 0], strict=True)
    return tuple(ClassChange(name, float(old), float(new)) for name, old, new in rows if min(old, new) != ABSENT)
