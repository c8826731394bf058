"""The host's own work beside its peers': decode, preprocess, evaluate, and the overlapped run.

`pytest -m host`; the figures are at the end of the run and in `--benchmark-json`. Nothing is judged here.
"""

import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from fixtures.peers import Beside, seconds_of
from fixtures.rawmaps import coco_like
from fixtures.val2017 import BOXES_FOUND, disturbed, of_the_size_of_val2017
from harness.detect.decode import Decoder, make_decoder
from harness.detect.preprocess import Geometry, preprocess_into, read_image
from harness.detect.run import Images, Maps, load_batch, parts_of, run
from harness.environment import usable_cores
from harness.measure.evaluate import NUMBERS, CocoMetrics, evaluate, evaluate_reference
from harness.model.mmdet import HeadSpec, InputSpec, build_module, describe_head, describe_input, load_config
from harness.model.registry import ModelSpec, load_models
from harness.pipeline import EMBEDDED, Cell, Pipeline

pytestmark = pytest.mark.host

IMAGES = 4
PHOTOGRAPHS = 32
WAITS = (0.5, 1.0, 2.0)
# Images of all rounds of a run together; a data set of its size or more is run once.
IMAGES_TO_RUN = 1000


@dataclass(frozen=True)
class FullSize:
    """One of the published models at its full input size, and mmdet's own module of it."""

    spec: ModelSpec
    config: Any
    module: Any
    head: HeadSpec
    input: InputSpec

    @property
    def decoder(self) -> Decoder:
        return make_decoder(self.head, self.input)

    @property
    def title(self) -> str:
        return f"{self.spec.name} {self.input.height}x{self.input.width}"


@functools.cache
def full_size(name: str) -> FullSize:
    spec = load_models()[name]
    config = load_config(spec)
    return FullSize(
        spec, config, build_module(config).eval(), describe_head(spec, config), describe_input(spec, config)
    )


@pytest.fixture(params=["pisa", "paa"])
def model(request: pytest.FixtureRequest) -> FullSize:
    return full_size(request.param)


# --- decode


@contextmanager
def timed_nms(spent: list[float]) -> Iterator[None]:
    """Collects the seconds inside `mmcv._ext.nms`: where mmcv is not compiled, ours stands in for it, and is slow."""
    from mmcv.ops.nms import ext_module

    nms = ext_module.nms

    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return nms(*arguments, **named)
        finally:
            spent.append(time.perf_counter() - start)

    ext_module.nms = timed
    try:
        yield
    finally:
        ext_module.nms = nms


def mmdets_decode(model: FullSize, maps: Maps, geometries: list[Geometry]) -> float:
    """Seconds of mmdet's `predict_by_feat` without those in `nms`."""
    import torch

    kinds = ("cls", "box", "iou") if model.head.family == "paa" else ("cls", "box")
    tensors = [[torch.from_numpy(maps[f"{kind}_{s}"]) for s in model.head.strides] for kind in kinds]
    metas = [
        {"img_shape": (g.content_height, g.content_width), "scale_factor": (g.scale_x, g.scale_y)} for g in geometries
    ]
    inside: list[float] = []
    with torch.no_grad(), timed_nms(inside):
        start = time.perf_counter()
        found = model.module.bbox_head.predict_by_feat(*tensors, batch_img_metas=metas, rescale=True)
        spent = time.perf_counter() - start
    assert inside
    assert all(len(one.scores) for one in found)
    return spent - sum(inside)


def read_once(maps: Maps) -> float:
    """Sums over all maps; NaN where one holds NaN."""
    import torch

    return float(sum(torch.from_numpy(values).sum() for values in maps.values()))


def geometry_of(model: FullSize) -> Geometry:
    height, width = model.input.height, model.input.width
    return Geometry(height, width, height, width, 1.0, 1.0)


def test_decode_one_image(model: FullSize, beside: Beside) -> None:
    maps = [coco_like(model.head, model.input, seed=seed) for seed in range(IMAGES)]
    geometries, decoder = [geometry_of(model)], model.decoder
    found = [decoder.decode(one, geometries) for one in maps]
    assert all(len(boxes.scores) for (boxes,) in found)
    beside.compare(
        f"decode {model.title}",
        lambda: [decoder.decode(one, geometries) for one in maps],
        {"mmdet without the seconds in nms": lambda: sum(mmdets_decode(model, one, geometries) for one in maps)},
        items=(IMAGES, "image"),
        rounds=10,
        floors={"one read of the maps": seconds_of(lambda: [read_once(one) for one in maps])},
    )


def test_decode_on_all_cores(model: FullSize, beside: Beside) -> None:
    batch = 2 * usable_cores()
    maps, decoder = coco_like(model.head, model.input, batch), model.decoder
    geometries = [geometry_of(model)] * batch
    with ThreadPoolExecutor(usable_cores()) as pool:

        def ours() -> None:
            decoder.check(maps, batch)
            tasks = [pool.submit(decoder.decode_image, maps, row, one) for row, one in enumerate(geometries)]
            assert all(len(task.result().scores) for task in tasks)

        beside.compare(
            f"decode a batch of {batch} {model.title} on {usable_cores()} cores",
            ours,
            {"mmdet without the seconds in nms": lambda: mmdets_decode(model, maps, geometries)},
            items=(batch, "image"),
            rounds=10,
            floors={"one read of the maps": seconds_of(lambda: read_once(maps))},
        )


# --- preprocess


def photographs(config: pytest.Config) -> list[Path]:
    """COCO's where --data-dir has them, else the embedded images."""
    folder: Path = config.getoption("data_dir") / "images" / "val2017"
    found = sorted(folder.glob("*.jpg")) or sorted((EMBEDDED / "data" / "images" / "val2017").glob("*.jpg"))
    return found[:PHOTOGRAPHS]


@contextmanager
def one_core() -> Iterator[None]:
    """OpenCV and torch on one thread each."""
    import torch

    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])


def mmdets_loader(model: FullSize) -> Callable[[Path], npt.NDArray[np.float32]]:
    """mmdet's test pipeline with the engine's input size, and its data preprocessor."""
    from mmcv.transforms import Compose

    steps = [dict(step) for step in model.config.test_pipeline if step["type"] != "LoadAnnotations"]
    resize = next(step for step in steps if step["type"] == "Resize")
    resize.update(scale=(model.input.width, model.input.height), keep_ratio=model.input.keep_ratio)
    compose, preprocessor = Compose(steps), model.module.data_preprocessor

    def load(path: Path) -> npt.NDArray[np.float32]:
        data = compose({"img_path": str(path), "img_id": 0})
        batch = preprocessor({"inputs": [data["inputs"]], "data_samples": [data["data_samples"]]}, False)
        image: npt.NDArray[np.float32] = batch["inputs"][0].numpy()
        return image

    return load


def test_preprocess_on_one_core(model: FullSize, beside: Beside, pytestconfig: pytest.Config) -> None:
    files, load = photographs(pytestconfig), mmdets_loader(model)
    row = np.empty((3, model.input.height, model.input.width), np.float32)
    for file in files[:2]:
        preprocess_into(row, read_image(file), model.input)
        theirs = load(file)
        np.testing.assert_array_equal(row[:, : theirs.shape[1], : theirs.shape[2]], theirs)
    with one_core():
        beside.compare(
            f"preprocess {model.title}",
            lambda: [preprocess_into(row, read_image(file), model.input) for file in files],
            {"mmdet's pipeline": seconds_of(lambda: [load(file) for file in files])},
            items=(len(files), "image"),
        )


# --- evaluate


def test_evaluate_as_many_boxes_as_of_val2017(beside: Beside, tmp_path: Path) -> None:
    dataset = of_the_size_of_val2017(tmp_path)
    detections = disturbed(dataset, BOXES_FOUND)
    ours: list[CocoMetrics] = []
    theirs: list[CocoMetrics] = []
    beside.compare(
        f"evaluate {BOXES_FOUND:,} boxes on {len(dataset.images):,} images",
        lambda: ours.append(evaluate(dataset, detections)),
        {"pycocotools": seconds_of(lambda: theirs.append(evaluate_reference(dataset, detections)))},
        peer_rounds=1,
    )
    assert all(abs(getattr(ours[-1], name) - getattr(theirs[-1], name)) < 1e-12 for name in NUMBERS)


# --- the overlapped run


@dataclass
class Waiting:
    """A session that waits instead of computing, and gives the same maps for every batch."""

    maps: Maps
    seconds: float

    def infer(self, _images: Images) -> Maps:
        time.sleep(self.seconds)
        return self.maps


@dataclass(frozen=True)
class Work:
    """All that a run of one mini model on its data set needs."""

    pipeline: Pipeline
    cell: Cell
    batch: int

    @property
    def images(self) -> int:
        """In the data set."""
        return len(self.pipeline.dataset(self.cell.model).images)

    @property
    def rounds(self) -> int:
        """Runs that are worth their time."""
        return max(1, min(3, IMAGES_TO_RUN // self.images))

    def run(self, session: Any) -> float:
        """Seconds of the run."""
        dataset, model = self.pipeline.dataset(self.cell.model), self.cell.model
        found = run(dataset, session, self.pipeline.input_spec(model), self.pipeline.decoder(model), self.batch)
        assert len(found.detections.images) == len(dataset.images)
        return found.seconds["wall"]

    def stages_alone(self, session: Any) -> dict[str, float]:
        """Seconds of each stage over the whole data set with all cores to itself."""
        dataset, model = self.pipeline.dataset(self.cell.model), self.cell.model
        spec, decoder = self.pipeline.input_spec(model), self.pipeline.decoder(model)
        seconds = dict.fromkeys(("preprocess", "infer", "decode"), 0.0)
        with ThreadPoolExecutor(usable_cores()) as pool:
            for part in parts_of(dataset, self.batch):
                start = time.perf_counter()
                list(pool.map(lambda record: load_batch([record], spec, 1), part))
                middle = time.perf_counter()
                ready = load_batch(part, spec, self.batch)
                before = time.perf_counter()
                maps = session.infer(ready.images)
                after = time.perf_counter()
                decoder.check(maps, len(part))
                rows = range(len(part))
                list(pool.map(functools.partial(decoder.decode_image, maps), rows, ready.geometries))
                end = time.perf_counter()
                seconds["preprocess"] += middle - start
                seconds["infer"] += after - before
                seconds["decode"] += end - after
        return seconds


@pytest.fixture(params=["pisa-mini", "paa-mini"])
def work(request: pytest.FixtureRequest, pipeline: Pipeline) -> Work:
    cell = Cell(request.param, "fp32", "openvino")
    engine = pipeline.engine(cell.engine)
    reason = engine.available()
    if reason:
        pytest.skip(f"{reason}; mend it: {engine.remedy}")
    return Work(pipeline, cell, pipeline.batch(cell))


def test_the_run_beside_its_stages_alone(work: Work, beside: Beside) -> None:
    with work.pipeline.opened(work.pipeline.prepare(work.cell)) as session:
        beside.compare(
            f"run {work.cell.id}",
            lambda: work.run(session),
            {},
            items=(work.images, "image"),
            rounds=work.rounds,
            floors={"its stages one after the other": lambda: sum(work.stages_alone(session).values())},
        )


@pytest.mark.parametrize("factor", WAITS)
def test_the_run_beside_an_engine_that_waits(work: Work, beside: Beside, factor: float) -> None:
    with work.pipeline.opened(work.pipeline.prepare(work.cell)) as session:
        ready = load_batch(
            work.pipeline.dataset(work.cell.model).images[: work.batch],
            work.pipeline.input_spec(work.cell.model),
            work.batch,
        )
        maps = session.infer(ready.images)
    host = min(work.run(Waiting(maps, 0.0)) for _ in range(work.rounds + 1))
    waits = factor * host
    session_that_waits = Waiting(maps, waits / -(-work.images // work.batch))
    beside.compare(
        f"run {work.cell.model} with an engine that waits {factor} x the host's time",
        lambda: work.run(session_that_waits),
        {},
        items=(work.images, "image"),
        rounds=work.rounds,
        floors={"the slower of the two": lambda: max(waits, work.run(Waiting(maps, 0.0)))},
    )
