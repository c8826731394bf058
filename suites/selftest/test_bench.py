"""The bench of conformance: one cell open at a time, and what cells of one model, and only they, have in common."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fixtures.conformance import Bench
from harness.pipeline import Cell, Pipeline, Prepared
from suites.selftest.fakes import NAME, FakeEngine, FakeSession, Workplace, write_model

pytestmark = pytest.mark.selftest

FP32, FP16, OTHER = Cell("toy", "fp32", NAME), Cell("toy", "fp16", NAME), Cell("other", "fp32", NAME)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models whose fp32 graph was run, one for each time; its maps tell the model."""
    models: list[str] = []

    def fp32_maps(_self: Pipeline, prepared: Prepared, _images: object) -> dict[str, np.ndarray]:
        models.append(prepared.cell.model)
        return {"cls_8": np.full(1, len(prepared.cell.model), np.float32)}

    monkeypatch.setattr(Pipeline, "fp32_maps", fp32_maps)
    return models


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr("harness.pipeline.get_engine", lambda *_: FakeEngine({}))
    place = Workplace.make(tmp_path)
    write_model(place.baselines, place.checkpoints, OTHER.model)
    made = Bench(Pipeline(place.settings(batch_size=2)))
    yield made
    made.put_away()
    made.elsewhere.close()


def reference(bench: Bench, cell: Cell) -> float:
    subject = bench.examined(cell, random=False).subject
    return float(subject.reference(subject.images)["cls_8"][0])


def test_cells_of_a_model_share_its_reference(bench: Bench, asked: list[str]) -> None:
    assert reference(bench, FP32) == reference(bench, FP16)
    assert asked == [FP32.model]


def test_another_model_has_a_reference_of_its_own(bench: Bench, asked: list[str]) -> None:
    assert (reference(bench, FP32), reference(bench, OTHER)) == (len(FP32.model), len(OTHER.model))
    assert asked == [FP32.model, OTHER.model]


def test_a_cell_is_opened_once_and_closed_before_the_next(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    opened = FakeEngine.open
    monkeypatch.setattr(FakeEngine, "open", lambda engine, *given: said.append("open") or opened(engine, *given))
    monkeypatch.setattr(FakeSession, "close", lambda _self: said.append("close"))
    assert bench.examined(FP32, random=False) is bench.examined(FP32, random=False)
    bench.examined(FP16, random=False)
    assert said == ["open", "close", "open"]
