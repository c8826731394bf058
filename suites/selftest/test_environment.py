"""The fingerprint stands for the device alone: software is listed, never compared."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness import environment
from harness.environment import Environment, collect, differences

pytestmark = pytest.mark.selftest

H200 = "NVIDIA H200, 700.00 W, 1980 MHz, 570.86.15\n"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    collect.cache_clear()
    yield
    collect.cache_clear()


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, so that no tool of this machine answers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install(tools: Path, name: str, answer: str, code: int = 0) -> None:
    (tools / "answer").write_text(answer)
    (tools / name).write_text(
        f'#!/bin/sh\nwhile read -r line; do echo "$line"; done < {tools / "answer"}\nexit {code}\n'
    )
    (tools / name).chmod(0o755)


def test_two_calls_give_the_same_object() -> None:
    assert collect() is collect()


def test_versions_name_installed_packages_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", {"pytest": ("no-such-name", "pytest"), "nothing": ("no-such-name",)})
    assert collect().versions | {"gpu_driver": ""} == {"pytest": pytest.__version__, "gpu_driver": ""}


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from harness.environment import collect; collect(); print(*{'torch', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"


def test_device_has_a_cpu_and_its_cores() -> None:
    device = collect().device
    assert device["cpu"]
    assert device["logical_cores"]
    assert device["usable_cores"]


def test_json_holds_the_fingerprint_and_survives_a_round_trip() -> None:
    found = collect().as_json()
    assert json.loads(json.dumps(found))["fingerprint"] == collect().fingerprint


@pytest.fixture
def here() -> Environment:
    return Environment("3.11", "Linux", {"torch": "2.13"}, {"cpu": "EPYC", "gpu": None, "threads": "2"})


def test_the_fingerprint_is_the_same_in_every_release(here: Environment) -> None:
    assert here.fingerprint == "6e7eab10e45b"


def test_the_fingerprint_ignores_the_order_of_fields(here: Environment) -> None:
    assert replace(here, device=dict(reversed(here.device.items()))).fingerprint == here.fingerprint


@pytest.mark.parametrize(
    "upgrade", [{"python": "3.13"}, {"platform": "Linux 7"}, {"versions": {"torch": "3", "gpu_driver": "600"}}], ids=str
)
def test_the_fingerprint_ignores_software(here: Environment, upgrade: dict[str, str]) -> None:
    assert replace(here, **upgrade).fingerprint == here.fingerprint  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"cpu": "Xeon"}, {"gpu": "NVIDIA H200"}, {"threads": "1"}], ids=str)
def test_the_fingerprint_follows_the_device(here: Environment, change: dict[str, str]) -> None:
    assert replace(here, device={**here.device, **change}).fingerprint != here.fingerprint


def test_thread_settings_belong_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert collect().device["threads"] == "3"


def test_without_a_tool_there_is_no_gpu(tools: Path) -> None:
    assert collect().device["gpu"] is None


def test_a_gpu_is_known_by_name_power_limit_and_clock(tools: Path) -> None:
    install(tools, "nvidia-smi", H200)
    fields = ("gpu", "gpu_power_limit", "gpu_max_sm_clock")
    assert [collect().device[field] for field in fields] == ["NVIDIA H200", "700.00 W", "1980 MHz"]


def test_the_driver_is_a_version_and_no_part_of_the_device(tools: Path) -> None:
    install(tools, "nvidia-smi", H200)
    assert collect().versions["gpu_driver"] == "570.86.15"
    assert "gpu_driver" not in collect().device


def test_gpus_of_one_kind_count_once(tools: Path) -> None:
    install(tools, "nvidia-smi", H200 * 8)
    assert collect().device["gpu"] == "NVIDIA H200"


def test_gpus_of_two_kinds_are_both_named(tools: Path) -> None:
    install(tools, "nvidia-smi", H200 + H200.replace("H200", "L4"))
    assert collect().device["gpu"] == "NVIDIA H200 / NVIDIA L4"


def test_an_iluvatar_card_is_asked_by_its_own_tool(tools: Path) -> None:
    install(tools, "ixsmi", "Iluvatar MR-V100, 4.3.0\n")
    assert collect().device["gpu"] == "Iluvatar MR-V100"


@pytest.mark.parametrize(
    ("answer", "code"), [("no devices were found\n", 6), ("No devices were found\n", 0), ("", 0), (H200, 9)], ids=str
)
def test_a_tool_that_finds_no_gpu_means_none(tools: Path, answer: str, code: int) -> None:
    install(tools, "nvidia-smi", answer, code)
    assert collect().device["gpu"] is None


@pytest.mark.parametrize(
    ("text", "cpus"), [("200000 100000\n", 2.0), ("50000 100000\n", 0.5), ("max 100000\n", None), ("", None)]
)
def test_a_container_quota_is_read_in_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cpus: float | None
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(environment, "CPU_QUOTA", tmp_path / "cpu.max")
    assert collect().device["cpu_quota"] == cpus


def test_hyper_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in range(4):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    monkeypatch.setattr(environment, "CPU_ROOT", tmp_path)
    assert collect().device["physical_cores"] == 2


def test_the_governor_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu0/cpufreq").mkdir(parents=True)
    (tmp_path / "cpu0/cpufreq/scaling_governor").write_text("performance\n")
    monkeypatch.setattr(environment, "CPU_ROOT", tmp_path)
    assert collect().device["governor"] == "performance"


def test_what_cannot_be_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CPU_ROOT", "CPU_INFO", "CPU_QUOTA"):
        monkeypatch.setattr(environment, name, tmp_path / "absent")
    device = collect().device
    assert [device[field] for field in ("physical_cores", "governor", "cpu_quota")] == [None, None, None]


def test_equal_devices_have_no_differences() -> None:
    assert differences({"cpu": "EPYC"}, {"cpu": "EPYC"}) == []


def test_every_differing_field_is_named_with_both_values() -> None:
    a, b = {"cpu": "EPYC", "gpu": None, "threads": "2"}, {"cpu": "Xeon", "gpu": "NVIDIA H200", "threads": "2"}
    assert differences(a, b) == ["cpu: EPYC -> Xeon", "gpu: none -> NVIDIA H200"]


def test_a_field_of_one_side_only_differs() -> None:
    assert differences({}, {"governor": "powersave"}) == ["governor: none -> powersave"]
