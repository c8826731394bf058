"""Where no engine but torch is installed: everything imports, torch is measured, doctor says what is missing."""

import json
from pathlib import Path

import pytest

from harness.engines import get_engine
from suites.selftest.conftest import Command, Outcome

pytestmark = pytest.mark.selftest

SCREEN_LINES, SCREEN_COLUMNS = 40, 120
# Packages of the extras, and those that no index has.
ABSENT = ("cuda", "jsonschema", "onnxruntime", "openvino", "pycuda", "sklearn", "tensorrt", "tvm")
HIDE = f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); "
NEEDS_AN_EXTRA = ("onnxruntime", "openvino", "tensorrt", "ixrt", "igie")
IMPORT_ALL = """
import importlib, pkgutil, fixtures, harness
for package in (harness, fixtures):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            print(module.name)
"""
HARNESS = "from harness.__main__ import main; sys.exit(main(sys.argv[1:]))"
PYTEST = "import pytest; sys.exit(pytest.main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def doctor(python_command: Command) -> Outcome:
    return python_command("-c", HIDE + HARNESS, "doctor")


def test_every_module_imports(python_command: Command) -> None:
    outcome = python_command("-c", HIDE + IMPORT_ALL)
    assert outcome.returncode == 0, outcome.stderr
    assert {"harness.engines.tensorrt", "harness.pipeline", "fixtures.plugin"} <= set(outcome.stdout.split())


@pytest.mark.parametrize("command", ["list", "--help"])
def test_a_command_needs_no_engine(python_command: Command, command: str) -> None:
    outcome = python_command("-c", HIDE + HARNESS, command)
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_torch_is_engine_enough_for_doctor(doctor: Outcome) -> None:
    assert (doctor.returncode, doctor.stderr) == (0, "")


@pytest.mark.parametrize("name", NEEDS_AN_EXTRA)
def test_doctor_names_what_installs_each_missing_engine(doctor: Outcome, name: str) -> None:
    said = " ".join(doctor.stdout.split())
    assert f"engine {name} missing: " in said
    assert (
        f"mend it: {get_engine(name).remedy}" in said.partition(f"engine {name} missing: ")[2].partition(" engine ")[0]
    )


def test_doctor_fills_one_screen(doctor: Outcome) -> None:
    lines = doctor.stdout.splitlines()
    assert len(lines) <= SCREEN_LINES
    assert max(map(len, lines)) <= SCREEN_COLUMNS


def gate(python_command: Command, folder: Path, engine: str) -> Outcome:
    """`pytest -m accuracy` of one mini cell on eight images."""
    cell = ("--model", "pisa-mini", "--precision", "fp32", "--engine", engine, "--limit", "8")
    places = ("--cache-dir", folder / "cache", "--results", folder / "results.json")
    return python_command("-c", HIDE + PYTEST, "suites/accuracy", "-p", "no:cacheprovider", *cell, *places)


@pytest.mark.slow
def test_torch_is_measured(python_command: Command, tmp_path: Path) -> None:
    gate(python_command, tmp_path, "torch")
    (cell,) = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert cell["accuracy"]["map_50_95"] > 0.3


@pytest.mark.parametrize("engine", ["openvino", "tensorrt"])
def test_a_missing_engine_is_named_with_its_install_line(python_command: Command, tmp_path: Path, engine: str) -> None:
    outcome = gate(python_command, tmp_path, engine)
    assert outcome.returncode == 5
    assert f"{engine} is not installed\n  next: pip install -e '.[{engine}]'" in outcome.stdout


def test_an_engine_that_builds_from_graphs_needs_what_checks_them(python_command: Command) -> None:
    hide = "import sys; sys.modules['onnxruntime'] = None; "
    said = " ".join(python_command("-c", hide + HARNESS, "doctor").stdout.split())
    assert "engine openvino missing: onnxruntime is not installed: it checks every graph" in said
