"""The gate bites: one thing broken in a real cell makes the run red, with the right verdict, cell and figures."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from harness.model.registry import SHIPPED_BASELINES
from harness.pipeline import Cell, Pipeline, Settings
from suites.selftest import fakes, forks
from suites.selftest.conftest import own_environment
from suites.selftest.faults import graphs

pytestmark = pytest.mark.selftest

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("pisa-mini", pytest.param("paa-mini", marks=pytest.mark.slow))


@dataclass(frozen=True)
class Bench:
    """One mini model: its exported graph, and a run of its cell with faults put in."""

    model: str
    graph: Path
    cache: Path

    def run(self, directory: Path, *options: str, **variables: str) -> forks.Outcome:
        chosen = ["--model", self.model, "--engine", "onnxruntime", "--precision", "fp32"]
        places = ["--cache-dir", str(self.cache), "--results", str(directory / "results.json")]
        return forks.run(["pytest", "-m", "accuracy", *chosen, *places, *options], ROOT, own_environment() | variables)


@pytest.fixture(scope="module", params=MODELS)
def bench(request: pytest.FixtureRequest, session_cache: Path) -> Bench:
    pipeline = Pipeline(Settings(cache_dir=session_cache))
    prepared = pipeline.prepare(Cell(request.param, "fp32", "onnxruntime"))
    weights = prepared.source.weights
    assert weights is not None
    return Bench(request.param, pipeline.exported(request.param, weights).path, session_cache)


def verdicts(directory: Path, model: str) -> dict[str, object]:
    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    cell = next(cell for cell in results["cells"] if cell["id"] == f"{model}-fp32-onnxruntime")
    accuracy: dict[str, object] = cell["accuracy"]
    return accuracy


@pytest.mark.parametrize(
    "fault", [graphs.scaled_boxes(1.2), graphs.swap_two_classes], ids=["boxes scaled", "classes swapped"]
)
def test_a_fault_in_the_graph_is_a_regression(
    bench: Bench, fault: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    model = onnx.load(str(bench.graph))
    fault(model)
    onnx.save(model, str(tmp_path / "broken.onnx"))
    run = bench.run(tmp_path, "--onnx", str(tmp_path / "broken.onnx"))
    assert run.returncode == 1, run.stdout + run.stderr
    assert verdicts(tmp_path, bench.model)["status"] == "REGRESSED"
    figures = r"map_50_95: 0\.\d{4}, expected 0\.\d{4} .*: 0\.\d{4} lower"
    assert re.search(rf"REGRESSED {bench.model}-fp32-onnxruntime {figures}", run.stdout)


def test_the_graph_without_a_fault_passes(bench: Bench, tmp_path: Path) -> None:
    shutil.copy(bench.graph, tmp_path / "clean.onnx")
    run = bench.run(tmp_path, "--onnx", str(tmp_path / "clean.onnx"))
    assert run.returncode == 0, run.stdout + run.stderr
    assert verdicts(tmp_path, bench.model)["status"] == "PASS"
    assert "ONNX FILE" in run.stdout


def test_not_a_number_in_one_output_is_invalid(bench: Bench, tmp_path: Path) -> None:
    model = onnx.load(str(bench.graph))
    graphs.put_nan_in_one_output(model)
    onnx.save(model, str(tmp_path / "nan.onnx"))
    run = bench.run(tmp_path, "--onnx", str(tmp_path / "nan.onnx"))
    assert run.returncode == 1, run.stdout + run.stderr
    assert verdicts(tmp_path, bench.model)["status"] == "INVALID"
    assert re.search(
        rf"INVALID {bench.model}-fp32-onnxruntime .*NaN or Inf in output 'cls_8' already before", run.stdout
    )


def test_ten_images_lost_are_invalid(bench: Bench, tmp_path: Path) -> None:
    run = bench.run(tmp_path, "-p", fakes.PLUGIN, **{fakes.FAULTS_VARIABLE: "lost=10"})
    assert run.returncode == 1, run.stdout + run.stderr
    assert verdicts(tmp_path, bench.model)["status"] == "INVALID"
    found = "wanted each of 256 images once, found 246 processed, 10 lost"
    assert re.search(rf"INVALID {bench.model}-fp32-onnxruntime integrity: .*{found}", run.stdout)


def test_reading_blue_as_red_costs_over_a_hundredth_and_is_a_regression(bench: Bench, tmp_path: Path) -> None:
    shutil.copytree(SHIPPED_BASELINES, tmp_path / "baselines")
    file = tmp_path / "baselines" / "models" / f"{bench.model}.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["overrides"]["model.data_preprocessor.bgr_to_rgb"] = False
    file.write_text(json.dumps(content), encoding="utf-8")
    run = bench.run(tmp_path, "--baselines", str(tmp_path / "baselines"))
    assert run.returncode == 1, run.stdout + run.stderr
    accuracy = verdicts(tmp_path, bench.model)
    assert accuracy["status"] == "REGRESSED"
    figure, expected = accuracy["map_50_95"], accuracy["expected"]
    assert isinstance(figure, float)
    assert isinstance(expected, dict)
    assert expected["map_50_95"] - figure > 0.01
