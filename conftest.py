"""Options, report header and summary of detgate; the fixtures and hooks are in `fixtures/`."""

from pathlib import Path

import pytest

from fixtures.early import register, require_one_checkout
from fixtures.gate import LINES, gate_of
from harness import __version__
from harness.environment import collect

pytest_plugins = ["fixtures.plugin", "fixtures.cells", "fixtures.known", "fixtures.peers", "fixtures.conformance"]


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    require_one_checkout(Path(__file__).resolve().parent)
    register(parser, pluginmanager)


def pytest_report_header(config: pytest.Config) -> list[str]:
    environment, gate = collect(), gate_of(config)
    models = sorted({cell.model for cell in gate.cells})
    return [
        f"detgate {__version__}: {len(gate.cells)} cells of {', '.join(models)}",
        f"device: {environment.device.get('gpu') or environment.device['cpu']}, fingerprint {environment.fingerprint}; "
        f"cache: {config.getoption('cache_dir')}",
    ]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    writer = terminalreporter._tw
    lines = [*gate_of(config).summary(writer.fullwidth, writer.hasmarkup), *config.stash.get(LINES, [])]
    if lines:
        terminalreporter.section("detgate")
        for line in [*lines, *gate_of(config).annotations()]:
            terminalreporter.write_line(line)
