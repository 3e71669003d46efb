import itertools
import math

import pytest
import torch

from localprop.analysis.cka import cka_matrix, linear_cka, unbiased_hsic


def orthogonal(width: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]


def test_unbiased_hsic__is_the_mean_over_all_quadruples() -> None:
    """The U-statistic that it estimates, in loops over ordered samples without repetition."""
    torch.manual_seed(0)
    n = 7
    k, l = (h @ h.T for h in torch.randn(2, n, 3, dtype=torch.float64))  # noqa: E741

    def mean(size, value):
        tuples = list(itertools.permutations(range(n), size))
        return sum(value(*t) for t in tuples) / len(tuples)

    expected = (
        mean(2, lambda i, j: k[i, j] * l[i, j])
        + mean(4, lambda i, j, q, r: k[i, j] * l[q, r])
        - 2 * mean(3, lambda i, j, q: k[i, j] * l[i, q])
    )
    assert float(unbiased_hsic(k, l)) == pytest.approx(float(expected), rel=1e-10)


def test_cka__is_one_for_layers_that_differ_by_a_rotation_a_factor_and_a_shift() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 12, dtype=torch.float64)
    y = 7 * x @ orthogonal(12) + 3
    assert linear_cka(x, y) == pytest.approx(1, abs=1e-12)
    assert cka_matrix([x], [y], batch_size=32).item() == pytest.approx(1, abs=1e-9)


def test_cka__is_invariant_to_rotations_and_factors_of_either_side() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 12, dtype=torch.float64)
    y = torch.tanh(x[:, :5]) + 0.5 * torch.randn(100, 5, dtype=torch.float64)
    turned_x, turned_y = 0.1 * x @ orthogonal(12), 30 * y @ orthogonal(5) - 8
    assert linear_cka(turned_x, turned_y) == pytest.approx(linear_cka(x, y), rel=1e-9)
    found, turned = cka_matrix([x], [y]).item(), cka_matrix([turned_x], [turned_y]).item()
    assert 0.2 < found < 0.9
    assert turned == pytest.approx(found, rel=1e-9)


def test_cka__is_near_zero_for_independent_layers_only_when_debiased() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 2000, 300)
    assert abs(cka_matrix([x], [y]).item()) < 0.02
    assert linear_cka(x[:200], y[:200]) > 0.5  # the plain form: fewer samples than features


def test_cka__grid_has_a_diagonal_of_ones_and_is_symmetric() -> None:
    torch.manual_seed(0)
    first = torch.randn(64, 9)
    layers = [first, first.relu(), torch.randn(64, 4)]
    found = cka_matrix(layers, layers, batch_size=30)
    torch.testing.assert_close(found.diagonal(), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(found, found.T)
    assert found[0, 1] > found[0, 2]


def test_cka__takes_more_features_than_samples() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 400, dtype=torch.float64)
    y = x @ torch.randn(400, 3, dtype=torch.float64)
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    expected = (centred_y.T @ centred_x).square().sum() / (
        (centred_x.T @ centred_x).norm() * (centred_y.T @ centred_y).norm()
    )
    assert linear_cka(x, y) == pytest.approx(float(expected))


def test_cka__of_a_constant_layer_is_nan() -> None:
    x, constant = torch.randn(20, 3), torch.full((20, 2), 0.1)
    assert math.isnan(cka_matrix([x], [constant]).item())
    assert math.isnan(linear_cka(x, constant))


@pytest.mark.parametrize(
    ("xs", "ys", "message"),
    [
        ([torch.randn(3, 2)], [torch.randn(3, 2)], "at least 4 samples"),
        ([torch.randn(9, 2)], [torch.randn(8, 2)], "the same 9 samples"),
        ([torch.full((9, 2), math.nan)], [torch.randn(9, 2)], "finite"),
        ([], [torch.randn(9, 2)], "at least one layer"),
    ],
)
def test_cka__refuses(xs, ys, message) -> None:
    with pytest.raises(ValueError, match=message):
        cka_matrix(xs, ys)


def test_cka__refuses_small_batches() -> None:
    with pytest.raises(ValueError, match="batch_size: must be at least 4"):
        cka_matrix([torch.randn(9, 2)], [torch.randn(9, 2)], batch_size=3)
