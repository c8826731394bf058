"""Each fault of the catalogue is caught by the check it names; the whole of it, and harmless changes, by the proof.

`python -m suites.selftest.faults` writes baselines/proof/accuracy.json.
"""

from pathlib import Path

import numpy as np
import pytest

from harness.judge.accuracy import METRICS
from harness.judge.previous import CHECKS
from harness.pipeline import Cell
from suites.selftest.faults.catalogue import FAULTS, Fault
from suites.selftest.faults.multinomial import Matches, changes
from suites.selftest.faults.prove import Bench, caught_by

pytestmark = pytest.mark.selftest

IMAGES = 64
NAMES = {*CHECKS, "precision", *(f"recorded {metric}" for metric in METRICS)}
QUICK = ("score threshold 0.3", "boxes one pixel larger", "ten images lost", "fp32 in place of fp16", "padding counted")

quick = [fault for fault in FAULTS if any(name in fault.name for name in QUICK)]


@pytest.fixture(scope="module")
def bench(session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(session_cache, tmp_path_factory.mktemp("faults"), IMAGES)


def test_every_fault_names_a_check_that_there_is() -> None:
    assert {fault.check for fault in FAULTS} <= NAMES
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 24


@pytest.mark.parametrize("fault", quick, ids=lambda fault: fault.name)
def test_a_fault_is_caught_by_the_check_it_names(fault: Fault, bench: Bench) -> None:
    for model in fault.models:
        assert fault.check in caught_by(fault, Cell(model, fault.precision, fault.engines[0]), bench)


def test_without_a_fault_nothing_is_caught(bench: Bench) -> None:
    assert caught_by(Fault("none", "count"), Cell("pisa-mini", "fp32", "onnxruntime"), bench) == []


def test_the_plain_bootstrap_evaluates_as_the_referee_does(bench: Bench) -> None:
    cell = Cell("pisa-mini", "fp32", "onnxruntime")
    run = bench.clean(cell)
    matches = Matches(bench.dataset(cell), run.detections)
    assert matches.average_precision(np.ones(IMAGES)) == pytest.approx(run.record.metrics["map_50_95"], abs=1e-12)
    assert not changes(matches, matches, IMAGES, resamples=3).any()


def test_an_image_drawn_twice_counts_twice(bench: Bench) -> None:
    cell = Cell("pisa-mini", "fp32", "onnxruntime")
    matches = Matches(bench.dataset(cell), bench.clean(cell).detections)
    assert matches.average_precision(np.full(IMAGES, 2.0)) == pytest.approx(matches.average_precision(np.ones(IMAGES)))
    only_first = np.zeros(IMAGES)
    only_first[0] = 1
    assert matches.average_precision(only_first) != pytest.approx(matches.average_precision(np.ones(IMAGES)))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_is_caught_on_each_model_and_engine(
    fault: Fault, session_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = Bench(session_cache, tmp_path_factory.mktemp("faults"))
    for model in fault.models:
        for engine in fault.engines:
            assert fault.check in caught_by(fault, Cell(model, fault.precision, engine), whole), (model, engine)
