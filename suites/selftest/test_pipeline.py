"""Which cells there are, what each starts from, what it lacks, and that nothing on its way is made twice."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from harness import accuracy_run
from harness import pipeline as pipeline_module
from harness.accuracy_run import measure_accuracy
from harness.detect.detections import Detections
from harness.detect.run import run
from harness.engines import ENGINES, get_engine
from harness.engines.base import Capabilities
from harness.engines.reference import run_graph
from harness.errors import EngineError, GraphError, InvalidRun, Missing, ResultsError, UsageError
from harness.measure.curves import Curves
from harness.measure.throughput import Speeds, summarise
from harness.model.checkpoint import RANDOM_WEIGHTS
from harness.pipeline import CALIBRATION_IMAGES, EMBEDDED, Cell, Pipeline, Prepared, Settings
from harness.report.results import accuracy_facts, cell_names, performance_facts
from suites.selftest.fakes import FAULTS_VARIABLE, PLUGIN, FakeEngine, FakeSession, Workplace, losing, write_model

pytestmark = [pytest.mark.selftest, pytest.mark.xdist_group("mini")]

MINI = Cell("pisa-mini", "fp32", "onnxruntime")
FP32, FP16 = Cell("toy", "fp32", "fake"), Cell("toy", "fp16", "fake")


@pytest.fixture(autouse=True)
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "fake", f"{PLUGIN}:FakeEngine")
    monkeypatch.delenv(FAULTS_VARIABLE, raising=False)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace.make(tmp_path)


@pytest.fixture
def pipeline(place: Workplace) -> Pipeline:
    return Pipeline(place.settings())


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    cache = tmp_path_factory.getbasetemp() / "mini-cache"
    return Pipeline(Settings(cache_dir=cache, batch_size=2))


@pytest.fixture(scope="module")
def exported(mini: Pipeline) -> Path:
    return mini.exported(MINI.model, mini.checkpoint(MINI.model)).path


def with_fault(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setenv(FAULTS_VARIABLE, fault)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[list[Any]]:
    """The calls of a function, kept while it works as before."""
    calls: list[Any] = []
    original = getattr(owner, name)

    def spy(*arguments: Any) -> Any:
        calls.append(arguments)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, spy)
        yield calls


# --- cells


def test_a_cell_is_called_by_model_precision_and_engine() -> None:
    assert Cell("pisa", "fp16", "tensorrt").id == "pisa-fp16-tensorrt"


def test_a_cell_has_a_command_of_its_own() -> None:
    assert FP32.command("accuracy") == "pytest -m accuracy --model toy --precision fp32 --engine fake"


def test_the_names_of_a_cell_are_those_of_the_results() -> None:
    assert cell_names(FP32) == {"model": "toy", "precision": "fp32", "engine": "fake"}


def test_without_patterns_each_engine_has_the_cells_of_its_own_precisions(pipeline: Pipeline) -> None:
    wanted = [(name, precision) for name in ENGINES for precision in get_engine(name).capabilities.precisions]
    assert [(cell.engine, cell.precision) for cell in pipeline.cells([], [], [])] == wanted


def test_patterns_choose_cells(pipeline: Pipeline) -> None:
    assert pipeline.cells(["t*"], ["fp??"], ["fake"]) == [FP32, FP16]


@pytest.mark.parametrize(
    ("patterns", "named"),
    [
        ((["tay"], [], []), "--model 'tay' matches nothing; known: toy"),
        (([], ["fp8"], []), "--precision 'fp8' matches nothing"),
        (([], [], ["tpu"]), "--engine 'tpu' matches nothing"),
        (([], ["int8"], ["fake", "torch"]), "none of these engines has the precisions int8"),
    ],
)
def test_patterns_that_choose_no_cell_are_refused(
    pipeline: Pipeline, patterns: tuple[list[str], list[str], list[str]], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        pipeline.cells(*patterns)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"limit": 0}, "--limit 0: wanted at least 1"),
        ({"batch_size": -1}, "--batch-size -1: wanted at least 1"),
        ({"onnx": Path("gone.onnx")}, r"no file gone\.onnx"),
        ({"engine_file": Path("gone.blob")}, r"no file gone\.blob"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_are_refused(place: Workplace, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Pipeline(place.settings(**changes))


def test_one_graph_for_two_models_is_refused(place: Workplace) -> None:
    write_model(place.baselines, place.checkpoints, "twin")
    file = place.checkpoints / "toy.pth"
    with pytest.raises(UsageError, match="2 models are chosen: toy, twin"):
        Pipeline(place.settings(onnx=file)).cells([], [], [])


def test_one_engine_file_for_two_cells_is_refused(place: Workplace) -> None:
    file = place.checkpoints / "toy.pth"
    with pytest.raises(UsageError, match="2 cells are chosen"):
        Pipeline(place.settings(engine_file=file)).cells([], [], ["fake"])


# --- batch


def as_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    able = Capabilities(computes={"fp32": "fp32"}, source="module", device="accelerator")
    monkeypatch.setattr(FakeEngine, "capabilities", able)


@pytest.mark.parametrize(("accelerator", "batch"), [(False, 3), (True, 32)])
def test_the_default_batch_is_the_models_for_the_kind_of_device(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, accelerator: bool, batch: int
) -> None:
    write_model(place.baselines, place.checkpoints, batch={"cpu": 3, "accelerator": 32})
    if accelerator:
        as_accelerator(monkeypatch)
    assert Pipeline(place.settings()).batch(FP32) == batch


def test_the_batch_asked_for_comes_first(place: Workplace) -> None:
    assert Pipeline(place.settings(batch_size=5)).batch(FP32) == 5


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_timing_images_fill_the_batch_with_photographs(place: Workplace, batch: int) -> None:
    pipeline = Pipeline(place.settings(batch_size=batch))
    images = pipeline.timing_images(pipeline.prepare(FP32))
    assert images.shape == (batch, 3, 64, 64)
    assert images.flags.c_contiguous
    assert all(np.array_equal(image, images[row % 2]) for row, image in enumerate(images))


# --- calibration images


def write_train2017(place: Workplace, count: int) -> list[Path]:
    folder = place.images / "images" / "train2017"
    folder.mkdir()
    files = [folder / f"{i:012d}.jpg" for i in range(count)]
    for file in reversed(files):
        file.touch()
    return files


def test_coco_models_calibrate_on_the_first_images_of_train2017(place: Workplace) -> None:
    files = write_train2017(place, CALIBRATION_IMAGES + 1)
    assert Pipeline(place.settings()).calibration_files("toy", random=False) == files[:CALIBRATION_IMAGES]


@pytest.mark.parametrize("count", [0, CALIBRATION_IMAGES - 1])
def test_without_64_images_of_train2017_int8_of_coco_models_is_missing(place: Workplace, count: int) -> None:
    write_train2017(place, count)
    with pytest.raises(Missing, match=f"64 images of train2017, found {count}"):
        Pipeline(place.settings()).calibration_files("toy", random=False)


def test_random_weights_calibrate_on_the_embedded_images(pipeline: Pipeline) -> None:
    files = pipeline.calibration_files("toy", random=True)
    assert files == sorted((EMBEDDED / "data" / "images" / "calibration").glob("*.jpg"))
    assert len(files) >= 2


def test_mini_models_calibrate_on_the_embedded_images_only(place: Workplace) -> None:
    write_train2017(place, 3)
    write_model(place.baselines, place.checkpoints, dataset="mini")
    assert all(EMBEDDED in file.parents for file in Pipeline(place.settings()).calibration_files("toy", random=False))


def test_embedded_images_that_are_not_there_are_missing(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "EMBEDDED", tmp_path)
    with pytest.raises(Missing, match="embedded calibration images"):
        pipeline.calibration_files("toy", random=True)


# --- nothing is made twice


def test_an_engine_is_built_once_a_run(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch, FakeEngine, "build") as builds:
        assert pipeline.prepare(FP32) is pipeline.prepare(FP32)
    assert (len(builds), pipeline.engines_built, pipeline.engines_reused) == (1, [FP32.id], [])


def test_the_next_run_finds_the_engine_in_the_cache(
    pipeline: Pipeline, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = pipeline.prepare(FP32), Pipeline(place.settings())
    with counted(monkeypatch, FakeEngine, "build") as builds:
        assert again.prepare(FP32).file.path == first.file.path
    assert (builds, again.engines_built, again.engines_reused) == ([], [], [FP32.id])


def test_the_same_weights_for_accuracy_and_speed_build_one_engine(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(monkeypatch, FakeEngine, "build") as builds:
        accurate, fast = pipeline.prepare(FP32), pipeline.prepare(FP32, random=True)
    assert (len(builds), accurate.file.path) == (1, fast.file.path)


def test_each_precision_has_an_engine_of_its_own(pipeline: Pipeline) -> None:
    assert pipeline.prepare(FP32).file.path != pipeline.prepare(FP16).file.path


def other_batch(place: Workplace) -> Settings:
    return place.settings(batch_size=1)


def other_flags(place: Workplace) -> Settings:
    return place.settings(engine_options={"fake": {"colour": "red"}})


def other_input(place: Workplace) -> Settings:
    size = {"name": "input", "height": 96, "width": 64, "keep_ratio": False}
    write_model(place.baselines, place.checkpoints, input=size)
    return place.settings()


def other_config(place: Workplace) -> Settings:
    write_model(place.baselines, place.checkpoints, config="retinanet/retinanet_r50_fpn_1x_coco.py")
    return place.settings()


@pytest.mark.parametrize("change", [other_batch, other_flags, other_input, other_config])
def test_what_an_engine_depends_on_builds_another(pipeline: Pipeline, place: Workplace, change: Any) -> None:
    first, changed = pipeline.prepare(FP32), Pipeline(change(place))
    assert changed.prepare(FP32).file.path != first.file.path
    assert changed.engines_built == [FP32.id]


def test_another_version_of_the_runtime_builds_another_engine(
    pipeline: Pipeline, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pipeline.prepare(FP32)
    monkeypatch.setattr(FakeEngine, "version", lambda _self: "2.0")
    assert Pipeline(place.settings()).prepare(FP32).file.path != first.file.path


def test_random_weights_build_another_engine(pipeline: Pipeline, place: Workplace, tmp_path: Path) -> None:
    nowhere = Pipeline(place.settings(checkpoints=tmp_path / "nowhere"))
    assert nowhere.prepare(FP32, random=True).file.path != pipeline.prepare(FP32).file.path


def test_a_cell_is_measured_once_for_all_its_metrics(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch, accuracy_run, "run") as runs:
        assert measure_accuracy(pipeline, FP32) is measure_accuracy(pipeline, FP32)
    assert len(runs) == 1


def test_the_images_of_a_data_set_are_read_once_for_all_cells(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(monkeypatch, pipeline_module, "load_coco") as loads:
        measure_accuracy(pipeline, FP32)
        measure_accuracy(pipeline, FP16)
    assert len(loads) == 1


def test_a_build_that_fails_leaves_nothing_in_the_cache(
    pipeline: Pipeline, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fault(monkeypatch, "unbuildable")
    with pytest.raises(EngineError, match="refused the module"):
        pipeline.prepare(FP32)
    assert [file for file in place.cache.rglob("*") if file.is_file() and file.suffix != ".lock"] == []


# --- accuracy


def test_the_boxes_of_every_image_are_scored(pipeline: Pipeline) -> None:
    made = measure_accuracy(pipeline, FP32)
    assert (made.metrics.images, made.metrics.detections, made.metrics.map_50_95) == (12, 12, 1.0)


def test_boxes_that_are_not_seen_lower_ap(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with_fault(monkeypatch, "blind")
    per_class = measure_accuracy(pipeline, FP32).metrics.per_class
    assert per_class == {"blue": 1.0, "green": 1.0, "red": 0.0}


def test_progress_is_told(pipeline: Pipeline) -> None:
    told: list[tuple[int, int]] = []
    measure_accuracy(pipeline, FP32, lambda done, total: told.append((done, total)))
    assert told == [(8, 12), (12, 12)]


def test_a_limit_cuts_the_data_set(place: Workplace) -> None:
    made = measure_accuracy(Pipeline(place.settings(limit=5)), FP32)
    assert (len(made.dataset.images), made.metrics.images) == (5, 5)


def broken_off(pipeline: Pipeline, cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends with its second batch."""

    class Stopped(Exception):
        pass

    def infer(session: FakeSession, images: Any) -> Any:
        if calls:
            raise Stopped
        calls.append(images)
        return original(session, images)

    original, calls = FakeSession._infer, list[Any]()
    with monkeypatch.context() as patch:
        patch.setattr(FakeSession, "_infer", infer)
        with pytest.raises(Stopped):
            measure_accuracy(pipeline, cell)


def test_a_run_that_was_broken_off_is_taken_up_again(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = place.settings(batch_size=1)
    whole = measure_accuracy(Pipeline(place.settings(batch_size=1, cache_dir=place.root / "other")), FP32)
    for round_ in range(3):
        broken_off(Pipeline(settings), FP32, monkeypatch)
        kept = [entry for entry in Pipeline(settings).cache.entries() if entry.kind == "run"]
        assert [entry.inputs["cell"] for entry in kept] == [FP32.id], round_
    with counted(monkeypatch, FakeSession, "_infer") as calls:
        made = measure_accuracy(Pipeline(settings), FP32)
    assert made.run.detections.identical(whole.run.detections)
    assert 0 < made.run.resumed == len(made.dataset.images) - len(calls)
    assert [entry for entry in Pipeline(settings).cache.entries() if entry.kind == "run"] == []


def test_a_run_is_not_taken_up_again_by_other_settings_or_where_that_is_not_wanted(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off(Pipeline(place.settings(batch_size=1)), FP32, monkeypatch)
    assert measure_accuracy(Pipeline(place.settings(batch_size=2)), FP32).run.resumed == 0
    assert measure_accuracy(Pipeline(place.settings(batch_size=1, limit=7)), FP32).run.resumed == 0
    assert measure_accuracy(Pipeline(place.settings(batch_size=1)), FP16).run.resumed == 0
    assert measure_accuracy(Pipeline(place.settings(batch_size=1, resume=False)), FP32).run.resumed == 0


def test_detections_and_curves_are_kept_where_a_record_is_wanted(place: Workplace) -> None:
    made = measure_accuracy(Pipeline(place.settings(record=place.root / "record")), FP32)
    folder = place.root / "record" / FP32.id
    assert Detections.load(folder / "detections.npz").identical(made.run.detections)
    assert Curves.load(folder / "curves.npz").precision.tobytes() == made.metrics.curves.precision.tobytes()


def test_a_record_that_cannot_be_written_names_its_option(place: Workplace) -> None:
    (place.root / "record").write_text("a file")
    with pytest.raises(ResultsError, match=r"cannot write to .*record.*\n.*--record DIR"):
        measure_accuracy(Pipeline(place.settings(record=place.root / "record")), FP32)


def test_the_seconds_of_all_stages_are_kept(pipeline: Pipeline) -> None:
    assert set(measure_accuracy(pipeline, FP32).run.seconds) == {"preprocess", "infer", "decode", "wall", "evaluate"}


def test_a_lost_image_is_invalid(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy_run, "run", losing(run, 1))
    with pytest.raises(InvalidRun, match="12 images once, found 11 processed, 1 lost"):
        measure_accuracy(pipeline, FP32)


@pytest.mark.parametrize(
    ("fault", "named"), [("nan", "NaN or Inf in raw output 'box_8'"), ("precision", "100% in int8")]
)
def test_a_run_that_means_nothing_is_invalid(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, fault: str, named: str
) -> None:
    with_fault(monkeypatch, fault)
    with pytest.raises(InvalidRun, match=named):
        measure_accuracy(pipeline, FP32)


def test_a_wrong_precision_is_noticed_before_anything_is_measured(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fault(monkeypatch, "precision")
    with counted(monkeypatch, accuracy_run, "run") as runs, pytest.raises(InvalidRun):
        measure_accuracy(pipeline, FP32)
    assert runs == []


def test_a_session_is_closed_when_its_user_fails(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = pipeline.prepare(FP32)
    with (
        counted(monkeypatch, FakeSession, "close") as closings,
        pytest.raises(ZeroDivisionError),
        pipeline.opened(prepared),
    ):
        raise ZeroDivisionError
    assert len(closings) == 1


def test_a_data_set_with_other_categories_than_the_model_is_refused(place: Workplace) -> None:
    with pytest.raises(UsageError, match="'toy' has 3 classes, data set mini has 10 categories"):
        Pipeline(place.settings(dataset="mini")).dataset("toy")


@pytest.mark.parametrize(("chosen", "name"), [("auto", "coco2017"), ("mini", "mini"), ("coco2017", "coco2017")])
def test_a_model_is_judged_on_its_own_data_set_unless_another_is_chosen(
    place: Workplace, chosen: str, name: str
) -> None:
    assert Pipeline(place.settings(dataset=chosen)).dataset_name("toy") == name


# --- what is missing


def test_a_missing_engine_is_named_with_its_remedy(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with_fault(monkeypatch, "missing")
    with pytest.raises(Missing, match="the fake runtime is not installed") as caught:
        pipeline.prepare(FP32)
    assert caught.value.remedy.startswith("pip install -e '.[fake]'")


def test_a_missing_engine_is_missing_though_its_file_is_in_the_cache(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.prepare(FP32)
    with_fault(monkeypatch, "missing")
    with pytest.raises(Missing):
        pipeline.prepare(FP32)


def test_all_that_is_missing_is_named_at_once(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fault(monkeypatch, "missing")
    bare = Pipeline(place.settings(checkpoints=tmp_path / "no", data_dir=tmp_path / "nowhere"))
    with pytest.raises(Missing) as caught:
        measure_accuracy(bare, FP32)
    for part in ("the fake runtime is not installed", "COCO not found", "checkpoint toy.pth of 'toy' not found"):
        assert part in caught.value.cause
    assert caught.value.remedy.count(" && ") >= 2


def test_what_is_missing_is_told_as_shortly_the_tenth_time(place: Workplace, tmp_path: Path) -> None:
    bare, entries = Pipeline(place.settings(checkpoints=tmp_path / "no")), []
    for _ in range(10):
        with pytest.raises(Missing) as caught:
            bare.checkpoint("toy")
        entries.append(len(caught.traceback))
    assert entries[-1] <= entries[0]


def test_nothing_is_missing_where_everything_is_here(pipeline: Pipeline) -> None:
    pipeline.require(FP32)


def test_without_a_checkpoint_there_is_no_accuracy(place: Workplace, tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"checkpoint toy\.pth"):
        measure_accuracy(Pipeline(place.settings(checkpoints=tmp_path / "no")), FP32)


def test_random_weights_stand_in_only_where_they_are_allowed(place: Workplace, tmp_path: Path) -> None:
    bare = Pipeline(place.settings(checkpoints=tmp_path / "no"))
    assert bare.weights("toy", random=True) is RANDOM_WEIGHTS
    with pytest.raises(Missing):
        bare.weights("toy", random=False)


def test_random_weights_are_marked_and_hashed_as_such(place: Workplace, tmp_path: Path) -> None:
    prepared = Pipeline(place.settings(checkpoints=tmp_path / "no")).prepare(FP32, random=True)
    assert (prepared.start, prepared.artifacts["weights"]) == ("random weights", RANDOM_WEIGHTS.sha256)


def test_a_checkpoint_that_is_here_comes_before_random_weights(pipeline: Pipeline) -> None:
    assert pipeline.prepare(FP32, random=True).start == "checkpoint"


def test_checkpoints_are_found_in_the_cache_too(place: Workplace) -> None:
    (place.cache / "checkpoints").mkdir(parents=True)
    (place.checkpoints / "toy.pth").rename(place.cache / "checkpoints" / "toy.pth")
    assert Pipeline(place.settings()).checkpoint("toy").path == place.cache / "checkpoints" / "toy.pth"


def test_a_check_without_onnx_runtime_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Missing, match="onnxruntime is not installed: it checks every graph"):
        run_graph(object(), np.zeros((1, 3, 64, 64), np.float32))  # type: ignore[arg-type]


def test_a_graph_that_does_not_take_the_images_is_refused(exported: Path) -> None:
    with pytest.raises(GraphError, match="onnxruntime does not run the graph on 2 images"):
        run_graph(onnx.load(str(exported)), np.zeros((2, 4, 192, 320), np.float32))


# --- starting from an engine file


@pytest.fixture
def from_engine_file(pipeline: Pipeline, place: Workplace, tmp_path: Path) -> Pipeline:
    file = pipeline.prepare(FP32).file.path
    return Pipeline(place.settings(engine_file=file, checkpoints=tmp_path / "no", cache_dir=tmp_path / "cold"))


def test_an_engine_file_is_used_as_it_is(from_engine_file: Pipeline) -> None:
    prepared = from_engine_file.prepare(FP32)
    assert prepared.file.path == from_engine_file.settings.engine_file
    assert (from_engine_file.engines_built, from_engine_file.engines_reused) == ([], [])


def test_an_engine_file_is_marked_and_nothing_is_known_of_its_origin(from_engine_file: Pipeline) -> None:
    prepared = from_engine_file.prepare(FP32)
    assert (prepared.start, prepared.onnx_sha256) == ("engine file", None)
    assert prepared.artifacts == {"weights": None, "onnx": None, "engine": prepared.file.sha256}


def test_an_engine_file_needs_no_checkpoint_for_accuracy(from_engine_file: Pipeline) -> None:
    assert measure_accuracy(from_engine_file, FP32).metrics.map_50_95 == 1.0


def test_an_engine_file_that_is_garbage_is_wrong_input(mini: Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "garbage"
    file.write_bytes(b"garbage")
    given = Pipeline(replace(mini.settings, engine_file=file))
    with pytest.raises(UsageError, match=f"--engine-file {file} cannot be used"), given.opened(given.prepare(MINI)):
        pass


def test_the_same_garbage_in_the_cache_is_the_engines_fault(mini: Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "garbage"
    file.write_bytes(b"garbage")
    prepared = mini.prepare(MINI)
    damaged = replace(prepared, file=replace(prepared.file, path=file))
    with pytest.raises(EngineError, match=r"onnxruntime .* refused"), mini.opened(damaged):
        pass


# --- starting from an ONNX file


@pytest.fixture
def from_onnx(mini: Pipeline, exported: Path, tmp_path: Path) -> Pipeline:
    return Pipeline(replace(mini.settings, onnx=exported, checkpoints=tmp_path))


def test_an_onnx_file_is_marked_with_its_hash_chain(from_onnx: Pipeline) -> None:
    prepared = from_onnx.prepare(MINI)
    assert (prepared.start, prepared.artifacts["weights"]) == ("onnx file", None)
    assert prepared.artifacts["onnx"] is not None


def test_an_onnx_file_builds_the_engine_that_its_checkpoint_builds(from_onnx: Pipeline, mini: Pipeline) -> None:
    assert from_onnx.prepare(MINI).file.path == mini.prepare(MINI).file.path


def test_an_onnx_file_needs_no_checkpoint(from_onnx: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch, Pipeline, "checkpoint") as asked:
        from_onnx.require(MINI)
        from_onnx.prepare(MINI)
    assert asked == []


def test_an_onnx_file_that_is_garbage_is_wrong_input(mini: Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "garbage.onnx"
    file.write_bytes(b"garbage")
    with pytest.raises(UsageError, match=f"--onnx {file} cannot be used"):
        Pipeline(replace(mini.settings, onnx=file)).prepare(MINI)


def test_an_engine_of_the_module_cannot_start_from_an_onnx_file(from_onnx: Pipeline) -> None:
    with pytest.raises(Missing, match="torch runs the module, not an ONNX file"):
        from_onnx.prepare(Cell("pisa-mini", "fp32", "torch"))


def test_all_engines_build_from_the_same_graph(mini: Pipeline) -> None:
    graphs = [mini.prepare(replace(MINI, engine=name)).source.graph for name in ("onnxruntime", "openvino")]
    assert graphs[0] == graphs[1]


def test_embedded_weights_come_with_the_checkout(mini: Pipeline) -> None:
    path = mini.checkpoint(MINI.model).path
    assert path is not None
    assert path.parent == EMBEDDED / "weights"


# --- facts for the results


@pytest.fixture
def prepared(pipeline: Pipeline) -> Prepared:
    return pipeline.prepare(FP16)


def test_accuracy_facts_say_what_ran_on_which_images(pipeline: Pipeline) -> None:
    facts = accuracy_facts(measure_accuracy(pipeline, FP16))
    found = {name: facts[name] for name in ("engine_version", "batch", "start", "precision_ran", "device")}
    wanted = {"engine_version": "1.0", "batch": 8, "start": "checkpoint", "precision_ran": "fp16", "device": "cpu"}
    assert (found, facts["dataset"]["images"]) == (wanted, 12)


def test_accuracy_facts_hold_all_twelve_numbers_and_every_class(pipeline: Pipeline) -> None:
    facts = accuracy_facts(measure_accuracy(pipeline, FP16))["accuracy"]
    assert (len(facts["metrics"]), set(facts["per_class"])) == (12, {"blue", "green", "red"})


def test_performance_facts_say_what_was_timed(prepared: Prepared) -> None:
    facts = performance_facts(prepared, Speeds(summarise([0.1] * 20, batch=8)), "fp16", "cpu")["performance"]
    assert (facts["fps"], facts["rounds"], facts["cv"]) == pytest.approx((80.0, 20, 0.0))
    assert facts["latency_ms"] == pytest.approx({"p50": 100.0, "p90": 100.0, "p99": 100.0})


def test_facts_carry_the_hashes_of_what_was_used(pipeline: Pipeline, prepared: Prepared) -> None:
    facts = performance_facts(prepared, Speeds(summarise([0.1], batch=8)), "fp16", "cpu")
    weights = pipeline.checkpoint("toy").sha256
    assert facts["artifacts"] == {"weights": weights, "onnx": None, "engine": prepared.file.sha256}


def test_the_fake_is_an_engine_like_any_other() -> None:
    assert isinstance(get_engine("fake"), FakeEngine)
