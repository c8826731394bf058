"""Takes a history; gives the course of each cell's AP and FPS: for a terminal, as Markdown, as JSON, as a picture.

FPS of different devices, batches or engine options are different courses, and so are AP of different data or weights:
figures are joined and compared within a course only. Change points are not looked for: Apache Otava, the tool for it,
wants NumPy 2.2.0 exactly and clients of BigQuery, PostgreSQL and Slack; and a simple rank test takes runs for
independent, which those of one machine are not.
"""

import datetime
import fnmatch
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.environment import differences
from harness.errors import ResultsError, UsageError
from harness.judge.verdict import Status
from harness.report.grid import Format, markdown_table
from harness.report.history import Entry, History

BARS = "▁▂▃▄▅▆▇█"
LAST = 12
PICTURES = (".png", ".svg")
# The least height of a picture, so that noise does not look like a cliff: absolute AP, and a fraction of FPS.
LEAST_SPAN = {"AP": 0.005, "FPS": 0.1}


@dataclass(frozen=True)
class Point:
    """A figure of one run: AP, or images per second."""

    time: datetime.datetime
    value: float
    status: Status
    baselines_commit: str | None


@dataclass(frozen=True)
class Course:
    """Figures of one cell that may be compared, oldest first.

    measured_on: what they have in common. since: the first run of all, also where only later ones are kept.
    left_out: runs that were INVALID, whose figures mean nothing.
    """

    cell: str
    figure: Literal["AP", "FPS"]
    measured_on: str
    fingerprint: str | None
    device: dict[str, Any]
    since: datetime.datetime
    points: tuple[Point, ...]
    left_out: int

    @property
    def change(self) -> float | None:
        """From the run before to the last: absolute AP, or a fraction of FPS."""
        if len(self.points) < 2:
            return None
        before, last = self.points[-2].value, self.points[-1].value
        return last - before if self.figure == "AP" else last / before - 1

    def shown(self, value: float) -> str:
        """A figure of this course with its digits."""
        return f"{value:.4f}" if self.figure == "AP" else f"{value:.2f}"

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        points = [
            {**vars(point), "time": point.time.isoformat(), "status": point.status.value} for point in self.points
        ]
        return {**vars(self), "since": self.since.isoformat(), "points": points, "change": self.change}


def courses(entries: Sequence[Entry], cells: Sequence[str] = (), last: int = LAST) -> list[Course]:
    """The courses of the cells that any pattern matches (all without one), of the last runs each, by cell.

    Raises:
        UsageError: a pattern matches no cell.
    """
    found: dict[tuple[Any, ...], Course] = {}
    known = sorted({entry.cell for entry in entries})
    for pattern in cells:
        if not fnmatch.filter(known, pattern):
            raise UsageError(f"--cell '{pattern}' matches nothing; known: {', '.join(known)}", "choose from that list")
    for entry in sorted(entries, key=lambda entry: entry.time):
        if not cells or any(fnmatch.fnmatchcase(entry.cell, pattern) for pattern in cells):
            for key, course in filter(None, (_accuracy(entry), _speed(entry))):
                old = found.get(key)
                found[key] = course if old is None else _joined(old, course)
    kept = [replace(course, points=course.points[-last:]) for course in found.values() if course.points]
    return sorted(kept, key=lambda course: (course.cell, course.figure))


def _joined(old: Course, new: Course) -> Course:
    return replace(old, points=old.points + new.points, left_out=old.left_out + new.left_out)


def _accuracy(entry: Entry) -> tuple[tuple[Any, ...], Course] | None:
    part, data = entry.accuracy, entry.dataset
    if part is None or part.map_50_95 is None or data is None:
        return None
    key = ("AP", entry.cell, data.sha256, entry.artifacts.weights, entry.start)
    return key, _course(entry, "AP", f"{data.images} of {data.name}{_start(entry)}", part.map_50_95, part.status)


def _speed(entry: Entry) -> tuple[tuple[Any, ...], Course] | None:
    part = entry.performance
    if part is None or part.fps is None:
        return None
    options = tuple(sorted(entry.options.items()))
    timer = part.given.get("--benchmark-timer")
    key = ("FPS", entry.cell, entry.fingerprint, entry.batch, options, entry.start, timer)
    words = [
        f"batch {entry.batch} on {entry.fingerprint}{_start(entry)}",
        *(f"{name}={value}" for name, value in options),
    ]
    return key, _course(entry, "FPS", ", ".join(words), part.fps, part.status)


def _start(entry: Entry) -> str:
    return "" if entry.start == "checkpoint" else f", {str(entry.start).upper()}"


def _course(entry: Entry, figure: Literal["AP", "FPS"], measured_on: str, value: float, status: Status) -> Course:
    point = Point(entry.time, value, status, entry.baselines_commit)
    valid = status is not Status.INVALID
    speed = figure == "FPS"
    return Course(
        cell=entry.cell,
        figure=figure,
        measured_on=measured_on,
        fingerprint=entry.fingerprint if speed else None,
        device=dict(entry.device) if speed else {},
        since=entry.time,
        points=(point,) if valid else (),
        left_out=int(not valid),
    )


def sparkline(values: Sequence[float]) -> str:
    """One bar a value, from the lowest to the highest; equal values are half as high as can be."""
    low, reach = min(values), max(values) - min(values)
    steps = [round((value - low) / reach * (len(BARS) - 1)) if reach else len(BARS) // 2 - 1 for value in values]
    return "".join(BARS[step] for step in steps)


def _change(course: Course) -> str:
    if course.change is None:
        return "–"
    return f"{course.change:+.4f}" if course.figure == "AP" else f"{course.change:+.1%}"


def _columns(course: Course) -> list[str]:
    values = [point.value for point in course.points]
    last = course.points[-1]
    bounds = f"{min(values):.4g}..{max(values):.4g}"
    return [
        course.figure,
        course.shown(last.value),
        _change(course),
        last.status.value,
        f"{len(values)}",
        bounds,
        sparkline(values),
        course.measured_on + (f", {course.left_out} INVALID" if course.left_out else ""),
    ]


HEADINGS = ("figure", "last", "change", "verdict", "runs", "range", "course", "measured on")


def other_devices(found: Sequence[Course], cell: str) -> list[str]:
    """Where the cell's FPS were measured on several devices: in what each differs from the one before it."""
    told = []
    speeds = [course for course in found if (course.cell, course.figure) == (cell, "FPS")]
    for one, other in itertools.pairwise(sorted(speeds, key=lambda course: course.since)):
        if one.fingerprint != other.fingerprint:
            changed = "; ".join(differences(one.device, other.device)) or "fields that are not in this file"
            told.append(f"{other.since.date()}: another device, FPS not compared: {other.fingerprint} ({changed})")
    return told


def as_text(found: Sequence[Course]) -> str:
    """A heading for each cell, a line for each of its courses, and where the device changed."""
    rows = [_columns(course) for course in found]
    widths = [max(len(row[place]) for row in (*rows, HEADINGS)) for place in range(len(HEADINGS))]
    lines = [_aligned(HEADINGS, widths)]
    for cell in dict.fromkeys(course.cell for course in found):
        own = [_aligned(row, widths) for course, row in zip(found, rows, strict=True) if course.cell == cell]
        lines += [cell, *own, *(f"  {line}" for line in other_devices(found, cell))]
    return "\n".join(lines)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    to_the_right = {1, 2, 4}
    cells = [
        cell.rjust(width) if place in to_the_right else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return f"  {'  '.join(cells)}".rstrip()


def render(history: History, found: Sequence[Course], form: Format) -> str:
    """The courses in one of three forms; lines of the file that could not be read are in the JSON too."""
    if form == "json":
        import json

        content = {"schema": 1, "courses": [course.as_json() for course in found], "skipped": history.skipped}
        return json.dumps(content, indent=1)
    if form == "markdown":
        table = markdown_table(("cell", *HEADINGS), [[course.cell, *_columns(course)] for course in found])
        cells = dict.fromkeys(course.cell for course in found)
        return "\n\n".join([table, *(f"{cell}, {line}" for cell in cells for line in other_devices(found, cell))])
    return as_text(found)


def plot(found: Sequence[Course], path: Path) -> None:
    """A picture: a row for each cell, AP to the left and FPS to the right; a line for each course, never joined.

    Raises:
        UsageError: it is to be neither SVG nor PNG.
        ResultsError: it cannot be written.
    """
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"--plot {path}: wanted {' or '.join(PICTURES)}, found '{path.suffix}'", "name such a file")
    from matplotlib.figure import Figure

    cells = list(dict.fromkeys(course.cell for course in found))
    figure = Figure(figsize=(11, 0.6 + 2.4 * len(cells)), layout="constrained")
    grid = figure.subplots(len(cells), 2, squeeze=False)
    for row, cell in enumerate(cells):
        for column, name in enumerate(("AP", "FPS")):
            own = [course for course in found if (course.cell, course.figure) == (cell, name)]
            _draw(grid[row, column], cell, name, own)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}", "give a writable path: --plot FILE") from error


def _draw(axes: Any, cell: str, name: str, own: Sequence[Course]) -> None:
    from matplotlib import dates

    axes.set_title(f"{cell}  {name}", fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    if not own:
        axes.text(0.5, 0.5, f"no {name} in this history", ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    earliest = min(course.points[0].time for course in own)
    for place, course in enumerate(sorted(own, key=lambda course: course.since)):
        times, values = [p.time for p in course.points], [p.value for p in course.points]
        axes.plot(times, values, "o-", markersize=3.5, linewidth=1, color=f"C{place}", label=course.measured_on)
        bad = [point for point in course.points if point.status is Status.REGRESSED]
        if bad:
            axes.plot([p.time for p in bad], [p.value for p in bad], "x", markersize=8, color="red", label="REGRESSED")
        if place and course.since > earliest:  # another device, data set or weights from here on
            axes.axvline(course.since, color="grey", linestyle=":", linewidth=1)
    locator = dates.AutoDateLocator(maxticks=7)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.ticklabel_format(axis="y", useOffset=False)
    low, high = axes.get_ylim()
    span = LEAST_SPAN[name] * (high if name == "FPS" else 1)
    room = max(span - (high - low), 0.25 * (high - low)) / 2
    axes.set_ylim(low - room, high + room)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="best")
