import math
from dataclasses import astuple

import pytest
import torch

from localprop.analysis.collapse import neural_collapse


def simplex(num_classes: int, width: int) -> torch.Tensor:
    """Centred one-hot vectors in a random orthonormal frame: a simplex equiangular tight frame."""
    frame = torch.linalg.qr(torch.randn(width, num_classes, dtype=torch.float64))[0]
    return (torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes) @ frame.T


def test_collapse__is_zero_when_it_is_exact() -> None:
    torch.manual_seed(0)
    means, target = 3 * simplex(5, 16) + 7.0, torch.arange(5).repeat(20)
    h = means[target]
    found = neural_collapse(
        h, target, classifier=means - 7.0, predicted=target, test_features=h[:10], test_predicted=target[:10]
    )
    assert found.num_classes == 5
    assert astuple(found)[1:] == pytest.approx([0.0] * 7, abs=1e-6)


def test_collapse__is_far_from_zero_for_random_features() -> None:
    torch.manual_seed(0)
    h, target = torch.randn(200, 8), torch.arange(5).repeat(40)
    found = neural_collapse(h, target, classifier=torch.randn(5, 8), predicted=torch.randint(5, (200,)))
    assert found.nc1 > 10  # 40 samples a class: between-class variance is about a fortieth of that within
    assert found.nc2_equinorm > 0.05
    assert found.nc2_max_angle > 0.1
    assert 1 < found.nc3 < 2
    assert found.nc4_train > 0.5


def test_collapse__matches_the_definition_with_matrices() -> None:
    torch.manual_seed(0)
    h, target = torch.randn(60, 6, dtype=torch.float64), torch.arange(4).repeat(15)
    h += 2 * torch.randn(4, 6, dtype=torch.float64)[target]
    means = torch.stack([h[target == c].mean(0) for c in range(4)])
    within = sum(torch.outer(v, v) for v in h - means[target]) / 60
    between = sum(torch.outer(v, v) for v in means - means.mean(0)) / 4
    expected = float(torch.trace(within @ torch.linalg.pinv(between, rtol=1e-6))) / 4
    assert neural_collapse(h, target).nc1 == pytest.approx(expected, rel=1e-9)


def test_collapse__scale_shift_and_rotation_change_nothing() -> None:
    torch.manual_seed(0)
    h, target = torch.randn(60, 6, dtype=torch.float64), torch.arange(4).repeat(15)
    turned = 5 * h @ torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0] + 3
    assert astuple(neural_collapse(turned, target))[:5] == pytest.approx(astuple(neural_collapse(h, target))[:5])


def test_collapse__takes_classes_without_samples_and_more_features_than_samples() -> None:
    torch.manual_seed(0)
    target = torch.tensor([0, 0, 4, 4, 7, 7])
    found = neural_collapse(torch.randn(6, 500), target, classifier=torch.randn(10, 500), predicted=target)
    assert found.num_classes == 3
    assert all(math.isfinite(value) for value in (found.nc1, found.nc3, found.nc4_train))


def test_collapse__of_constant_features_is_not_defined() -> None:
    found = neural_collapse(torch.full((6, 3), 0.1), torch.tensor([0, 0, 1, 1, 2, 2]), classifier=torch.eye(3))
    assert astuple(found) == (3, None, None, None, None, None, None, None)


def test_collapse__of_a_mean_at_the_centre_has_no_angles() -> None:
    h, target = torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([0, 1, 2])
    found = neural_collapse(h, target)
    assert found.nc1 == 0
    assert found.nc2_equiangular is None


@pytest.mark.parametrize(
    ("h", "target", "message"),
    [
        (torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), "at least 2 classes"),
        (torch.randn(4, 3), torch.tensor([0, 1, 2]), "one int64 class index for each of the 4"),
        (torch.randn(4, 3), torch.tensor([0, -1, 1, 2]), "labels must be 0 or more"),
        (torch.randn(1, 3), torch.tensor([0]), "at least 2 samples"),
        (torch.randn(4, 3, 2), torch.tensor([0, 1, 0, 1]), "one feature vector"),
        (torch.ones(2, 1).long(), torch.tensor([0, 1]), "floating-point"),
        (torch.randn(2, 1), torch.tensor([False, True]), "int64"),
        (torch.tensor([[1.0], [math.nan]]), torch.tensor([0, 1]), "finite"),
    ],
)
def test_collapse__refuses(h: torch.Tensor, target: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neural_collapse(h, target)


def test_collapse__refuses_a_classifier_of_another_width() -> None:
    with pytest.raises(ValueError, match="classifier: need one row of 3 weights"):
        neural_collapse(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]), classifier=torch.randn(2, 4))
