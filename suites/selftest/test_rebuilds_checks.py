"""Builds from nothing that differ: each check sees its own difference, and noise makes a spread doubtful."""

import numpy as np
import pytest

from harness.conformance.finding import verdict
from harness.conformance.rebuilds import CHECKS, Build, Builds
from harness.judge.verdict import Status
from harness.measure.throughput import Throughput, summarise

pytestmark = pytest.mark.selftest


def speed(seconds: float = 0.1, noise: tuple[str, ...] = ()) -> Throughput:
    made = summarise([seconds] * 12, batch=8)
    return Throughput(**{**vars(made), "noise": noise})


def build(cls: float = 1.0, map_50_95: float = 0.4, timed: Throughput | None = None) -> Build:
    return Build({"cls_8": np.full((2, 3), cls, np.float32)}, map_50_95, timed or speed())


OTHERS = {
    "rebuilt_outputs": build(cls=1.001),
    "rebuilt_map": build(map_50_95=0.39),
    "rebuilt_fps": build(timed=speed(0.12)),
}


def broken(*builds: Build) -> set[str]:
    found = Builds("fp32", repeatable=True, all=builds)
    return {name for name, check in CHECKS.items() if not check(found).held}


def test_builds_that_are_alike_keep_every_promise() -> None:
    assert broken(build(), build(), build()) == set()


@pytest.mark.parametrize("check", CHECKS)
def test_each_check_sees_its_own_difference_alone(check: str) -> None:
    assert broken(build(), OTHERS[check], build()) == {check}


@pytest.mark.parametrize(("noise", "status"), [((), Status.INVALID), (("it jumped",), Status.INCONCLUSIVE)])
def test_a_spread_among_noise_is_inconclusive(noise: tuple[str, ...], status: Status) -> None:
    finding = CHECKS["rebuilt_fps"](Builds("fp32", True, [build(), build(timed=speed(0.12, noise))]))
    found = verdict(finding, "cell", "pytest")
    assert found.status is status
    assert all(phrase in found.reason for phrase in noise)


def test_noise_is_no_excuse_where_the_spread_is_small() -> None:
    finding = CHECKS["rebuilt_fps"](Builds("fp32", True, [build(), build(timed=speed(noise=("it jumped",)))]))
    assert verdict(finding, "cell", "pytest").status is Status.PASS
