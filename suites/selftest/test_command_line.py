"""`python -m harness COMMAND`: what each command prints, writes and exits with; `list` loads nothing heavy."""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from harness.__main__ import main, make_parser
from harness.cache import Cache
from harness.commands import reference
from harness.commands.shared import checkpoints_of, data_dir_of
from harness.detect.dataset import fetch_command
from harness.engines.table import ENGINES, get_engine
from harness.environment import collect
from harness.judge import baseline, known
from harness.judge.baseline import SpeedKey, load_recorded
from harness.model.registry import SCHEMA_FILE, SHIPPED_BASELINES, load_models
from harness.report import doctor, results
from harness.report.listing import engines_table, options_table
from suites.selftest.conftest import CHECKOUT, Command

pytestmark = pytest.mark.selftest

HEAVY = (
    "torch",
    "mmdet",
    "mmengine",
    "mmcv",
    "onnx",
    "onnxsim",
    "onnxruntime",
    "openvino",
    "cv2",
    "hotcoco",
    "scipy",
    "requests",
    "rich",
)
CELL = "pisa-mini-fp32-onnxruntime"
FIGURES = {"precision": "fp32", "dataset": "a" * 64, "weights": "b" * 8, "dataset_name": "mini", "images": 256}


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command that succeeds prints."""
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


# --- list


@pytest.fixture(scope="module")
def imported(python_command: Command) -> set[str]:
    """Top-level packages that `python -m harness list` imports."""
    outcome = python_command("-X", "importtime", "-m", "harness", "list")
    assert outcome.returncode == 0, outcome.stderr
    return {name.split(".")[0] for name in re.findall(r"\|\s+([\w.]+)$", outcome.stderr, re.MULTILINE)}


@pytest.mark.parametrize("package", HEAVY)
def test_list_does_not_import(imported: set[str], package: str) -> None:
    assert package not in imported


def test_the_imports_of_list_are_seen_at_all(imported: set[str]) -> None:
    assert {"harness", "pydantic", "argparse"} <= imported


@pytest.mark.parametrize("model", load_models())
def test_list_names_every_model(capsys: pytest.CaptureFixture[str], model: str) -> None:
    assert re.search(rf"^  {model} +\d+x\d+ ", said(capsys, "list"), re.MULTILINE)


@pytest.mark.parametrize("engine", ENGINES)
def test_list_names_every_engine(capsys: pytest.CaptureFixture[str], engine: str) -> None:
    assert re.search(rf"^  {engine} +(cpu|accelerator) +fp32", said(capsys, "list"), re.MULTILINE)


def test_the_readmes_table_of_engines_is_that_of_their_capabilities() -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert engines_table() in readme


def test_the_documents_table_of_options_is_that_of_the_engines(capsys: pytest.CaptureFixture[str]) -> None:
    table = options_table()
    assert table in (CHECKOUT / "docs" / "engines.md").read_text(encoding="utf-8")
    assert said(capsys, "list", "options", "--format", "markdown").strip() == table


def test_every_option_is_listed_with_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    told = said(capsys, "list", "options")
    for name in ENGINES:
        for key, option in get_engine(name).known_options.items():
            assert re.search(rf"^  {name}\.{key} +{option.values} \(default: {option.default}\) ", told, re.MULTILINE)


@pytest.mark.parametrize("words", [("list", "models"), ("baseline", "diff"), ("blame", "pisa-mini-fp32-torch")])
def test_an_unknown_option_sends_to_the_help_of_its_command(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert main([*words, "--colour"]) == 4
    command = " ".join(words[: -1 if words[0] != "baseline" else None])
    told = f"usage: unrecognized arguments: --colour\n  mend it: python -m harness {command} --help\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("figures", ["AP 0.333, AP50 0.513, 74.109 FPS", "AP 0.381, AP50 0.555, 133.597 FPS"])
def test_list_shows_the_published_figures(capsys: pytest.CaptureFixture[str], figures: str) -> None:
    assert f"published fp16: {figures} at batch 32" in said(capsys, "list")


def test_list_as_json_holds_the_model_files_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    models = [spec.model_dump(mode="json", by_alias=True) for spec in load_models().values()]
    assert json.loads(said(capsys, "list", "--json"))["models"] == models


def test_list_as_json_says_what_each_engine_takes(capsys: pytest.CaptureFixture[str]) -> None:
    engines = {row["name"]: row for row in json.loads(said(capsys, "list", "--json"))["engines"]}
    assert list(engines) == list(ENGINES)
    assert engines["torch"]["precisions"] == ["fp32"]


def test_list_prints_what_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(json.loads(said(capsys, "list", "commands", "models", "--format", "json"))) == ["commands", "models"]


def test_list_refuses_another_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "cells"]) == 4
    assert "no list 'cells'; known: models, engines, options, commands" in capsys.readouterr().err


def test_list_in_markdown_has_the_engines_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert engines_table() in said(capsys, "list", "--format", "markdown")


def test_list_in_markdown_has_a_row_for_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "list", "models", "--format", "markdown")
    assert re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE) == list(load_models())


def test_the_readmes_table_of_commands_is_that_of_the_parsers(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert said(capsys, "list", "commands", "--format", "markdown") in readme


def test_list_takes_other_baselines(capsys: pytest.CaptureFixture[str], baselines: Path) -> None:
    (baselines / "models" / "pisa.json").unlink()
    assert "pisa " not in said(capsys, "list", "--baselines", baselines)


# --- doctor


def test_doctor_is_content_with_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"fingerprint {collect().fingerprint}" in said(capsys, "doctor")


def examined(*words: str) -> tuple[list[str], bool]:
    """What `doctor WORDS` says, line by line however long, and whether this machine is healthy."""
    options = make_parser().parse_args(["doctor", *words])
    findings, healthy = doctor.examine(checkpoints_of(options), data_dir_of(options))
    return [line for finding in findings for line in finding.lines], healthy


@pytest.mark.parametrize(
    "start", ["device ", "python ", *(f"engine       {name} " for name in ENGINES), "cache ", "COCO "]
)
def test_doctor_has_one_line_on(start: str) -> None:
    lines, _ = examined()
    assert sum(line.startswith(start) for line in lines) == 1


def test_doctor_as_json_says_what_mends_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.engines.torch.Torch.available", lambda _: "torch is not installed")
    content = json.loads(said(capsys, "doctor", "--format", "json"))
    wanted = {"subject": "engine", "found": "torch missing: torch is not installed", "mend_it": "pip install -e ."}
    assert content["healthy"]
    assert wanted in content["findings"]


def test_doctor_in_markdown_has_a_row_for_each_finding(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "doctor", "--format", "json"))["findings"]
    assert len(said(capsys, "doctor", "--format", "markdown").splitlines()) == 2 + len(found)


def test_doctor_names_what_mends_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.PACKAGES, "no_such_package", "make setup")
    lines, healthy = examined()
    assert "missing      no_such_package. mend it: make setup" in lines
    assert not healthy


def test_doctor_names_what_mends_a_missing_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.engines.torch.Torch.available", lambda _: "torch is not installed")
    lines, _ = examined()
    after = lines[lines.index("engine       torch missing: torch is not installed") + 1]
    assert after == f"{'':<13}mend it: pip install -e ."


def test_one_missing_engine_is_no_illness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.engines.torch.Torch.available", lambda _: "torch is not installed")
    assert examined()[1]


def test_without_any_engine_doctor_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ENGINES", {})
    assert main(["doctor"]) == 1


def test_doctor_sees_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DETGATE_CACHE", str(tmp_path / "file" / "cache"))
    lines, _ = examined()
    assert f"cache        {tmp_path}/file/cache: NOT writable, set DETGATE_CACHE" in lines


BROKEN = """
import sys
from harness.__main__ import main

sys.path.insert(0, sys.argv[1])
sys.exit(main(["doctor"]))
"""


@pytest.fixture(scope="module")
def broken_engines(tmp_path_factory: pytest.TempPathFactory, python_command: Command) -> str:
    """What doctor says where every engine's package is there but cannot be imported."""
    packages = tmp_path_factory.mktemp("packages")
    for name in ENGINES:
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text(f'raise ImportError("lib{name}.so: no such file\\nwhich is sad")')
    outcome = python_command("-c", BROKEN, packages)
    assert (outcome.returncode, outcome.stderr) == (1, "")
    return outcome.stdout


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_doctor_names_what_keeps_an_installed_engine_from_being_imported(broken_engines: str, name: str) -> None:
    reason = f"{name} is installed but cannot be imported: lib{name}.so: no such file"
    assert f"engine       {name} missing: {reason}\n{'':<13}mend it: pip install" in broken_engines


def test_doctor_names_the_command_that_fetches_coco(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path / "absent"))
    lines, _ = examined()
    assert lines[-1].endswith(f"mend it: {fetch_command(tmp_path / 'absent')}")


@pytest.mark.parametrize("model", ["pisa", "paa"])
def test_doctor_names_the_command_that_fetches_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str
) -> None:
    monkeypatch.setenv("CHECKPOINTS_DIR", str(tmp_path))
    monkeypatch.setenv("DETGATE_CACHE", str(tmp_path / "cache"))
    lines, _ = examined()
    fetch = f"python -m harness fetch {model} --checkpoints {tmp_path}"
    assert f"{'':<13}{model} not there. mend it: {fetch}" in lines


def test_doctor_names_what_replaces_a_damaged_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / load_models()["pisa"].checkpoint.file
    path.write_bytes(b"half")
    monkeypatch.setenv("CHECKPOINTS_DIR", str(tmp_path))
    lines, _ = examined()
    assert [line for line in lines if "truncated, or another file. mend it: rm " in line]


@pytest.mark.parametrize("model", ["pisa-mini", "paa-mini"])
def test_doctor_finds_the_embedded_checkpoints(model: str) -> None:
    lines, _ = examined()
    assert [line for line in lines if line.startswith(f"{'':<13}{model} ") and line.endswith(".pth")]


@pytest.mark.parametrize(
    ("variable", "start", "option"),
    [("CHECKPOINTS_DIR", "checkpoints", "--checkpoints"), ("DATASETS_DIR", "COCO", "--data-dir")],
)
def test_doctor_looks_where_the_environment_says_and_rather_where_it_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, start: str, option: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "absent"))
    lines, _ = examined()
    assert [line for line in lines if line.startswith(f"{start:<12} {tmp_path}/absent: not there ({option} DIR)")]
    lines, _ = examined(option, str(tmp_path))
    assert [line for line in lines if line.startswith(f"{start:<12} {tmp_path}") and "not there (" not in line]


# --- schema


@pytest.mark.parametrize("name", [SCHEMA_FILE, results.SCHEMA_FILE, baseline.SCHEMA_FILE, known.SCHEMA_FILE])
def test_schema_writes_what_ships(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    said(capsys, "schema", "--baselines", tmp_path)
    assert (tmp_path / name).read_bytes() == (SHIPPED_BASELINES / name).read_bytes()


# --- cache


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with one graph and one engine."""
    made = Cache(tmp_path / "cache")
    for kind, inputs in (("onnx", {"step": "export"}), ("engine", {"engine": "openvino"})):
        made.artifact(kind, inputs, "file", half_a_megabyte)
    return made.directory


def half_a_megabyte(target: Path) -> None:
    target.write_bytes(b"x" * 500_000)


def test_cache_list_shows_each_entry(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    lines = said(capsys, "cache", "list", "--cache-dir", cache).splitlines()
    assert sorted(line.split()[0] for line in lines[:-1]) == ["engine", "onnx"]


def test_cache_list_names_the_engine_of_an_engine_file(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert re.search(
        r"^engine .* 0\.5 MB  openvino$", said(capsys, "cache", "list", "--cache-dir", cache), re.MULTILINE
    )


def test_cache_list_sums_up(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert said(capsys, "cache", "list", "--cache-dir", cache).endswith(f"2 entries, 1.0 MB in {cache}\n")


def test_cache_list_as_json_holds_kinds_sizes_and_engines(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    content = json.loads(said(capsys, "cache", "list", "--cache-dir", cache, "--format", "json"))
    found = {entry["kind"]: (entry["bytes"] >= 500_000, entry["engine"]) for entry in content["entries"]}
    assert (content["directory"], found) == (str(cache), {"onnx": (True, None), "engine": (True, "openvino")})


def test_cache_list_in_markdown_ends_in_the_sum(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    text = said(capsys, "cache", "list", "--cache-dir", cache, "--format", "markdown")
    assert text.count("\n| ") == 3
    assert text.endswith(f"\n\n2 entries, 1.0 MB in {cache}\n")


def test_cache_list_deletes_nothing(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    said(capsys, "cache", "list", "--cache-dir", cache)
    assert len(Cache(cache).entries()) == 2


def test_cache_clear_deletes_all(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert f"2 entries, 1.0 MB removed from {cache}" in said(capsys, "cache", "clear", "--cache-dir", cache)
    assert Cache(cache).entries() == []


def test_cache_clear_spares_what_was_used_lately(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    assert "0 entries" in said(capsys, "cache", "clear", "--unused-for", "1", "--cache-dir", cache)


def test_the_cache_is_where_the_environment_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("DETGATE_CACHE", str(cache))
    assert said(capsys, "cache", "list").endswith(f"in {cache}\n")


def test_a_cache_that_is_not_there_has_no_entries(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "0 entries, 0.0 MB" in said(capsys, "cache", "list", "--cache-dir", tmp_path / "absent")


# --- baseline accept


def propose(folder: Path, **figures: Any) -> None:
    """What a run proposes for `CELL`."""
    (folder / "proposed").mkdir(exist_ok=True)
    cell = FIGURES | {"map_50_95": 0.4, "map_50": 0.6} | figures
    content = {"schema": 1, "model": "pisa-mini", "accuracy": {CELL: cell}}
    (folder / "proposed" / "pisa-mini.json").write_text(json.dumps(content))


def measure(folder: Path, fps: float | None, **environment: Any) -> None:
    """What a run measured of `CELL`'s speed."""
    speed = {"latency_ms": None, "cv": None, "status": "RECORDED", "expected": None, "tolerance": None, "reason": ""}
    speed |= {"uncertainty": 0.01}
    parts = {"id": CELL, "model": "pisa-mini", "precision": "fp32", "engine": "onnxruntime", "batch": 8}
    environment = collect().as_json() | {"fingerprint": "0123456789ab", "device": {"cpu": "EPYC"}} | environment
    content = {"schema": 1, "environment": environment, "cells": [parts | {"performance": speed | {"fps": fps}}]}
    (folder / "results.json").write_text(json.dumps(content))


@pytest.fixture
def accept(tmp_path: Path, baselines: Path) -> list[object]:
    """The command that accepts `CELL`, with its places."""
    places = ["--results", tmp_path / "results.json", "--baselines", baselines]
    return ["baseline", "accept", CELL, "--reason", "checked by hand", *places]


def test_an_accepted_accuracy_is_recorded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, baselines: Path, accept: list[object]
) -> None:
    propose(tmp_path)
    assert said(capsys, *accept) == "accepted pisa-mini fp32: AP 0.4000, AP50 0.6000\n"
    assert [entry.map_50_95 for entry in load_recorded(baselines, "pisa-mini").accuracy] == [0.4]


def test_an_accepted_figure_can_be_read_by_whom_the_umask_allows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, baselines: Path, accept: list[object]
) -> None:
    propose(tmp_path)
    before = os.umask(0o022)
    try:
        said(capsys, *accept)
    finally:
        os.umask(before)
    assert stat.S_IMODE((baselines / "recorded" / "pisa-mini.json").stat().st_mode) == 0o644


def test_an_acceptance_says_who_when_and_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, baselines: Path, accept: list[object]
) -> None:
    propose(tmp_path)
    said(capsys, *accept)
    accepted = load_recorded(baselines, "pisa-mini").accuracy[0].accepted
    assert (accepted.reason, accepted.cell, accepted.previous) == ("checked by hand", CELL, None)
    assert accepted.by
    assert accepted.when


def test_a_second_acceptance_replaces_the_first_and_remembers_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, baselines: Path, accept: list[object]
) -> None:
    propose(tmp_path)
    said(capsys, *accept)
    propose(tmp_path, map_50_95=0.39)
    assert "AP 0.3900 (was 0.4000)" in said(capsys, *accept)
    (entry,) = load_recorded(baselines, "pisa-mini").accuracy
    assert entry.accepted.previous == {"map_50_95": 0.4, "map_50": 0.6}


@pytest.mark.parametrize("other", [{"precision": "fp16"}, {"dataset": "c" * 64}, {"weights": "d" * 8}], ids=str)
def test_figures_of_another_run_are_kept_beside(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, baselines: Path, accept: list[object], other: dict[str, str]
) -> None:
    propose(tmp_path)
    said(capsys, *accept)
    propose(tmp_path, **other)
    said(capsys, *accept)
    assert len(load_recorded(baselines, "pisa-mini").accuracy) == 2


def test_an_accepted_speed_is_recorded_for_its_device_and_batch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, baselines: Path, accept: list[object]
) -> None:
    measure(tmp_path, fps=100.0)
    assert said(capsys, *accept, "--speed") == f"accepted {CELL}: 100.00 FPS at batch 8, tolerance 5%\n"
    found = load_recorded(baselines, "pisa-mini").find_speed(SpeedKey(CELL, 8, "0123456789ab"))
    assert found is not None
    assert found.device == {"cpu": "EPYC"}


@pytest.mark.parametrize(("fingerprint", "entries"), [("0123456789ab", 1), ("ba9876543210", 2)])
def test_a_second_speed_replaces_the_first_on_the_same_device_only(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    baselines: Path,
    accept: list[object],
    fingerprint: str,
    entries: int,
) -> None:
    measure(tmp_path, fps=100.0)
    said(capsys, *accept, "--speed")
    measure(tmp_path, fps=90.0, fingerprint=fingerprint)
    said(capsys, *accept, "--speed")
    assert len(load_recorded(baselines, "pisa-mini").speed) == entries


def test_speed_and_accuracy_do_not_disturb_each_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, baselines: Path, accept: list[object]
) -> None:
    propose(tmp_path)
    measure(tmp_path, fps=100.0)
    said(capsys, *accept)
    said(capsys, *accept, "--speed")
    recorded = load_recorded(baselines, "pisa-mini")
    assert (len(recorded.accuracy), len(recorded.speed)) == (1, 1)


def test_a_cell_without_speed_has_none_to_accept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, accept: list[object]
) -> None:
    measure(tmp_path, fps=None)
    assert main([*map(str, accept), "--speed"]) == 4
    assert f"has no speed of cell '{CELL}'" in capsys.readouterr().err


@pytest.mark.parametrize("field", ["fingerprint", "device"])
def test_a_speed_of_an_unknown_device_is_not_accepted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, accept: list[object], field: str
) -> None:
    measure(tmp_path, fps=100.0)
    content = json.loads((tmp_path / "results.json").read_text())
    del content["environment"][field]
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert main([*map(str, accept), "--speed"]) == 4
    assert f"key 'environment.{field}': Field required" in capsys.readouterr().err


# --- errors


def _divides(*_: object) -> None:
    raise ZeroDivisionError("of ours")


def test_a_fault_of_detgate_exits_with_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", _divides)
    assert main(["doctor"]) == 3


def test_a_fault_of_detgate_says_so_below_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", _divides)
    main(["doctor"])
    assert capsys.readouterr().err.endswith("ZeroDivisionError: of ours\nthis is a fault of detgate\n")


def test_an_interrupt_is_one_line_and_no_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", _interrupts)
    assert (main(["doctor"]), capsys.readouterr().err) == (130, "interrupted\n")


def _interrupts(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_error_is_two_lines_on_stderr(capsys: pytest.CaptureFixture[str], accept: list[object]) -> None:
    assert main([str(word) for word in accept]) == 4
    cause, remedy = capsys.readouterr().err.splitlines()
    assert cause.startswith(f"baseline: no proposal for cell '{CELL}'")
    assert remedy.startswith("  mend it: run `pytest -m accuracy`")


@pytest.mark.parametrize("words", ["", "nope", "cache", "cache burn", "list --xml", "baseline", "baseline accept"])
def test_a_wrong_command_exits_with_4(words: str) -> None:
    assert main(words.split()) == 4


COMMANDS = {row.command: row for row in reference.rows(make_parser())}


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", sorted({command.split()[0] for command in COMMANDS}))
def test_every_command_is_in_the_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert re.search(rf"^    {command} ", help_of(capsys), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_says_how_it_exits(capsys: pytest.CaptureFixture[str], command: str) -> None:
    said = " ".join(help_of(capsys, *command.split()).split())
    finding = f"; 1 {COMMANDS[command].finding}" if COMMANDS[command].finding else ""
    assert said.endswith(f"Exit codes: 0 done{finding}; 3 a fault of detgate; 4 wrong input.")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_says_what_it_is_for(capsys: pytest.CaptureFixture[str], command: str) -> None:
    text = help_of(capsys, *command.split())
    bare = re.findall(r"^  (--[\w-]+)(?: \S+)?\n(?!\s{20})", text, re.MULTILINE)
    assert bare == []


def test_pytests_help_has_detgates_options_in_groups_each_with_its_use(pytestconfig: pytest.Config) -> None:
    groups = [group for group in pytestconfig._parser._groups if group.name.startswith("detgate-")]
    assert [len(group.options) for group in groups] == [10, 4, 3, 6]
    assert [option for group in groups for option in group.options if not option.attrs().get("help")] == []
