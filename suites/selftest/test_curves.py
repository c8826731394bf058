"""Curves keep what the evaluator accumulated, by class and area, and come back from their file as they were."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import EvaluationError
from harness.measure.curves import Curves

pytestmark = pytest.mark.selftest


def curves() -> Curves:
    """Two IoU thresholds, three recall thresholds, two classes, two areas; the dog has no small ground truth."""
    precision = np.linspace(0, 1, 24).reshape(2, 3, 2, 2)
    recall = np.linspace(0.1, 0.8, 8).reshape(2, 2, 2)
    precision[:, :, 1, 1] = recall[:, 1, 1] = -1
    thresholds = np.array([0.5, 0.75]), np.array([0.0, 0.5, 1.0])
    return Curves(precision, recall, *thresholds, class_names=("cat", "dog"), areas=("all", "small"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    curves().save(tmp_path / "curves.npz")
    return tmp_path / "curves.npz"


@pytest.mark.parametrize("name", ["precision", "recall", "iou_thresholds", "recall_thresholds"])
def test_arrays_come_back_bit_by_bit(file: Path, name: str) -> None:
    assert getattr(Curves.load(file), name).tobytes() == getattr(curves(), name).tobytes()


def test_names_come_back(file: Path) -> None:
    loaded = Curves.load(file)
    assert (loaded.class_names, loaded.areas) == (("cat", "dog"), ("all", "small"))


def test_ap_is_the_mean_over_iou_and_recall_thresholds() -> None:
    assert curves().average_precision[0, 1] == pytest.approx(curves().precision[:, :, 0, 1].mean(), abs=1e-15)


def test_ar_is_the_mean_over_iou_thresholds() -> None:
    assert curves().average_recall[1, 0] == pytest.approx(curves().recall[:, 1, 0].mean(), abs=1e-15)


@pytest.mark.parametrize("name", ["average_precision", "average_recall"])
def test_what_has_no_ground_truth_stays_minus_one(name: str) -> None:
    values = getattr(curves(), name)
    assert ((values == -1) == [[False, False], [False, True]]).all()


def narrow(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


WRONG: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], str]] = {
    "precision in float32": ("precision", narrow, r"precision should be float64 \[2, 3, 2, 2\], found float32"),
    "recall in float32": ("recall", narrow, r"recall should be float64 \[2, 2, 2\], found float32"),
    "a class too few": ("precision", lambda values: values[:, :, :1], r"found float64 \[2, 3, 1, 2\]"),
    "an area too few": ("recall", lambda values: values[..., :1], r"found float64 \[2, 2, 1\]"),
    "NaN": ("recall", lambda values: values * np.nan, "8 values of recall are neither -1 nor from 0 to 1, first nan"),
    "more than 1": ("precision", lambda values: values * 1.5, "values of precision are neither"),
    "between -1 and 0": ("recall", lambda values: values - 0.5, "values of recall are neither"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_arrays_that_are_no_curves_are_refused(fault: str) -> None:
    name, change, named = WRONG[fault]
    with pytest.raises(EvaluationError, match=named):
        dataclasses.replace(curves(), **{name: change(getattr(curves(), name))})


def without_a_column(file: Path) -> None:
    np.savez(file, precision=np.zeros(3))


def pickled(file: Path) -> None:
    columns: dict[str, Any] = {**vars(curves()), "precision": np.array([object()])}
    np.savez(file, **columns)


DAMAGED: dict[str, Callable[[Path], object]] = {
    "not there": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("curves"),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "a damaged byte": lambda file: file.write_bytes(file.read_bytes()[:60] + b"!!!!" + file.read_bytes()[64:]),
    "without a column": without_a_column,
    "with a pickle": pickled,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_by_name(file: Path, damage: str) -> None:
    DAMAGED[damage](file)
    with pytest.raises(EvaluationError, match=r"cannot read curves from .*curves\.npz"):
        Curves.load(file)
