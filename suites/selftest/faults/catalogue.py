"""Takes a pipeline; breaks one thing in it where real projects broke: each fault names the check that must catch it."""

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import numpy.typing as npt
import onnx

import harness.engines.torch as torch_engine
import harness.measure.evaluate as evaluating
from harness import accuracy_run
from harness.detect import preprocess
from harness.detect.dataset import Dataset
from harness.detect.decode import Boxes, Decoder, kernels, make_decoder
from harness.detect.detections import Detections
from harness.detect.run import Run
from harness.engines import Inspection, Session
from harness.model.registry import Precision
from harness.pipeline import Cell, Pipeline
from suites.selftest.faults import graphs

Maps = dict[str, npt.NDArray[np.float32]]
Break = Callable[[ExitStack, Pipeline, Cell], None]
Edit = Callable[[onnx.ModelProto], None]

MINI = ("pisa-mini", "paa-mini")
IN_THE_ENGINE = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and the check that must say so.

    check: its name, as verdicts have it; `integrity` and `precision` end a run before anything is compared. recorded:
        it is the check of the accepted figure, not one of those against the run before.
    breaks: what is done to the pipeline, or edits: to the graph that the engine is built from.
    """

    name: str
    check: str
    breaks: Break | None = None
    edits: Edit | None = None
    models: tuple[str, ...] = MINI
    precision: Precision = "fp32"
    engines: tuple[str, ...] = ("onnxruntime",)


# --- reading and preprocessing


def _input(change: Callable[[Any], dict[str, Any]]) -> Break:
    """Other values in the description of the input, for the run but not for the engine, which is built before."""

    def breaks(stack: ExitStack, pipeline: Pipeline, cell: Cell) -> None:
        spec = pipeline.input_spec(cell.model)
        stack.enter_context(patch.object(pipeline, "input_spec", lambda _model: replace(spec, **change(spec))))

    return breaks


def nearest(stack: ExitStack, _pipeline: Pipeline, _cell: Cell) -> None:
    resize = cv2.resize
    stack.enter_context(
        patch.object(
            preprocess.cv2,
            "resize",
            lambda image, size, interpolation: resize(image, size, interpolation=cv2.INTER_NEAREST),
        )
    )


def padded_left_and_above(stack: ExitStack, _pipeline: Pipeline, _cell: Cell) -> None:
    into = accuracy_run.run.__globals__["preprocess_into"]

    def shifted(out: npt.NDArray[np.float32], image: Any, spec: Any) -> Any:
        geometry = into(out, image, spec)
        out[:] = np.roll(out, (spec.height - geometry.content_height, spec.width - geometry.content_width), (1, 2))
        return geometry

    stack.enter_context(patch.dict(accuracy_run.run.__globals__, preprocess_into=shifted))


# --- the module


def training_mode(stack: ExitStack, _pipeline: Pipeline, _cell: Cell) -> None:
    raw_maps = torch_engine.raw_maps
    run_module = torch_engine.run_module

    def in_training(module: Any, head: Any, images: Any) -> Any:
        with patch.dict(run_module.__globals__, raw_maps=lambda one: raw_maps(one).train()):
            return run_module(module, head, images)

    stack.enter_context(patch.object(torch_engine, "run_module", in_training))


# --- decoding


def _head(**changes: Any) -> Break:
    def breaks(stack: ExitStack, pipeline: Pipeline, cell: Cell) -> None:
        head = replace(pipeline.head(cell.model), **changes)
        decoder = make_decoder(head, pipeline.input_spec(cell.model))
        stack.enter_context(patch.object(pipeline, "decoder", lambda _model: decoder))

    return breaks


def _anchors(change: Callable[[npt.NDArray[np.float32], npt.NDArray[np.int64]], npt.NDArray[np.float32]]) -> Break:
    """Other anchors at the origin: `change` takes them by level `[L, A, 4]`, and the strides `[L, 1, 1]`."""

    def breaks(stack: ExitStack, pipeline: Pipeline, cell: Cell) -> None:
        decoder: Any = make_decoder(pipeline.head(cell.model), pipeline.input_spec(cell.model))
        strides = decoder._anchors.strides[:, None, None]
        levels = decoder._anchors.base.reshape(len(strides), -1, 4)
        base = np.ascontiguousarray(change(levels, strides), np.float32).reshape(-1, 4)
        decoder._anchors = decoder._anchors._replace(base=base)
        stack.enter_context(patch.object(pipeline, "decoder", lambda _model: decoder))

    return breaks


def swapped_levels(stack: ExitStack, pipeline: Pipeline, cell: Cell) -> None:
    _anchors(lambda levels, _strides: levels[[1, 0, *range(2, len(levels))]])(stack, pipeline, cell)


@dataclass(frozen=True)
class _Around:
    """A decoder whose geometry and boxes pass through a function each."""

    decoder: Decoder
    geometry: Callable[[Any], Any] = lambda geometry: geometry
    boxes: Callable[[Boxes], Boxes] = lambda boxes: boxes

    def check(self, outputs: Any, images: int) -> None:
        self.decoder.check(outputs, images)

    def decode_image(self, outputs: Any, row: int, geometry: Any) -> Boxes:
        return self.boxes(self.decoder.decode_image(outputs, row, self.geometry(geometry)))


def _decoded(**functions: Callable[[Any], Any]) -> Break:
    def breaks(stack: ExitStack, pipeline: Pipeline, cell: Cell) -> None:
        around = _Around(pipeline.decoder(cell.model), **functions)
        stack.enter_context(patch.object(pipeline, "decoder", lambda _model: around))

    return breaks


def _one_pixel_larger(boxes: Boxes) -> Boxes:
    return replace(boxes, boxes=boxes.boxes + np.array([0, 0, 1, 1], np.float32))


def _sides_swapped(geometry: Any) -> Any:
    return replace(geometry, scale_x=geometry.scale_y, scale_y=geometry.scale_x)


def all_classes_as_one(stack: ExitStack, _pipeline: Pipeline, _cell: Cell) -> None:
    suppress = kernels.batched_nms

    def suppress_all(boxes: Any, labels: Any, threshold: Any, limit: int) -> Any:
        return suppress(boxes, np.zeros_like(labels), threshold, limit)

    for name in ("decode_anchor", "decode_paa"):
        # What is compiled holds its own suppression; its Python, over the other compiled loops, takes this one.
        whole = FunctionType(getattr(kernels, name).py_func.__code__, vars(kernels) | {"batched_nms": suppress_all})
        stack.enter_context(patch.object(kernels, name, whole))


# --- the engine's session


class _Wrapped(Session):
    """A session whose maps pass through a function."""

    def __init__(self, session: Session, change: Callable[[Maps], Maps]) -> None:
        super().__init__(session.source)
        self._session, self._change = session, change

    def _infer(self, images: Any) -> Maps:
        return self._change(self._session.infer(images))

    def prepare(self, images: Any) -> Callable[[], None]:
        return self._session.prepare(images)

    def inspect(self) -> Inspection:
        return self._session.inspect()

    def close(self) -> None:
        self._session.close()


def _maps(change: Callable[[Maps], Maps]) -> Break:
    def breaks(stack: ExitStack, pipeline: Pipeline, _cell: Cell) -> None:
        open_it = pipeline.open
        stack.enter_context(patch.object(pipeline, "open", lambda prepared: _Wrapped(open_it(prepared), change)))

    return breaks


def _without_iou(maps: Maps) -> Maps:
    return {name: np.full_like(values, 20) if name.startswith("iou") else values for name, values in maps.items()}


def _overflown(maps: Maps) -> Maps:
    """float16 holds numbers up to 65,504."""
    with np.errstate(over="ignore"):
        return {name: (values * np.float32(2e4)).astype(np.float16).astype(np.float32) for name, values in maps.items()}


def _ran(**changes: Any) -> Break:
    """What the engine claims, changed where it opens: so it meets what really ran."""

    def breaks(stack: ExitStack, pipeline: Pipeline, cell: Cell) -> None:
        engine = pipeline.engine(cell.engine)
        claims = replace(engine.capabilities, **changes)
        stack.enter_context(patch.object(type(engine), "capabilities", claims))

    return breaks


# --- the run and the data set


def _run(change: Callable[[Dataset], Dataset], after: Callable[[Run], Run] = lambda run: run) -> Break:
    """A run over another data set than the one it is scored on."""

    def breaks(stack: ExitStack, _pipeline: Pipeline, _cell: Cell) -> None:
        run = accuracy_run.run

        def changed(dataset: Dataset, *rest: Any, **named: Any) -> Run:
            return after(run(change(dataset), *rest, **named))

        stack.enter_context(patch.object(accuracy_run, "run", changed))

    return breaks


def _without_last(dataset: Dataset) -> Dataset:
    return replace(dataset, images=dataset.images[:-10])


def _ids_shifted(dataset: Dataset) -> Dataset:
    ids = dataset.category_ids
    return replace(dataset, category_ids=(*ids[1:], ids[0]))


def _with_padding(run: Run) -> Run:
    """The rows that only fill the last batch, as images of their own."""
    found = run.detections
    last = int(found.images.max())
    of_last = found.image_id == last
    columns = {name: getattr(found, name) for name in ("image_id", "xywh", "score", "category_id")}
    padded = {name: np.concatenate([values, values[of_last]]) for name, values in columns.items()}
    padded["image_id"][len(found) :] = last + 1
    return replace(run, detections=Detections(**padded, images=np.append(found.images, last + 1)))


def crowds_as_objects(stack: ExitStack, pipeline: Pipeline, cell: Cell) -> None:
    """Ground truth in which a crowd is one large object that has to be found."""
    dataset = pipeline.dataset(cell.model)
    content = json.loads(dataset.annotation_file.read_bytes())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    evaluate = evaluating.evaluate
    wrong = replace(dataset, annotation_file=folder / "annotations.json")
    stack.enter_context(patch.object(accuracy_run, "evaluate", lambda _dataset, found: evaluate(wrong, found)))


FAULTS = (
    Fault("red and blue swapped", "map_50_95", _input(lambda spec: {"to_rgb": not spec.to_rgb})),
    Fault("mean not subtracted", "map_50_95", _input(lambda _spec: {"mean": (0.0, 0.0, 0.0)})),
    Fault("not divided by std", "map_50_95", _input(lambda _spec: {"std": (1.0, 1.0, 1.0)})),
    Fault("nearest neighbour for bilinear", "detections", nearest),
    Fault(
        "stretched for ratio kept, and the other way round",
        "map_50_95",
        _input(lambda s: {"keep_ratio": not s.keep_ratio}),
    ),
    Fault("padded left and above", "map_50_95", padded_left_and_above, models=("paa-mini",)),
    Fault("batch norm in training mode", "detections", training_mode, engines=("torch",)),
    Fault("two pyramid levels swapped", "map_50_95", swapped_levels),
    Fault("anchors half a cell off", "box_bias", _anchors(lambda levels, strides: levels + strides / 2)),
    Fault("deltas' std forgotten", "map_50_95", _head(target_stds=(1.0,) * 4), models=("paa-mini",)),
    Fault("deltas' std of another head", "map_50_95", _head(target_stds=(0.1, 0.1, 0.2, 0.2)), models=("pisa-mini",)),
    Fault("IoU factor missing", "detections", _maps(_without_iou), models=("paa-mini",)),
    Fault("score voting missing", "detections", _head(score_voting=False), models=("paa-mini",)),
    Fault("suppression across classes", "count", all_classes_as_one),
    Fault("suppression at an IoU of 0.9", "count", _head(iou_threshold=0.9)),
    Fault("score threshold 0.3", "count", _head(score_thr=0.3)),
    Fault("10 boxes an image for 100", "count", _head(max_per_img=10)),
    Fault(
        "width and height swapped in rescaling", "map_50_95", _decoded(geometry=_sides_swapped), models=("pisa-mini",)
    ),
    Fault("boxes one pixel larger", "box_bias", _decoded(boxes=_one_pixel_larger)),
    Fault("category ids shifted by one", "map_50_95", _run(_ids_shifted)),
    Fault("crowds counted as objects", "recorded map_50_95", crowds_as_objects),
    Fault("ten images lost", "integrity", _run(_without_last)),
    Fault("the last batch's padding counted", "integrity", _run(lambda dataset: dataset, _with_padding)),
    Fault("overflow to Inf in fp16", "integrity", _maps(_overflown), precision="fp16", engines=IN_THE_ENGINE),
    Fault("box convolution a fifth too large", "detections", edits=graphs.scaled_boxes(1.2), engines=IN_THE_ENGINE),
    Fault("two classes swapped", "worst_class", edits=graphs.swap_two_classes, engines=IN_THE_ENGINE),
    Fault(
        "one int8 scale four times too small",
        "detections",
        edits=graphs.wrong_scale,
        precision="int8",
        engines=IN_THE_ENGINE,
    ),
    Fault("yesterday's weights", "detections", edits=graphs.other_weights, engines=IN_THE_ENGINE),
    Fault("fallback to the CPU", "precision", _ran(device="accelerator"), engines=IN_THE_ENGINE),
    Fault(
        "fp32 in place of fp16", "precision", _ran(computes={"fp16": "fp16"}), precision="fp16", engines=IN_THE_ENGINE
    ),
)
