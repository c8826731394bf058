"""What the page shows, in the order in which it is read: plain text and ready markup, no figure left to be computed."""

from dataclasses import dataclass, field

from harness.judge.verdict import Status

MOST_LABELS = 10


@dataclass(frozen=True)
class Finding:
    """A cell that the run is red for: what it lost, where, whether to believe it."""

    anchor: str
    cell: str
    status: Status
    lost: str
    where: str
    believe: str


@dataclass(frozen=True)
class Tile:
    """A cell in the matrix; `status` is None where the run has no such cell. `known`: it may fail, it is known to."""

    status: Status | None
    anchor: str
    label: str
    figures: tuple[str, ...]
    fails: bool = False
    known: bool = False


@dataclass(frozen=True)
class MatrixRow:
    """A model in one precision; `span` is how many rows the model has where this is its first, else 0."""

    model: str
    precision: str
    span: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Matrix:
    """Models and precisions by engines."""

    engines: tuple[str, ...]
    rows: tuple[MatrixRow, ...]


@dataclass(frozen=True)
class Absent:
    """Cells that lack the same thing, and the command that mends it."""

    anchor: str
    cells: str
    checks: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class FigureRow:
    """One figure of a cell beside what it is held to and what it was; "–" where there is none."""

    name: str
    found: str
    expected: str
    tolerance: str
    margin: str
    before: str
    change: str
    interval: str
    status: Status | None


@dataclass(frozen=True)
class Bar:
    """A line of a bar table: shares are of the whole width, 0 to 1; `before` is None where there is none."""

    name: str
    value: str
    share: float
    before: str | None = None
    before_share: float | None = None
    change: str = ""


@dataclass(frozen=True)
class Bars:
    """A table of bars; `rest` is shown on demand."""

    title: str
    unit: str
    shown: tuple[Bar, ...]
    rest: tuple[Bar, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A drawing: SVG that takes its colours from the page, what it shows in a sentence, and a caption."""

    svg: str
    alternative: str
    caption: str


@dataclass(frozen=True)
class Box:
    """A box in pixels of the panel; `kind` is truth, kept, lost or won."""

    x: float
    y: float
    width: float
    height: float
    label: str
    kind: str


@dataclass(frozen=True)
class Panel:
    """The image with the boxes of one side."""

    title: str
    alternative: str
    boxes: tuple[Box, ...]

    @property
    def labelled(self) -> tuple[Box, ...]:
        """What is named in the picture: what was lost or is new, or ground truth; as many as can be read."""
        return tuple(box for box in self.boxes if box.kind != "kept")[:MOST_LABELS]


@dataclass(frozen=True)
class Picture:
    """An image that changed, `width` by `height` pixels, and its three sides; `href` is a data: URL."""

    id: str
    name: str
    caption: str
    width: int
    height: int
    href: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Check:
    """A check of a list: the earlier run's, or conformance's."""

    name: str
    status: Status
    reason: str


@dataclass(frozen=True)
class Part:
    """A kind of check of a cell: its verdict in words."""

    name: str
    status: Status
    fails: bool
    reason: str
    known: str
    remedy: str


@dataclass(frozen=True)
class CellView:
    """The section of a cell; lists are empty, and texts "", where the run has nothing of the kind."""

    anchor: str
    id: str
    status: Status
    fails: bool
    known: bool
    summary: str
    finding: Finding | None
    parts: tuple[Part, ...]
    figures: tuple[FigureRow, ...]
    charts: tuple[Chart, ...] = ()
    bars: tuple[Bars, ...] = ()
    pictures: tuple[Picture, ...] = ()
    pictures_note: str = ""
    previous: tuple[Check, ...] = ()
    previous_note: str = ""
    conformance: tuple[Check, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a results file was measured."""

    file: str
    device: str
    fingerprint: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Page:
    """All of it. `verdict` is the first thing read, `tone` the status whose colour it has."""

    verdict: str
    beside: str
    tone: Status
    made: str
    places: tuple[Place, ...]
    findings: tuple[Finding, ...]
    more_findings: int
    matrix: Matrix
    legend: tuple[tuple[Status, str], ...]
    absent: tuple[Absent, ...]
    cells: tuple[CellView, ...]
    notes: tuple[str, ...] = field(default=())
