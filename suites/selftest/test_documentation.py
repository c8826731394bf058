"""The documentation holds: its commands are taken, and run; its links lead somewhere; the messages it quotes exist."""

import ast
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.__main__ import make_parser
from harness.errors import UsageError
from suites.selftest.conftest import CHECKOUT
from suites.selftest.documentation import FILES, Line, anchors, blocks, commands, inline_commands, links, prose

pytestmark = pytest.mark.selftest

TROUBLES = CHECKOUT / "docs" / "troubleshooting.md"
MODELS = CHECKOUT / "docs" / "models.md"
NARROW = " --model pisa-mini --engine onnxruntime --precision fp32"
COLLECT = " --collect-only -q"
MINUTES, HARDWARE, NETWORK = "takes minutes", "needs another device", "needs the network"
OWN, TWO = "needs weights of one's own", "needs two environments"

# How commands are run that are not run as they stand: in what form, and why.
CHANGED: dict[str, tuple[str, str]] = {
    "make gate": ("make -n gate", MINUTES),
    "make test": ("make -n test", MINUTES),
    **{
        command: (command + NARROW, MINUTES)
        for command in (
            "pytest -m accuracy",
            "pytest -m performance --benchmark-json=b.json",
            "pytest -m accuracy --against main/results.json",
            'pytest -m "accuracy or performance" --history results/history.jsonl',
            "pytest -m conformance --model '*-mini'",
            "pytest -m conformance suites/conformance/test_stages.py",
        )
    },
    **{
        command: (command + COLLECT, why)
        for command, why in {
            "pytest -m accuracy --model pisa --engine onnxruntime --precision fp32 --data-dir /data/coco "
            "--checkpoints /data/ckpt": "needs COCO",
            "pytest -m accuracy --model pisa --require 'pisa-*-onnxruntime'": MINUTES,
            "pytest -m performance --model pisa --precision fp16 --engine tensorrt --history speed.jsonl": HARDWARE,
            "pytest -m accuracy --baselines my/baselines --model my-retinanet": OWN,
            "pytest -m accuracy --baselines my/baselines --model my-retinanet --precision fp32 "
            "--engine onnxruntime": OWN,
            "pytest -m accuracy --baselines my/baselines --model my-retinanet --onnx my.onnx": "needs an ONNX",
            "pytest -m accuracy --baselines my/baselines --model my-retinanet --precision fp16 --engine openvino "
            "--engine-file my.blob": "needs an engine file",
            "pytest -m accuracy --baselines ../baselines --require 'my-retinanet-*-onnxruntime' "
            "--against ../detgate-main": OWN,
            "pytest -m performance --baselines ../baselines --benchmark-json=benchmark.json": OWN,
            "pytest -m conformance --model pisa-mini --rebuilds 5": MINUTES,
            "pytest -m host --benchmark-json=host.json": MINUTES,
        }.items()
    },
    "python -m harness fetch coco2017-train": ("python -m harness fetch coco2017-train --dry-run", NETWORK),
}
LEFT: dict[str, str] = {
    "python -m harness baseline accept my-retinanet-fp32-onnxruntime --baselines my/baselines "
    '--reason "boxes looked at"': OWN,
    "python -m harness fetch pisa paa coco2017-val": NETWORK,
    "python -m harness baseline accept pisa-fp16-tensorrt --speed --history speed.jsonl --reason "
    '"locked clocks"': HARDWARE,
    "python -m harness compare --speed pisa-mini-fp32-onnxruntime pisa-mini-int8-onnxruntime": MINUTES,
    "python -m harness compare --speed old.plan new.plan --cell pisa-fp16-tensorrt": HARDWARE,
    "python -m harness compare --speed ~/venv-old ~/venv-new --cell pisa-mini-fp32-onnxruntime": TWO,
    **{
        f"python -m fixtures.mini.{words}": "makes the embedded data and weights again: hours"
        for words in ("generate", "train pisa-mini", "train paa-mini", "score pisa-mini")
    },
}
# Exit codes of what is not green where only this machine's engines are.
CODES = {
    # On a busy machine a speed is too uncertain to be accepted; one that was differs from main and the last run.
    'python -m harness baseline accept pisa-mini-fp32-onnxruntime --speed --reason "idle CI runner"': {0, 4},
    "python -m harness baseline diff": {0, 1},
    "python -m harness baseline diff --against ../main/baselines --format markdown": {0, 1},
    "pytest -m conformance --engine tensorrt --conformance-report tensorrt.html": {5},
    "pytest -m \"accuracy or performance\" --model '*-mini' --engine tensorrt --require '*-mini-*' "
    "--results results/tensorrt.json": {1},
    "pytest -m \"accuracy or performance\" --model pisa --precision fp16 --engine igie --require 'pisa-fp16-igie'": {1},
    "pytest -m \"accuracy or performance\" --model paa --precision fp16 --engine ixrt --require 'paa-fp16-ixrt'": {1},
}

Accepts = Callable[[list[str]], None]


# --- every command is one that its program takes


def check(words: list[str], accepts: Accepts) -> None:
    """Raises where the program does not take the words; nothing is run."""
    if words[0] == "pytest":
        accepts(words[1:])
        missing = [word for word in words[1:] if word.startswith("suites/") and not (CHECKOUT / word).exists()]
        assert not missing
    elif words[:3] == ["python", "-m", "harness"]:
        make_parser().parse_args(words[3:])
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2]), f"no module {words[2]}"
    elif words[0] == "make":
        targets = re.findall(r"^(\w+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = {extra for word in words for found in re.findall(r"\[(.*)\]", word) for extra in found.split(",")}
        assert named <= set(extras)
    else:
        assert words == ["source", ".venv/bin/activate"], f"say here how this is held: {words}"


@pytest.mark.parametrize("line", [*commands(), *inline_commands()], ids=str)
def test_a_command_is_taken_by_its_program(line: Line, accepts: Accepts) -> None:
    check(line.words, accepts)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("pytest -m accuracy --modle pisa", pytest.UsageError),
        ("pytest -m acuracy", AssertionError),
        ("pytest suites/nowhere", AssertionError),
        ("python -m harness compere a b", UsageError),
        ("python -m harness compare a", UsageError),
        ("python -m suites.selftest.nowhere", AssertionError),
        ("make coffee", AssertionError),
        ("pip install -e '.[nothing]'", AssertionError),
        ("curl https://example.org", AssertionError),
    ],
)
def test_a_command_that_its_program_does_not_take_is_found(
    text: str, error: type[BaseException], accepts: Accepts
) -> None:
    with pytest.raises(error):
        check(Line(FILES[0], text).words, accepts)


def test_commands_are_found_in_loops_and_behind_semicolons_and_comments() -> None:
    assert len([line for line in commands() if line.file == FILES[0]]) >= 12
    assert any(line.text.endswith("--history speed.jsonl") for line in commands())
    assert not [line for line in commands() if line.text.startswith(("for", "do ", "done"))]


@pytest.mark.parametrize("text", [*CHANGED, *LEFT, *CODES])
def test_what_is_not_run_as_it_stands_is_still_in_the_documentation(text: str) -> None:
    assert text in {" ".join(line.text.partition(" #")[0].split()) for line in commands()}


# --- links


@pytest.mark.parametrize(
    ("file", "target"), [(file, link) for file in FILES for link in links(file)], ids=lambda value: str(value)[-40:]
)
def test_a_link_leads_to_a_file_and_a_heading(file: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    found = (file.parent / path).resolve() if path else file
    assert found.exists()
    assert not anchor or anchor in anchors(found)


def test_every_page_is_linked_from_the_readme() -> None:
    pages = {f"docs/{file.name}" for file in FILES if file.parent == CHECKOUT / "docs"}
    assert pages <= set(links(FILES[0]))


# --- messages


def messages_of_the_code() -> str:
    """Every text of the code, what is filled in as `…`, one a line."""
    found = []
    for folder in ("harness", "fixtures"):
        for file in (CHECKOUT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


MESSAGES = messages_of_the_code()
QUOTED = re.findall(r"^\| `([^`]+)` \|", prose(TROUBLES), re.MULTILINE)


@pytest.mark.parametrize("message", QUOTED)
def test_a_message_that_troubleshooting_quotes_is_one_of_the_codes(message: str) -> None:
    assert message in MESSAGES


def test_messages_are_quoted_at_all() -> None:
    assert len(QUOTED) > 20
    assert "a message that nothing raises" not in MESSAGES


# --- every command is run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with this environment in it, and beside it what the documentation takes for given."""
    root = tmp_path_factory.mktemp("documentation")
    copy = root / "checkout"
    leave = shutil.ignore_patterns(".git", ".venv", "results", "__pycache__", ".*_cache", "*.egg-info", "wt")
    shutil.copytree(CHECKOUT, copy, ignore=leave)
    (copy / ".venv").symlink_to(Path(sys.prefix))
    (json,) = re.findall(r"^```json\n(.*?)^```$", MODELS.read_text(), re.MULTILINE | re.DOTALL)
    for baselines in (copy / "my" / "baselines", root / "baselines"):
        (baselines / "models").mkdir(parents=True)
        (baselines / "models" / "my-retinanet.json").write_text(json)
    for name in ("my.onnx", "my.blob"):
        (copy / name).touch()
    shutil.copytree(copy / "baselines", root / "main" / "baselines")
    return copy


def run(place: Path, text: str) -> tuple[int, str, float]:
    """Exit code, what was printed, and seconds."""
    foreign = ("DATASETS_DIR", "CHECKPOINTS_DIR", "GITHUB_", "PYTEST_", "COVERAGE_")
    own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    own |= {"PATH": f"{place / '.venv' / 'bin'}{os.pathsep}{own['PATH']}", "PYTHONPATH": str(place)}
    start = time.monotonic()
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(["bash", "-c", text], cwd=place, env=own, text=True, check=False, **streams)
    return done.returncode, done.stdout, time.monotonic() - start


def after(place: Path, text: str) -> None:
    """What a reader has done between two commands: kept main's run."""
    if text.startswith("pytest -m performance --benchmark-json=b.json"):
        for target in (place / "main", place.parent / "detgate-main"):
            shutil.copytree(place / "results", target)


@pytest.mark.slow
def test_every_command_block_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the documentation, each in the place that those before it left."""
    failed = []
    for line in commands():
        text = " ".join(line.text.partition(" #")[0].split())
        if text in LEFT:
            told = f"not run: {LEFT[text]}"
        else:
            instead, why = CHANGED.get(text, (text, ""))
            code, said, seconds = run(place, instead)
            after(place, text)
            told = f"exit code {code}, {seconds:.0f} s{f', as `{instead}`: {why}' if why else ''}"
            if code not in CODES.get(text, {0}):
                failed.append(f"{line}\n{told}\n{said[-3000:]}")
        with capsys.disabled():
            print(f"{line.file.relative_to(CHECKOUT)}: {text}\n    {told}", flush=True)
    assert not failed, "\n\n".join(failed)


def test_every_block_is_of_a_language() -> None:
    """A block without one would be neither shown in colour nor run."""
    for file in FILES:
        fences = re.findall(r"^```(\w*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) % 2 == 0
        assert len(blocks(file)) == fences[::2].count("bash")
