"""Each fault of the catalogue is caught by the check it names; the whole of it, and harmless changes, by the proof.

`python -m suites.selftest.faults` writes baselines/proof/accuracy.json.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.judge.accuracy import METRICS
from harness.judge.previous import CHECKS
from harness.pipeline import Cell
from suites.selftest.conftest import CHECKOUT
from suites.selftest.faults import __main__ as proof
from suites.selftest.faults.catalogue import FAULTS, Fault
from suites.selftest.faults.harmless import PARTS, Change, between
from suites.selftest.faults.multinomial import Matches, changes
from suites.selftest.faults.prove import Bench, caught_by

pytestmark = pytest.mark.selftest

IMAGES = 64
NAMES = {*CHECKS, "precision", *(f"recorded {metric}" for metric in METRICS)}
QUICK = ("ten images lost", "fp32 in place of fp16", "padding counted")

quick = [fault for fault in FAULTS if any(name in fault.name for name in QUICK)]


@pytest.fixture(scope="module")
def bench(session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(session_cache, tmp_path_factory.mktemp("faults"), IMAGES)


def test_every_fault_names_a_check_that_there_is() -> None:
    assert {fault.check for fault in FAULTS} <= NAMES
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 24


@pytest.mark.parametrize("fault", quick, ids=lambda fault: fault.name)
def test_a_fault_is_caught_by_the_check_it_names(fault: Fault, bench: Bench) -> None:
    assert fault.check in caught_by(fault, Cell(fault.models[0], fault.precision, fault.engines[0]), bench)


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


# --- harmless changes and coverage, in short

FP32, TORCH, INT8 = (
    Cell("pisa-mini", "fp32", "onnxruntime"),
    Cell("pisa-mini", "fp32", "torch"),
    Cell("pisa-mini", "int8", "onnxruntime"),
)


@pytest.fixture(scope="module")
def harmless(bench: Bench) -> list[Change]:
    """Another engine, and back, on all images and on parts of them."""
    return list(between(bench, [FP32, TORCH]))


def test_no_harmless_change_fails(harmless: list[Change]) -> None:
    found = proof.harmless_runs(harmless)
    assert (found["runs"], found["failed"], found["failures"]) == (2 * (1 + PARTS), 0, [])


def test_the_reverse_and_the_parts_of_a_change_are_not_independent(harmless: list[Change]) -> None:
    assert [change.name for change in harmless if change.independent] == [f"{FP32.id} -> {TORCH.id}, all images"]


def test_the_parts_are_the_whole(harmless: list[Change]) -> None:
    whole, *parts = (change.pair for change in harmless[: 1 + PARTS])
    assert sum(len(part.after.detections) for part in parts) == len(whole.after.detections)
    ids = [record.id for part in parts for record in part.dataset.images]
    assert sorted(ids) == sorted(record.id for record in whole.dataset.images)


def test_a_change_that_does_harm_is_counted_and_named(harmless: list[Change]) -> None:
    pair = harmless[0].pair
    after = replace(pair.before, detections=pair.before.detections.above(0.2))
    harm = Change("threshold", replace(pair, after=after), independent=True)
    same = Change("nothing", replace(pair, after=pair.before), independent=False)
    found = proof.harmless_runs([harm, same])
    (failure,) = found.pop("failures")
    assert (failure["change"], "count" in failure["checks"]) == ("threshold", True)
    assert found == {
        "runs": 2,
        "identical": 1,
        "failed": 1,
        "upper_bound": 0.97468,
        "independent": 1,
        "independent_and_different": 1,
        "dependent": 1,
        "upper_bound_of_independent": 1.0,
    }


def test_without_a_failure_among_300_at_most_one_percent_fails() -> None:
    assert proof.upper_bound(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300), abs=1e-5)
    assert proof.upper_bound(0, 300) < 0.01 < proof.upper_bound(0, 297)


def test_the_corrected_interval_holds_95_of_100_plain_resamples(bench: Bench) -> None:
    found = proof.covered(bench, FP32, INT8, resamples=200)
    assert 0.9 <= found["observed"] <= 1
    assert found["standard_error"] == pytest.approx(found["plain_standard_error"], rel=0.2)


# --- what the proof says of itself

HEALTHY: dict[str, Any] = {
    "faults": [
        {"name": "red and blue swapped", "named_check": "map_50_95", "caught": True},
        {"name": "ten images lost", "named_check": "integrity", "caught": True},
        {"name": "ten images lost", "named_check": "integrity", "caught": True},
    ],
    "harmless": {
        "runs": 300,
        "identical": 75,
        "failed": 3,
        "upper_bound": 0.0257,
        "independent": 60,
        "independent_and_different": 12,
        "upper_bound_of_independent": 0.049,
    },
    "coverage": {
        "nominal": 0.95,
        "observed": 0.93,
        "resamples": 2000,
        "pairs": [{"observed": 0.92}, {"observed": 0.94}],
    },
}


def test_a_proof_that_just_holds_is_healthy() -> None:
    assert [holds for _, holds in proof.findings(HEALTHY).values()] == [True] * 3


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("faults", [*HEALTHY["faults"], HEALTHY["faults"][0] | {"caught": False}]),
        ("harmless", HEALTHY["harmless"] | {"runs": 299, "identical": 0, "failed": 0}),
        ("harmless", HEALTHY["harmless"] | {"failed": 4}),
        ("harmless", HEALTHY["harmless"] | {"identical": 76}),
        ("coverage", HEALTHY["coverage"] | {"observed": 0.929}),
        ("coverage", HEALTHY["coverage"] | {"observed": 0.971}),
        ("coverage", HEALTHY["coverage"] | {"resamples": 1999}),
    ],
)
def test_a_proof_that_does_not_hold_is_told(part: str, change: Any) -> None:
    found = proof.findings(HEALTHY | {part: change})
    assert [name for name, (_, holds) in found.items() if not holds] == [part]


def test_the_table_counts_what_each_check_caught() -> None:
    missed = [*HEALTHY["faults"], HEALTHY["faults"][1] | {"caught": False}]
    lines = proof.table(HEALTHY | {"faults": missed}).splitlines()
    assert lines[2:4] == [
        "| `map_50_95` | red and blue swapped | 1 of 1 |",
        "| `integrity` | ten images lost | 2 of 3 |",
    ]


def test_the_text_below_the_table_holds_the_bounds_and_the_coverage() -> None:
    text = " ".join(proof.table(HEALTHY).splitlines()[5:])
    wanted = [
        "3 of 300 failed a check; 75 had",
        "At most 2.6% fail",
        "holds 93.0% of 2000",
        "92.0% to 94.0% in each of 2",
    ]
    assert [part for part in wanted if part not in text] == []


def test_a_part_is_run_alone_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "accuracy.json"
    out.write_text(json.dumps({name: HEALTHY[name] for name in ("coverage", "faults")}))
    monkeypatch.setattr(proof, "harmless_runs", lambda _changes: HEALTHY["harmless"])
    assert proof.main(["--part", "harmless", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert [*content] == [*proof.PARTS, "environment"]
    assert capsys.readouterr().out.count("ok: ") == 3


def test_a_fault_that_was_run_is_not_run_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(proof, "FAULTS", (FAULTS[0],))
    monkeypatch.setattr(proof, "caught_by", lambda fault, cell, _bench: asked.append(cell.id) or [fault.check])
    assert proof.faults(bench) == proof.faults(bench)
    assert asked == [f"{model}-fp32-onnxruntime" for model in FAULTS[0].models]


# --- the proof that is kept


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(proof.OUT.read_text(encoding="utf-8"))
    return content


def test_the_proof_holds_every_fault_on_each_model_and_engine(kept: dict[str, Any]) -> None:
    wanted = [(f.name, model, engine, f.check) for f in FAULTS for model in f.models for engine in f.engines]
    assert [(row["name"], row["model"], row["engine"], row["named_check"]) for row in kept["faults"]] == wanted


@pytest.mark.parametrize("part", proof.PARTS)
def test_the_proof_finds_what_is_wanted(kept: dict[str, Any], part: str) -> None:
    assert proof.findings(kept)[part][1]


def test_the_readmes_table_is_that_of_the_proof(kept: dict[str, Any]) -> None:
    assert proof.table(kept) in (CHECKOUT / "docs" / "statistics.md").read_text(encoding="utf-8")


def test_the_readme_counts_what_the_proof_holds(kept: dict[str, Any]) -> None:
    text = " ".join((CHECKOUT / "README.md").read_text(encoding="utf-8").split())
    rows, harmless = kept["faults"], kept["harmless"]
    assert f"{len({row['name'] for row in rows})} faults in {sum(row['caught'] for row in rows)} places" in text
    assert f"{harmless['failed']} of {harmless['runs']} harmless changes failed" in text


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_is_caught_on_each_model_and_engine(
    fault: Fault, session_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = Bench(session_cache, tmp_path_factory.mktemp("faults"))
    for model in fault.models:
        for engine in fault.engines:
            assert fault.check in caught_by(fault, Cell(model, fault.precision, engine), whole), (model, engine)
