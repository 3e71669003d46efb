"""Temperatures, calibration errors and certainties, against their twins in loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from localprop.functional.calibration import MEASURES, certainty, expected_calibration_error, fit_temperature
from tests.by_hand import randn
from tests.reference import calibration as twin


def batch(num: int, num_classes: int, help_of_label: float, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    y = torch.randint(num_classes, (num,), generator=torch.Generator().manual_seed(seed))
    logits = randn(num, num_classes, seed=seed) + help_of_label * F.one_hot(y, num_classes)
    return scale * logits, y


CASES = [
    batch(num, num_classes, help_of_label, scale, seed)
    for seed, (num, num_classes, help_of_label, scale) in enumerate(
        [(6, 2, 1, 1), (40, 3, 0.3, 1e3), (40, 10, 3, 1e-3), (100, 4, 1, 30), (100, 10, 6, 1), (7, 3, 2, 1e-6)]
    )
]


@pytest.mark.parametrize(("logits", "y"), CASES)
def test_temperature_is_the_best_one(logits: Tensor, y: Tensor) -> None:
    fitted, expected = fit_temperature(logits, y), twin.temperature(logits.tolist(), y.tolist())
    assert fitted == (None if expected is None else pytest.approx(expected, rel=1e-7))
    if fitted is not None:
        assert F.cross_entropy(logits / fitted, y) <= F.cross_entropy(logits, y)


def test_temperature_by_hand() -> None:
    # 3 of 4 right at odds e^(2/T): the best T makes them 3 to 1.
    logits = torch.tensor([[2.0, 0.0]] * 4)
    assert fit_temperature(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(2 / math.log(3), rel=1e-7)
    assert fit_temperature(logits.double() * 1e5, torch.tensor([0, 0, 1, 0])) == pytest.approx(2e5 / math.log(3))


@pytest.mark.parametrize(
    ("logits", "y"),
    [
        ([[2.0, 0.0], [0.0, 1.0]], [0, 1]),  # all right: ever smaller ones are better
        ([[2.0, 0.0], [3.0, 0.0]], [0, 0]),  # so is one class alone
        ([[2.0, 0.0], [0.0, 1.0]], [1, 0]),  # all wrong: ever larger ones are better
        ([[1.0, 1.0]], [0]),  # nothing to tell
    ],
)
def test_where_there_is_no_best_temperature(logits: list[list[float]], y: list[int]) -> None:
    assert fit_temperature(torch.tensor(logits), torch.tensor(y)) is None
    assert twin.temperature(logits, y) is None


@pytest.mark.parametrize(("logits", "y"), CASES)
@pytest.mark.parametrize(("temperature", "num_bins"), [(1.0, 15), (0.4, 15), (7.0, 4), (1.0, 1)])
def test_calibration_error(logits: Tensor, y: Tensor, temperature: float, num_bins: int) -> None:
    found = expected_calibration_error(logits, y, temperature=temperature, num_bins=num_bins)
    expected = twin.calibration_error(logits.tolist(), y.tolist(), temperature, num_bins)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_calibration_error_by_hand() -> None:
    # Two samples at confidence 3/4, one of them right; two sure ones, both right.
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0], [0.0, 1e3], [1e3, 0.0]])
    assert expected_calibration_error(logits, torch.tensor([0, 1, 1, 0])) == pytest.approx(2 / 4 * (0.75 - 0.5))


@pytest.mark.parametrize(("logits", "y"), CASES)
@pytest.mark.parametrize("measure", MEASURES)
def test_certainty(logits: Tensor, y: Tensor, measure: str) -> None:
    for temperature in (1.0, 0.3):
        found = certainty(logits, measure, temperature)  # type: ignore[arg-type]
        expected = [twin.certainty(row, measure, temperature) for row in logits.tolist()]
        assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_certainty_at_its_ends() -> None:
    sure, unsure = torch.tensor([[1e4, 0.0, 0.0]]), torch.zeros(1, 3)
    assert [float(certainty(sure, measure)) for measure in MEASURES] == [1.0, 1.0, 1.0]
    assert [float(certainty(unsure, measure)) for measure in MEASURES] == pytest.approx([1 / 3, 0.0, 0.0], abs=1e-7)
    assert all(certainty(torch.full((1, 3), math.nan), measure).isnan() for measure in MEASURES)


def test_mistakes_are_refused() -> None:
    logits, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="one row a label"):
        fit_temperature(logits, y[:1])
    with pytest.raises(ValueError, match="at least one"):
        fit_temperature(logits[:0], y[:0])
    with pytest.raises(ValueError, match="two classes or more"):
        expected_calibration_error(logits[:, :1], y)
    with pytest.raises(ValueError, match=r"y: labels must lie in 0 \.\. 2"):
        fit_temperature(logits, y + 3)
    with pytest.raises(ValueError, match=r"y: labels must lie in 0 \.\. 2"):
        fit_temperature(logits, y + 3)
    with pytest.raises(ValueError, match="must be finite"):
        fit_temperature(logits.fill_(math.nan), y)
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature: must be positive and finite"):
            expected_calibration_error(torch.zeros(2, 3), y, temperature=wrong)
    with pytest.raises(ValueError, match="num_bins: must be at least 1"):
        expected_calibration_error(torch.zeros(2, 3), y, num_bins=0)
    with pytest.raises(ValueError, match="measure: must be one of confidence, margin, entropy"):
        certainty(torch.zeros(2, 3), "sure")  # type: ignore[arg-type]
