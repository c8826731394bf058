"""Takes a pair of runs on their data set; gives the images that changed most, small, with boxes on three sides."""

import base64
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.detect.dataset import Dataset, ImageRecord
from harness.detect.detections import Detections
from harness.judge.previous import Pair
from harness.measure.compare import CONFIDENT, ImageChange
from harness.report.page.shown import Box, Panel, Picture

LONGEST_SIDE = 360
QUALITY = 60
DRAWN_WIDTH = 360
MOST_BOXES = 60
Rows = npt.NDArray[np.int64]


def pictures(pair: Pair, count: int, name: str) -> tuple[Picture, ...]:
    """The `count` images with most confident boxes lost and won; none where a file cannot be read."""
    records = {record.id: record for record in pair.dataset.images}
    wanted = pair.comparison.images[:count]
    made = (_picture(pair, change, records[change.image_id], f"{name}-{at}") for at, change in enumerate(wanted))
    return tuple(picture for picture in made if picture is not None)


def _picture(pair: Pair, change: ImageChange, record: ImageRecord, name: str) -> Picture | None:
    small = thumbnail(record.path)
    if small is None:
        return None
    content, width, height = small
    width, height = DRAWN_WIDTH, round(height * DRAWN_WIDTH / width)  # so that labels are as large on all images
    scale = width / record.width
    truth = _truth(pair.dataset, change.image_id, scale)
    before, after = _sides(pair, change.image_id, scale)
    lost, won = (sum(box.kind == kind for box in side) for kind, side in (("lost", before), ("won", after)))
    panels = (
        _panel("Ground truth", truth, ""),
        _panel("Earlier run", before, f", {lost} lost since"),
        _panel("This run", after, f", {won} new"),
    )
    found = f"{change.boxes} boxes with a score above {CONFIDENT:g} in the earlier run"
    caption = f"{found}: {change.lost} lost, {change.won} new."
    return Picture(name, record.path.name, caption, width, height, _data_url(content), panels)


def _panel(title: str, boxes: tuple[Box, ...], more: str) -> Panel:
    shown = boxes[:MOST_BOXES]
    labels = ", ".join(box.label for box in shown[:12])
    count = f"{len(boxes)} box{'' if len(boxes) == 1 else 'es'}"
    cut = f" (the first {MOST_BOXES} are drawn)" if len(boxes) > MOST_BOXES else ""
    words = f"{title}: {count}{more}{cut}"
    return Panel(words, f"{words}{': ' if labels else ''}{labels}", shown)


def thumbnail(path: Path) -> tuple[bytes, int, int] | None:
    """The image as a small JPEG, with its width and height; None where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue(), small.width, small.height


def _data_url(content: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


# --- boxes


def _sides(pair: Pair, image_id: int, scale: float) -> tuple[tuple[Box, ...], tuple[Box, ...]]:
    """Confident boxes before and after; a partner of one before is drawn whatever its score."""
    matches, names = pair.comparison.matches, _names(pair.dataset)
    sides = []
    for run, kept, kind in (
        (pair.before.detections, matches.before, "lost"),
        (pair.after.detections, matches.after, "won"),
    ):
        partner = np.zeros(len(run), bool)
        partner[kept] = True
        chosen = np.flatnonzero((run.image_id == image_id) & ((run.score > CONFIDENT) | partner))
        order = chosen[np.argsort(-run.score[chosen], kind="stable")]
        sides.append(_boxes(run, order, partner, kind, names, scale))
    return sides[0], sides[1]


def _boxes(
    run: Detections, rows: Rows, partner: npt.NDArray[np.bool_], kind: str, names: dict[int, str], scale: float
) -> tuple[Box, ...]:
    """What changed comes first: it is what is drawn where there are too many."""
    labels = [f"{names[int(run.category_id[row])]} {run.score[row]:.2f}" for row in rows]
    kinds = ["kept" if partner[row] else kind for row in rows]
    found = [_box(run.xywh[row], label, how, scale) for row, label, how in zip(rows, labels, kinds, strict=True)]
    return tuple(sorted(found, key=lambda box: box.kind == "kept"))


def _box(xywh: Any, label: str, kind: str, scale: float) -> Box:
    x, y, width, height = (round(float(value) * scale, 1) for value in xywh)
    return Box(x, y, width, height, label, kind)


def _names(dataset: Dataset) -> dict[int, str]:
    return dict(zip(dataset.category_ids, dataset.category_names, strict=True))


def _truth(dataset: Dataset, image_id: int, scale: float) -> tuple[Box, ...]:
    names = _names(dataset)
    rows = _annotations(dataset.annotation_file).get(image_id, [])
    return tuple(
        _box(row["bbox"], names[row["category_id"]] + (" (crowd)" if row["iscrowd"] else ""), "truth", scale)
        for row in rows
    )


@cache
def _annotations(file: Path) -> dict[int, list[dict[str, Any]]]:
    """By image id; `load_coco` has checked them."""
    found: dict[int, list[dict[str, Any]]] = {}
    for row in json.loads(file.read_text(encoding="utf-8"))["annotations"]:
        found.setdefault(row["image_id"], []).append(row)
    return found
