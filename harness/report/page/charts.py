"""Takes curves, latencies, courses and hops of a cell; gives its charts, each with what it shows in words."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from harness.judge.verdict import Status
from harness.measure.curves import Curves
from harness.report.course import LEAST_SPAN, Course, Point
from harness.report.page.shown import Chart
from harness.report.page.sources import Source
from harness.report.page.svg import INK, as_svg, settings
from harness.report.page.tables import precision_at
from harness.report.results import PerformanceResult, StageResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (4.1, 2.9)
IOUS: tuple[tuple[str, float | None], ...] = (("IoU 0.5:0.95", None), ("IoU 0.5", 0.5), ("IoU 0.75", 0.75))
DASHES = ("solid", (0, (4, 1.5)), (0, (1.2, 1.2)))
LEAST_ERROR = 1e-9
STEP_PERCENT = 5


def charts(source: Source, name: str) -> tuple[Chart, ...]:
    """All that the cell has figures for; `name` is unique on the page."""
    cell, found = source.cell, []
    now = source.now.curves if source.now else None
    before = source.before.curves if source.before else None
    if now is not None:
        found.append(precision_recall(now, before, f"{name}-pr"))
    if cell.performance is not None and cell.performance.latency_steps_ms:
        found.append(latency(cell.performance, f"{name}-ms"))
    for figure in ("AP", "FPS"):
        own = [course for course in source.history if course.figure == figure]
        if own and sum(len(course.points) for course in own) > 1:
            found.append(course_of(own, f"{name}-{figure.lower()}"))
    if cell.stages:
        found.append(stages(cell.stages, f"{name}-stages"))
    return tuple(found)


@contextmanager
def _axes() -> Iterator["Axes"]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(settings()):  # type: ignore[arg-type]  # of literals that only matplotlib names
        yield Figure(figsize=SIZE, layout="constrained").subplots()


def _chart(draw: Callable[["Axes"], None], name: str, alternative: str, caption: str) -> Chart:
    with _axes() as axes:
        draw(axes)
        svg = as_svg(axes.figure, name)  # type: ignore[arg-type]  # of the Figure that `_axes` made
    return Chart(svg.replace("{{ALT}}", escape(alternative), 1), alternative, caption)


def precision_recall(now: Curves, before: Curves | None, name: str) -> Chart:
    """Mean over classes, at three IoUs; the earlier run's beside them."""
    lines = [(label, precision_at(now, iou), precision_at(before, iou) if before else ()) for label, iou in IOUS]

    def draw(axes: "Axes") -> None:
        for dash, (label, new, old) in zip(DASHES, lines, strict=True):
            if old and before is not None:
                axes.plot(before.recall_thresholds, old, color=INK["before"], linestyle=dash, linewidth=1.3)
            axes.plot(now.recall_thresholds, new, color=INK["now"], linestyle=dash, linewidth=1.8, label=label)
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(IOUS))

    means = ", ".join(f"at {label} {sum(new) / max(len(new), 1):.3f}" for label, new, _ in lines)
    old = ", ".join(f"at {label} {sum(old) / len(old):.3f}" for label, _, old in lines if old)
    beside = f"; the earlier run's: {old}" if old else ""
    caption = "Precision over recall, mean over classes." + (" Orange: the earlier run." if old else "")
    return _chart(draw, name, f"Precision over recall, mean over classes. Mean precision {means}{beside}.", caption)


def latency(part: PerformanceResult, name: str) -> Chart:
    """How many of the timed calls took at most how long."""
    steps = part.latency_steps_ms
    shares = [place * STEP_PERCENT for place in range(len(steps))]
    middle = steps[len(steps) // 2]

    def draw(axes: "Axes") -> None:
        axes.plot(steps, shares, color=INK["now"], linewidth=1.8)
        axes.axvline(middle, color=INK["faint"], linestyle=":", linewidth=1.2)
        axes.annotate(f"median {middle:.1f} ms", (middle, 4), (4, 0), textcoords="offset points", fontsize=8.5)
        axes.set(xlabel="milliseconds of a call", ylabel="% of calls", ylim=(0, 102))

    words = f"of {part.rounds} calls half took at most {middle:.2f} ms, 90 % {steps[-3]:.2f} ms, all {steps[-1]:.2f} ms"
    caption = f"How long a call takes: {words.partition(',')[2].strip()}."
    return _chart(draw, name, f"Time of a call: {words}; the shortest {steps[0]:.2f} ms.", caption)


def course_of(own: Sequence[Course], name: str) -> Chart:
    """A line for each course: figures that may not be compared are never joined."""
    figure, last = own[0].figure, max((course.points[-1] for course in own), key=lambda point: point.time)

    def draw(axes: "Axes") -> None:
        for place, course in enumerate(sorted(own, key=lambda course: course.since)):
            _draw_course(axes, course, ("now", "other", "before")[place % 3], DASHES[place % 3])
        _dates(axes)
        _not_a_cliff(axes, figure)
        axes.set_ylabel("mAP@0.5:0.95" if figure == "AP" else "FPS")
        if len(own) > 1:
            axes.legend(loc="best", fontsize=7)

    runs = sum(len(course.points) for course in own)
    values = [point.value for course in own for point in course.points]
    shown = own[0].shown
    words = f"{runs} runs, from {shown(min(values))} to {shown(max(values))}, the last {shown(last.value)}"
    bad = sum(point.status is Status.REGRESSED for course in own for point in course.points)
    words += f", {bad} REGRESSED (crosses)" if bad else ""
    return _chart(draw, name, f"History of {figure}: {words}.", f"History of {figure}: {words}.")


def _draw_course(axes: "Axes", course: Course, colour: str, dash: Any) -> None:
    from matplotlib.dates import date2num

    def points(chosen: Sequence[Point]) -> tuple[Any, list[float]]:
        return date2num([point.time for point in chosen]), [point.value for point in chosen]  # type: ignore[no-untyped-call]

    style = {"linestyle": dash, "color": INK[colour], "markersize": 4, "linewidth": 1.2}
    axes.plot(*points(course.points), "o", label=course.measured_on, **style)
    bad = [point for point in course.points if point.status is Status.REGRESSED]
    if bad:
        axes.plot(*points(bad), "X", color=INK["bad"], markersize=8)


def _dates(axes: "Axes") -> None:
    from matplotlib import dates

    locator = dates.AutoDateLocator(minticks=2, maxticks=4)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def _not_a_cliff(axes: "Axes", figure: str) -> None:
    """Room around the line, so that noise does not look like a fall."""
    axes.ticklabel_format(axis="y", useOffset=False)
    low, high = axes.get_ylim()
    room = max(LEAST_SPAN[figure] * (high if figure == "FPS" else 1) - (high - low), 0.2 * (high - low)) / 2
    axes.set_ylim(low - room, high + room)


def stages(hops: Sequence[StageResult], name: str) -> Chart:
    """Relative error of each hop on a logarithmic scale, beside what its step explains."""
    known = [hop for hop in hops if hop.relative is not None]
    names = [hop.name for hop in reversed(known)]
    errors = [max(hop.relative or 0.0, LEAST_ERROR) for hop in reversed(known)]
    allowed = [hop.tolerance for hop in reversed(known)]

    def draw(axes: "Axes") -> None:
        rows = list(range(len(names)))
        beyond = [error > bound for error, bound in zip(errors, allowed, strict=True)]
        colours = [INK["bad"] if bad else INK["now"] for bad in beyond]
        axes.barh(rows, errors, left=LEAST_ERROR, color=colours, height=0.5)
        axes.plot(allowed, rows, "|", color=INK["ink"], markersize=16, markeredgewidth=2, label="tolerance")
        axes.set_yticks(rows, names)
        axes.set(xscale="log", xlim=(LEAST_ERROR, 10), xlabel="relative L2 error of the worst output")
        axes.xaxis.set_major_formatter(lambda value, _place: f"{value:.0e}".replace("e-0", "e-").replace("e+00", ""))
        axes.xaxis.set_minor_formatter(lambda _value, _place: "")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16))

    words = "; ".join(_hop(hop) for hop in hops)
    return _chart(draw, name, f"Error of each stage: {words}.", "What each stage costs, and its tolerance.")


def _hop(hop: StageResult) -> str:
    if hop.broken or hop.relative is None:
        return f"{hop.name}: {hop.broken or 'not comparable'}"
    return f"{hop.name} {hop.relative:.2g}, tolerance {hop.tolerance:g}"
