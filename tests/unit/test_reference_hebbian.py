"""The twin of SoftHebb and of forward gradients, against numbers worked out by hand and torch's own functions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.by_hand import close, hidden, randn, tensor
from tests.reference import hebbian as twin
from tests.reference.training import backprop_step

Y = torch.tensor([0, 2, 1])


# ---------------------------------------------------------------- SoftHebb


def test_winner_take_all_by_hand() -> None:
    y = twin.winner_take_all([tensor(0.0), tensor(2 * math.log(3)), tensor(0.0)], temperature=2.0)
    close(torch.stack(y), tensor([-0.2, 0.6, -0.2]))
    tied = twin.winner_take_all([tensor(1.0), tensor(1.0)])
    close(torch.stack(tied), tensor([0.5, -0.5]))


def test_linear_change_by_hand() -> None:
    # x = (1, 0), W = I log 3: u = (log 3, 0), y = (3/4, -1/4).
    w = math.log(3)
    change = twin.soft_hebb_linear(tensor([[1, 0]]), tensor([[w, 0], [0, w]]), eta=2.0)
    close(change, 2 * tensor([[0.75 * (1 - w * w), 0], [-0.25, 0]]))


def matrix_form(x: Tensor, weight: Tensor, temperature: float) -> Tensor:
    u = x @ weight.T
    y = (u / temperature).softmax(1)
    y = torch.where(F.one_hot(u.argmax(1), len(weight)).bool(), y, -y)
    return y.T @ x - (y * u).sum(0)[:, None] * weight


def test_linear_change_in_matrix_form() -> None:
    x, weight = randn(5, 4), randn(3, 4, seed=1)
    expected = matrix_form(x, weight, 0.7)
    close(twin.soft_hebb_linear(x, weight, temperature=0.7, reduction="sum"), expected)
    close(twin.soft_hebb_linear(x, weight, temperature=0.7), expected / 5)
    close(twin.soft_hebb_linear(x, weight, temperature=0.7, normalise=True), expected / expected.abs().max())


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), (1, 1)])
def test_conv_change_is_the_linear_change_of_all_windows(stride: int, padding: int) -> None:
    x, weight = randn(2, 2, 4, 5), randn(3, 2, 3, 3, seed=1)
    windows = F.unfold(x, 3, stride=stride, padding=padding).transpose(1, 2).reshape(-1, 18)
    expected = matrix_form(windows, weight.flatten(1), 1.0) / len(windows)
    close(twin.soft_hebb_conv(x, weight, stride=stride, padding=padding), expected.reshape(weight.shape))


def test_a_winners_norm_is_drawn_to_one() -> None:
    weight = tensor([[0.2, 0.1]])
    for _ in range(200):
        weight = weight + twin.soft_hebb_linear(tensor([[1, 2]]), weight, eta=0.1)
    close(weight, tensor([[1, 2]]) / math.sqrt(5))


def test_adaptive_rates() -> None:
    close(twin.adaptive_rates(tensor([[3, 4], [1, 0]]), 0.1), tensor([0.2, 0.0]))
    close(twin.adaptive_rates(tensor([[0, 0]]), 0.1, power=2.0, floor=1.0), tensor([0.4]))


def test_triangle() -> None:
    close(twin.triangle(tensor([[1, 2, 6]])), tensor([[0, 0, 3]]))
    u = randn(2, 3, 2, 2)
    close(twin.triangle(u, 1.4), (u - u.mean(1, keepdim=True)).relu() ** 1.4)


# ---------------------------------------------------------------- forward gradients


def linear(x: Tensor, theta: list[Tensor]) -> Tensor:
    return x @ theta[0].T + theta[1]


X = randn(3, 5, seed=1)
BLOCKS = [hidden, linear]
PARAMS = [[randn(4, 5, seed=2)], [randn(3, 4, seed=3), randn(3, seed=4)]]
DIRECTIONS = [[randn(4, 5, seed=5)], [randn(3, 4, seed=6), randn(3, seed=7)]]
ACTIVITY = [randn(3, 4, seed=8), randn(3, 3, seed=9)]


def local_loss(i: int, h: Tensor, y: Tensor) -> Tensor:
    return h.square().sum() if i == 0 else F.cross_entropy(h, y)


def test_weight_estimate_by_hand() -> None:
    w = tensor([1, 2]).requires_grad_()
    close(twin.weight_estimate((w**2).sum(), [w], [tensor([3, -1])]), [tensor([6, -2])])  # slope 2 3 - 4 = 2


def test_activity_estimate_by_hand() -> None:
    gradient, direction = tensor([[1, 2], [0, 1]]), tensor([[1, 1], [2, -1]])
    close(twin.activity_estimate(gradient, direction), tensor([[3, 3], [-2, 1]]))


def test_the_slope_is_that_of_forward_differentiation() -> None:
    def loss(w: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(linear(hidden(X, [w]), [v, b]), Y)

    flat, directions = [p for g in PARAMS for p in g], [v for g in DIRECTIONS for v in g]
    _, slope = torch.autograd.functional.jvp(loss, tuple(flat), tuple(directions))
    step = twin.global_weight_step(BLOCKS, PARAMS, DIRECTIONS, X, Y)
    close(step.gradients, [[slope * v for v in group] for group in DIRECTIONS])
    close(step.losses[1], loss(*flat))


def test_local_weight_step() -> None:
    step = twin.local_weight_step(BLOCKS, PARAMS, DIRECTIONS, X, Y, local_loss)
    _, slope = torch.autograd.functional.jvp(
        lambda w: hidden(X, [w]).square().sum(), tuple(PARAMS[0]), tuple(DIRECTIONS[0])
    )
    close(step.gradients[0], [slope * DIRECTIONS[0][0]])
    close(step.losses[0], hidden(X, PARAMS[0]).square().sum())


def test_local_activity_step() -> None:
    step = twin.local_activity_step(BLOCKS, PARAMS, ACTIVITY, X, Y, local_loss)
    h = hidden(X, PARAMS[0])
    delta = (2 * h * ACTIVITY[0]).sum(1, keepdim=True) * ACTIVITY[0]
    close(step.gradients[0], [(delta * (1 - h**2)).T @ X])
    error = (linear(h, PARAMS[1]).softmax(1) - F.one_hot(Y, 3)) / 3
    delta = (error * ACTIVITY[1]).sum(1, keepdim=True) * ACTIVITY[1]
    close(step.gradients[1], [delta.T @ h, delta.sum(0)])


def test_global_activity_step() -> None:
    h = hidden(X, PARAMS[0])
    error = (linear(h, PARAMS[1]).softmax(1) - F.one_hot(Y, 3)) / 3
    slopes = [((error @ PARAMS[1][0]) * ACTIVITY[0]).sum(1), (error * ACTIVITY[1]).sum(1)]
    for together in (True, False):
        step = twin.global_activity_step(BLOCKS, PARAMS, ACTIVITY, X, Y, together=together)
        used = [slopes[0] + slopes[1]] * 2 if together else slopes
        close(step.gradients[0], [(used[0][:, None] * ACTIVITY[0] * (1 - h**2)).T @ X])
        close(step.gradients[1][1], (used[1][:, None] * ACTIVITY[1]).sum(0))


def test_a_full_basis_of_directions_gives_the_gradient() -> None:
    expected = backprop_step(BLOCKS, PARAMS, X, Y, 0.1).gradients[0][0]
    summed = torch.zeros_like(expected)
    for d in range(expected.numel()):
        basis = torch.zeros_like(expected)
        basis.view(-1)[d] = 1
        zeros = [torch.zeros_like(p) for p in PARAMS[1]]
        summed += twin.global_weight_step(BLOCKS, PARAMS, [[basis], zeros], X, Y).gradients[0][0]
    close(summed, expected)
