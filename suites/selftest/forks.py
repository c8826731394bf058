"""Takes the words of `python -m MODULE ...`; gives its exit code and output, from a process that need not import first.

The tests start hundreds of commands, and most of a command's time goes into importing what all of them import. So one
process imports it once, and each command is a fork of that: a process of its own all the same, with its own working
directory, environment, output and end. What has been imported is frozen first, or each fork's garbage collector would
walk through it, and copy it.
"""

import atexit
import functools
import gc
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

Outcome = subprocess.CompletedProcess[str]

# Nothing of ours that is a plugin of pytest: it rewrites their asserts when it imports them. Nor ONNX Runtime, which
# starts a thread: a fork lacks it, and waits for it forever.
IMPORTED = (
    *("numpy", "scipy.stats", "torch", "onnx", "cv2", "PIL.Image", "PIL.JpegImagePlugin", "PIL.PngImagePlugin"),
    *("pydantic", "rich.console", "rich.table", "rich.progress", "rich._emoji_codes", "mmengine.config", "hotcoco"),
    *("filelock", "xml.etree.ElementTree", "netrc", "pytest", "_pytest.junitxml", "_pytest.unittest"),
    *("hypothesis", "execnet", "xdist.plugin", "pytest_benchmark.plugin"),
    *("harness.__main__", "harness.pipeline", "harness.detect.run", "harness.detect.decode.anchor"),
    *("harness.detect.decode.paa", "harness.conformance.metamorphic", "harness.conformance.rebuilds"),
    *("harness.judge.known", "harness.report.annotations", "harness.report.conformance", "harness.report.page.write"),
    *("harness.report.results", "harness.report.summary", "harness.report.table"),
)
# pytest rewrites the asserts of each package that a plugin comes with, and warns of what was imported before it could.
NOT_REWRITTEN = ("harness", "suites", "hypothesis", "_hypothesis_globals", "xdist", "pytest_benchmark")
# NumPy's, SciPy's and OpenCV's OpenBLAS start their threads when they are loaded.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}


def run(words: list[str], cwd: Path, environment: Mapping[str, str]) -> Outcome:
    """`python -m MODULE WORD ...` in `cwd`, with this environment alone.

    Args:
        words: the module and what it is given.
        environment: too late for what Python and its libraries read when they start (`PYTHON…`, `OMP_NUM_THREADS`).
    """
    if sys.platform != "linux":  # elsewhere a process that has imported these must not fork
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    with tempfile.TemporaryDirectory(prefix="detgate-fork-") as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        request = {"words": words, "cwd": str(cwd), "env": dict(environment), "out": str(out), "err": str(err)}
        code = _server().ask(request)
        return Outcome(words, code, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))


class _Server:
    """The process that has imported everything."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", __name__]
        root = Path(__file__).resolve().parents[2]
        pipe, environment = subprocess.PIPE, os.environ | ONE_THREAD
        self._process = subprocess.Popen(command, cwd=root, env=environment, stdin=pipe, stdout=pipe, text=True)

    def ask(self, request: dict[str, object]) -> int:
        """The exit code of one command; below 0, the signal that ended it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that commands are forked from ended with {self._process.wait()}")
        return int(answer)

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@functools.cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.close)
    return server


def _serve() -> dict[str, object] | None:
    """Fork for each request; in the fork, the request that it is for. None, in the server, where no more come."""
    for line in iter(sys.stdin.readline, ""):
        pid = os.fork()
        if not pid:
            request: dict[str, object] = json.loads(line)
            return request
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def _become(request: dict[str, object]) -> int:
    """Be the command that was asked for; gives its exit code."""
    for name, stream in (("out", 1), ("err", 2)):
        os.dup2(os.open(str(request[name]), os.O_WRONLY | os.O_CREAT), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(str(request["cwd"]))
    sys.path[0] = os.getcwd()
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]
    module, *arguments = request["words"]  # type: ignore[misc]
    sys.argv, sys.orig_argv = [module, *arguments], [sys.executable, "-m", *request["words"]]  # type: ignore[misc]
    for package in NOT_REWRITTEN:
        sys.modules[package].__doc__ = "PYTEST_DONT_REWRITE"
    gc.enable()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, str):
            return int(end.code or 0)
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001  as Python ends
        traceback.print_exc()
        return 1
    return 0


def _leave(code: int) -> NoReturn:
    """End as Python does, but for one thing: what was imported is not taken apart, which takes as long as the rest."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _import_all() -> None:
    gc.disable()
    for name in IMPORTED:
        __import__(name)
    gc.collect()
    gc.freeze()
    if (threads := len(list(Path("/proc/self/task").iterdir()))) != 1:
        raise RuntimeError(f"a process of {threads} threads must not fork: what did one of {IMPORTED} start?")


if __name__ == "__main__":
    _import_all()
    if (asked := _serve()) is not None:
        _leave(_become(asked))
