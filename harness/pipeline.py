"""Takes settings and a cell; gives every step of its way from weights to an open engine, lazy and cached."""

import dataclasses
import functools
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from harness import cache as caching
from harness.cache import Artifact, Cache
from harness.detect.dataset import COCO_CLASSES, Dataset, load_coco, require_classes
from harness.detect.decode import Decoder, make_decoder, output_shapes
from harness.detect.preprocess import Geometry, preprocess_batch
from harness.engines import ENGINES, Engine, Session, Source, get_engine
from harness.engines.reference import require_graph_checks, run_graph
from harness.environment import collect
from harness.errors import DetgateError, EngineError, GraphError, InvalidRun, Missing, UsageError
from harness.judge.record import Start
from harness.model import checkpoint, export, graph
from harness.model.checkpoint import RANDOM_WEIGHTS, Weights
from harness.model.mmdet import HeadSpec, InputSpec, describe_head, describe_input, load_config, load_module
from harness.model.parity import deviations
from harness.model.registry import (
    PRECISIONS,
    SHIPPED_BASELINES,
    DatasetChoice,
    DatasetName,
    ModelSpec,
    Precision,
    load_models,
    select,
)
from harness.tolerances import EXPLAINED

if TYPE_CHECKING:
    import onnx
    from mmengine.config import Config

Images = npt.NDArray[np.float32]
T = TypeVar("T")

EMBEDDED = Path(__file__).resolve().parents[1] / "fixtures" / "mini"
# Raised whenever a step's own code changes what it writes, so that no cache serves yesterday's recipe.
RECIPE = 2
CHECK_IMAGES = 2
CALIBRATION_IMAGES = 64
CALIBRATION_BATCH: Mapping[DatasetName, int] = {"mini": 8, "coco2017": 1}


@dataclass(frozen=True)
class Cell:
    """Model x precision x engine, as the models and engines are named."""

    model: str
    precision: Precision
    engine: str

    @property
    def id(self) -> str:
        """`pisa-fp16-tensorrt`: the name in test ids, results, baselines and messages alike."""
        return f"{self.model}-{self.precision}-{self.engine}"

    def command(self, marker: str) -> str:
        """The command that runs this cell alone."""
        return f"pytest -m {marker} --model {self.model} --precision {self.precision} --engine {self.engine}"


@dataclass(frozen=True)
class Settings:
    """What the command line decides; every field has the documented default."""

    baselines: Path = SHIPPED_BASELINES
    cache_dir: Path = field(default_factory=caching.default_directory)
    checkpoints: Path = Path("checkpoints")
    data_dir: Path = Path("coco")
    dataset: DatasetChoice = "auto"
    batch_size: int | None = None
    limit: int | None = None
    onnx: Path | None = None
    engine_file: Path | None = None
    resume: bool = True
    record: Path | None = None
    engine_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A cell with its engine file: all that opening and the results need."""

    cell: Cell
    engine: Engine
    source: Source
    file: Artifact
    onnx_sha256: str | None
    start: Start

    @property
    def artifacts(self) -> dict[str, str | None]:
        """Hashes of weights, ONNX and engine file; None for what this run did not see."""
        weights = self.source.weights.sha256 if self.source.weights else None
        return {"weights": weights, "onnx": self.onnx_sha256, "engine": self.file.sha256}


def _once(method: Callable[..., T]) -> Callable[..., T]:
    """Memoise a method per instance and arguments."""
    name = method.__name__

    @functools.wraps(method)
    def wrapper(self: "Pipeline", *args: object) -> T:
        return self.remember((name, *args), lambda: method(self, *args))

    return wrapper


class Pipeline:
    """The row of rooms for any cell of one run; every step is made when it is first asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cache = Cache(settings.cache_dir)
        self.models = load_models(settings.baselines)
        self.engines_built: list[str] = []
        self.engines_reused: list[str] = []
        self._made: dict[tuple[object, ...], object] = {}
        self._check_settings()

    def _check_settings(self) -> None:
        for name in ("limit", "batch_size"):
            value = getattr(self.settings, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: wanted at least 1", "give a positive number")
        for path in (self.settings.onnx, self.settings.engine_file):
            if path is not None and not path.is_file():
                raise UsageError(f"no file {path}", "check the path given to --onnx or --engine-file")

    def remember(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """What `make` gave or raised the first time: a failure of hours is not repeated for the next check."""
        if key not in self._made:
            try:
                self._made[key] = make()
            except DetgateError as error:
                self._made[key] = error
                raise
        made = self._made[key]
        if isinstance(made, DetgateError):
            raise made.with_traceback(None)  # which each raise adds to, and which holds what its frames held
        return made  # type: ignore[return-value]

    # --- cells

    def cells(self, models: list[str], precisions: list[str], engines: list[str]) -> list[Cell]:
        """The cells that this run is of: those that the patterns choose.

        Raises:
            UsageError: as `matching`, or a file is given for more than one cell.
        """
        chosen = self.matching(models, precisions, engines)
        self._check_files(chosen)
        return chosen

    def matching(self, models: list[str], precisions: list[str], engines: list[str]) -> list[Cell]:
        """All cells of these patterns, by model, engine and precision; each engine's own precisions only.

        Raises:
            UsageError: a pattern matches nothing, or no engine here has the precisions asked for.
        """
        chosen = select("model", list(self.models), models)
        wanted = select("precision", list(PRECISIONS), precisions)
        cells = [
            Cell(model, precision, engine)
            for model in chosen
            for engine in select("engine", list(ENGINES), engines)
            for precision in self.engine(engine).capabilities.precisions
            if precision in wanted
        ]
        if not cells:
            raise UsageError(
                f"no cell: none of these engines has the precisions {', '.join(wanted)}",
                "see `python -m harness list` for what each engine can do",
            )
        return cells

    def _check_files(self, cells: list[Cell]) -> None:
        models = {cell.model for cell in cells}
        if self.settings.onnx is not None and len(models) > 1:
            raise UsageError(
                f"--onnx is one model's graph, but {len(models)} models are chosen: {', '.join(sorted(models))}",
                "name the model: --model NAME",
            )
        if self.settings.engine_file is not None and len(cells) > 1:
            raise UsageError(
                f"--engine-file is one cell's engine, but {len(cells)} cells are chosen",
                "name one cell: --model NAME --precision PRECISION --engine ENGINE",
            )

    @_once
    def engine(self, name: str) -> Engine:
        """The engine with the options of this run."""
        return get_engine(name, self.settings.engine_options.get(name, {}))

    def batch(self, cell: Cell) -> int:
        """Images per call: --batch-size, else the model's own for this kind of device."""
        default = getattr(self.models[cell.model].batch, self.engine(cell.engine).capabilities.device)
        return self.settings.batch_size or int(default)

    # --- model

    @_once
    def config(self, model: str) -> "Config":
        """mmdet's config of the model."""
        return load_config(self.models[model], self.models_directory)

    @property
    def models_directory(self) -> Path:
        """Where the model files are; a config named there may lie beside them."""
        return self.settings.baselines / "models"

    @_once
    def input_spec(self, model: str) -> InputSpec:
        """How photographs become the model's input."""
        return describe_input(self.models[model], self.config(model))

    @_once
    def head(self, model: str) -> HeadSpec:
        """What decoding must know."""
        return describe_head(self.models[model], self.config(model))

    @_once
    def decoder(self, model: str) -> Decoder:
        """Raw head maps to boxes."""
        return make_decoder(self.head(model), self.input_spec(model))

    @_once
    def checkpoint(self, model: str) -> Weights:
        """The model's checked checkpoint.

        Raises:
            Missing, CheckpointError: see `harness.model.checkpoint.find`.
        """
        places = [self.settings.checkpoints, self.settings.cache_dir / "checkpoints"]
        if self.models[model].dataset == "mini":
            places = [EMBEDDED / "weights", *places]
        return checkpoint.find(self.models[model], places, self.settings.baselines)

    def weights(self, model: str, random: bool) -> Weights:
        """The checkpoint; where there is none and `random` allows it, seeded random weights."""
        try:
            return self.checkpoint(model)
        except Missing:
            if not random:
                raise
            return RANDOM_WEIGHTS

    # --- graph

    def recipe(self, step: str, *packages: str) -> dict[str, str | int]:
        """What a cached step depends on before its own inputs: its name, this code's recipe, versions of packages."""
        versions = collect().versions
        return {"step": step, "recipe": RECIPE, **{name: versions.get(name, "none") for name in packages}}

    @_once
    def _config_digest(self, model: str) -> str:
        """Of the config as it was read: building a module may change it in place.

        Not of its `pretty_text`, which takes yapf a fifth of a second.
        """
        return caching.digest({"text": repr(self.config(model).to_dict())})

    def _model_identity(self, spec: ModelSpec, weights: Weights) -> dict[str, object]:
        return {"weights": weights.sha256, "config": self._config_digest(spec.name), "input": spec.input.model_dump()}

    @_once
    def exported(self, model: str, weights: Weights) -> Artifact:
        """The raw head maps as ONNX, checked against torch."""
        spec = self.models[model]

        def make(target: Path) -> None:
            module = load_module(spec, self.config(model), weights.path)
            export.export(module, self.head(model), spec.input.name, self.check_images(model), run_graph, target)

        inputs = self.recipe("export", "torch", "mmdet", "mmcv", "onnx") | self._model_identity(spec, weights)
        return self.cache.artifact("onnx", inputs, f"{model}.onnx", make)

    def _given_or_exported(self, model: str, weights: Weights | None) -> tuple[Path, str]:
        if self.settings.onnx is not None:
            return self.settings.onnx, caching.sha256_of(self.settings.onnx)
        assert weights is not None
        made = self.exported(model, weights)
        return made.path, made.sha256

    @_once
    def simplified(self, model: str, weights: Weights | None) -> Artifact:
        """The exported (or given) graph through onnxsim, checked against itself before."""
        path, sha256 = self._given_or_exported(model, weights)

        def make(target: Path) -> None:
            before = self._loaded_graph(model, path)
            after = graph.simplify(before)
            graph.checked("simplify", before, after, self.check_images(model), run_graph)
            _save(after, target)

        inputs = self.recipe("simplify", "onnx", "onnxsim") | {"onnx": sha256}
        return self.cache.artifact("simplified", inputs, f"{model}.onnx", make)

    def _loaded_graph(self, model: str, path: Path) -> "onnx.ModelProto":
        """The graph in `path`, held to the model's input and outputs; what is wrong with a given one is wrong input."""
        spec, shapes = self.models[model], output_shapes(self.head(model), self.input_spec(model), 1)
        maps = {name: shape[1:] for name, shape in shapes.items()}
        with _given("--onnx", self.settings.onnx):
            loaded = graph.load(path)
            graph.check_interface(loaded, path, spec.input.name, (3, spec.input.height, spec.input.width), maps)
            if self.settings.onnx is not None:
                run_graph(loaded, self.check_images(model))
            return loaded

    @_once
    def typed(
        self, model: str, precision: Precision, scheme: graph.Int8Scheme | None, weights: Weights | None
    ) -> Artifact:
        """The simplified graph in a precision, checked against fp32."""
        base = self.simplified(model, weights)
        if precision == "fp32":
            return base
        random = weights is not None and weights.random
        calibration = self.calibration_files(model, random) if precision == "int8" else []

        def make(target: Path) -> None:
            before = graph.load(base.path)
            if precision == "fp16":
                after = graph.to_fp16(before)
            else:
                assert scheme is not None
                after = graph.to_int8(before, self._calibration(model, calibration), scheme)
            graph.checked(precision, before, after, self.check_images(model), run_graph)
            _save(after, target)

        inputs = self.recipe(precision, "onnx", "onnxruntime", "opencv") | {
            "graph": base.sha256,
            "scheme": scheme,
            "preprocess": dataclasses.asdict(self.input_spec(model)),
            "calibration": [caching.sha256_of(file) for file in calibration],
        }
        return self.cache.artifact(precision, inputs, f"{model}.{precision}.onnx", make)

    @_once
    def fixed(
        self, model: str, precision: Precision, scheme: graph.Int8Scheme | None, weights: Weights | None, batch: int
    ) -> Artifact:
        """The typed graph for one batch, checked against the one for any batch: what engines build from."""
        base = self.typed(model, precision, scheme, weights)

        def make(target: Path) -> None:
            before = graph.load(base.path)
            after = graph.fix_batch(before, batch)
            graph.check_batch(before, after, batch, self.check_images(model), run_graph)
            _save(after, target)

        inputs = self.recipe("batch", "onnx") | {"graph": base.sha256, "batch": batch}
        return self.cache.artifact("graph", inputs, f"{model}.{precision}.b{batch}.onnx", make)

    @_once
    def check_images(self, model: str) -> Images:
        """Images `[2, 3, H, W]` on which steps are compared and speed is timed: COCO's, or the embedded ones."""
        images, _ = self.photographs(model, CHECK_IMAGES)
        return images

    def photographs(self, model: str, count: int) -> tuple[Images, list[Geometry]]:
        """Up to `count` different images `[N, 3, H, W]`, with their geometries: COCO's, or the embedded ones."""
        files: list[Path] = []
        if self.models[model].dataset == "coco2017":
            files = sorted((self.settings.data_dir / "images" / "val2017").glob("*.jpg"))[:count]
        return preprocess_batch(files or self._embedded_calibration()[:count], self.input_spec(model))

    def calibration_files(self, model: str, random: bool) -> list[Path]:
        """Images for int8, of the kind the model was trained on: the embedded ones, or the first 64 of train2017.

        Args:
            random: random weights detect nothing, so the embedded images serve every model.

        Raises:
            Missing: COCO's training images are not there.
        """
        if random or self.models[model].dataset == "mini":
            return self._embedded_calibration()
        folder = self.settings.data_dir / "images" / "train2017"
        found = sorted(folder.glob("*.jpg"))[:CALIBRATION_IMAGES]
        if len(found) < CALIBRATION_IMAGES:
            raise Missing(
                f"int8 is calibrated on {CALIBRATION_IMAGES} images of train2017, found {len(found)} in {folder}",
                f"python -m harness fetch coco2017-train --data-dir {shlex.quote(str(self.settings.data_dir))}",
            )
        return found

    def _embedded_calibration(self) -> list[Path]:
        files = sorted((EMBEDDED / "data" / "images" / "calibration").glob("*.jpg"))
        if not files:
            raise Missing(
                "the embedded calibration images are not there", "git checkout fixtures/mini, or run from a checkout"
            )
        return files

    def _calibration(self, model: str, files: list[Path]) -> list[Images]:
        size = CALIBRATION_BATCH[self.models[model].dataset]
        parts = [files[i : i + size] for i in range(0, len(files), size)]
        return [preprocess_batch(part, self.input_spec(model))[0] for part in parts]

    # --- engine

    def prepare(self, cell: Cell, random: bool = False) -> Prepared:
        """The cell's engine file, built when it is not in the cache.

        Args:
            random: random weights may stand in for a missing checkpoint (speed only).

        Raises:
            Missing: the engine or the checkpoint is not here.
            any stage's error on the way.
        """
        self._require_engine(cell)
        return self._prepared(cell, random)

    def _require_engine(self, cell: Cell) -> None:
        engine = self.engine(cell.engine)
        reason = engine.available()
        if reason is not None:
            raise Missing(reason, engine.remedy)
        if engine.capabilities.source == "graph" and self.settings.engine_file is None:
            require_graph_checks()

    def require(self, cell: Cell) -> None:
        """All that an accuracy run needs is here.

        Raises:
            Missing: names everything that is not, so that one round mends it all.
        """
        needs: list[Callable[[], object]] = [lambda: self._require_engine(cell), lambda: self.dataset(cell.model)]
        if self.settings.onnx is None and self.settings.engine_file is None:
            needs.append(lambda: self.checkpoint(cell.model))
        if cell.precision == "int8" and self.settings.engine_file is None:
            needs.append(lambda: self.calibration_files(cell.model, random=False))
        found: list[Missing] = []
        for need in needs:
            try:
                need()
            except Missing as missing:
                found.append(missing)
        if found:
            raise Missing("; ".join(m.cause for m in found), " && ".join(m.remedy for m in found))

    @_once
    def _prepared(self, cell: Cell, random: bool) -> Prepared:
        engine = self.engine(cell.engine)
        if self.settings.engine_file is not None:
            file = self.settings.engine_file
            source = self._source(cell, None, None)
            return Prepared(cell, engine, source, Artifact(file, caching.sha256_of(file), False), None, "engine file")
        given = self.settings.onnx is not None
        if given and engine.capabilities.source == "module":
            raise Missing(f"{cell.engine} runs the module, not an ONNX file", "choose another --engine with --onnx")
        weights = None if given else self.weights(cell.model, random)
        start: Start = "onnx file" if given else "random weights" if weights and weights.random else "checkpoint"
        return self._built(cell, engine, weights, start)

    def _built(self, cell: Cell, engine: Engine, weights: Weights | None, start: Start) -> Prepared:
        precision = engine.capabilities.builds_from.get(cell.precision, cell.precision)
        scheme = engine.capabilities.int8_scheme if precision == "int8" else None
        base: Artifact | None = None
        if engine.capabilities.source == "graph":
            base = self.fixed(cell.model, precision, scheme, weights, self.batch(cell))
        source = self._source(cell, weights, base.path if base else None)
        inputs = self.recipe("engine") | {
            "engine": engine.name,
            "precision": cell.precision,
            "version": engine.version(),
            "code": engine.code(),
            "flags": engine.flags(),
            "device": collect().fingerprint,
            "batch": source.batch,
            "from": base.sha256 if base else self._module_identity(cell, weights),
        }
        name = f"{cell.id}.b{source.batch}{engine.file_suffix}"
        file = self.cache.artifact("engine", inputs, name, lambda target: engine.build(source, target))
        (self.engines_built if file.built else self.engines_reused).append(cell.id)
        return Prepared(cell, engine, source, file, base.sha256 if base else None, start)

    def _module_identity(self, cell: Cell, weights: Weights | None) -> str:
        assert weights is not None
        return caching.digest({"precision": cell.precision, **self._model_identity(self.models[cell.model], weights)})

    def _source(self, cell: Cell, weights: Weights | None, path: Path | None) -> Source:
        batch = self.batch(cell)
        shapes = output_shapes(self.head(cell.model), self.input_spec(cell.model), batch)
        return Source(self.models[cell.model], cell.precision, batch, weights, path, shapes, self.models_directory)

    @contextmanager
    def opened(self, prepared: Prepared) -> Iterator[Session]:
        """The cell's session; what ran, and where, is held to what the engine claims before anything is measured."""
        with self.open(prepared) as session:
            able, cell = prepared.engine.capabilities, prepared.cell
            inspection = session.inspect()
            inspection.require_device(able.device, cell.id)
            inspection.require(able.computes[cell.precision], cell.id)
            if inspection.layers is None or prepared.start == "engine file":
                self._prove_by_effect(prepared, session)
            yield session

    def _prove_by_effect(self, prepared: Prepared, session: Session) -> None:
        """Hold outputs to what the precision explains of their distance to the fp32 graph's, on the timing images.

        Raises:
            InvalidRun: they are closer than the precision can be, or further.
        """
        cell = prepared.cell
        try:
            rows = self.fp32_maps(prepared, self.check_images(cell.model))
        except Missing:
            if prepared.start != "engine file":
                raise
            return  # without ONNX, checkpoint or ONNX Runtime there is nothing to compare a given file with
        wanted = {name: _repeated(maps, prepared.source.batch) for name, maps in rows.items()}
        worst = deviations(wanted, session.infer(self.timing_images(prepared)))[0]
        least, most = EXPLAINED[cell.precision]
        if not least <= worst.relative <= most:
            raise InvalidRun(
                f"{cell.id}: output '{worst.output}' is {worst.relative:.1e} (relative L2) off the fp32 graph's: "
                f"wanted {least:g} to {most:g} of {cell.precision}",
                "the engine does not run what it is called: see which precision and which weights it was built from",
            )

    def fp32_maps(self, prepared: Prepared, images: Images) -> dict[str, npt.NDArray[np.float32]]:
        """What the model's own fp32 graph (--onnx, or its checkpoint exported and held to torch) makes of images.

        Raises:
            Missing: there is neither, or no ONNX Runtime to run it.
        """
        model, weights = prepared.cell.model, prepared.source.weights
        if prepared.start == "engine file" and self.settings.onnx is None:
            weights = self.checkpoint(model)
        return run_graph(graph.load(self.simplified(model, weights).path), images)

    def open(self, prepared: Prepared) -> Session:
        """The engine, opened; a file that the user gave is tried on one batch first: its faults are wrong input."""
        with _given("--engine-file", self.settings.engine_file):
            session = prepared.engine.open(prepared.source, prepared.file.path)
            if prepared.start == "engine file":
                try:
                    session.infer(self.timing_images(prepared))
                except DetgateError:
                    session.close()
                    raise
            return session

    # --- data

    def dataset_name(self, model: str) -> DatasetName:
        """--dataset, or the model's own."""
        chosen = self.settings.dataset
        return self.models[model].dataset if chosen == "auto" else chosen

    @_once
    def dataset(self, model: str) -> Dataset:
        """The data set a model is judged on, checked, and cut to --limit.

        Raises:
            Missing, DatasetError: it is not there, or damaged.
            UsageError: its categories are not the model's.
        """
        loaded = self._loaded(self.dataset_name(model))
        classes = self.head(model).num_classes
        if len(loaded.category_ids) != classes:
            raise UsageError(
                f"'{model}' has {classes} classes, data set {loaded.name} has {len(loaded.category_ids)} categories",
                f"choose the data set the model was trained for: --dataset {self.models[model].dataset}",
            )
        if self.models[model].dataset == "mini":
            require_classes(loaded, self._loaded("mini").category_names)
        elif classes == len(COCO_CLASSES):
            require_classes(loaded, COCO_CLASSES)
        return loaded if self.settings.limit is None else loaded.limit(self.settings.limit)

    @_once
    def _loaded(self, name: str) -> Dataset:
        return load_dataset(name, self.settings.data_dir)

    def timing_images(self, prepared: Prepared) -> Images:
        """One full batch of images, repeated as often as the batch needs."""
        return _repeated(self.check_images(prepared.cell.model), prepared.source.batch)


def _repeated(rows: npt.NDArray[np.float32], batch: int) -> npt.NDArray[np.float32]:
    """The rows, again and again until there are `batch` of them."""
    return np.ascontiguousarray(rows[np.arange(batch) % len(rows)])


def load_dataset(name: str, data_dir: Path) -> Dataset:
    """The embedded data set `mini`, or the one under `data_dir`.

    Raises:
        Missing, DatasetError: it is not there, or damaged.
    """
    if name == "mini":
        return load_coco(EMBEDDED / "data", name, restore="git checkout fixtures/mini")
    return load_coco(data_dir, name)


@contextmanager
def _given(option: str, path: Path | None) -> Iterator[None]:
    """Turn what is wrong with a file into wrong input where the user handed it in with `option`."""
    try:
        yield
    except (GraphError, EngineError) as error:
        if path is None:
            raise
        raise UsageError(f"{option} {path} cannot be used: {error.cause}", error.remedy) from error


def _save(model: "onnx.ModelProto", target: Path) -> None:
    import onnx

    onnx.save(model, str(target))
