"""The twin of Cascaded Forward, against numbers worked out by hand and torch's own functions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.by_hand import close, hidden, randn, tensor
from tests.reference import cascaded as twin

Y = torch.tensor([0, 2, 1])


X = randn(3, 5, seed=1)
PARAMS = [[randn(4, 5, seed=2)], [randn(2, 4, seed=3)]]
PREDICTORS = [randn(4, 3, seed=4), randn(2, 3, seed=5)]
FEEDBACK = [randn(3, 4, seed=6), randn(3, 2, seed=7)]
H1 = hidden(X, PARAMS[0])
H2 = hidden(H1, PARAMS[1])


@pytest.mark.parametrize(
    ("z", "p"), [([0, 0], [0.5, 0.5]), ([3, 1], [1, 0]), ([1, 0.5, -2], [0.75, 0.25, 0]), ([7], [1])]
)
def test_sparsemax_by_hand(z: list[float], p: list[float]) -> None:
    close(twin.sparsemax(tensor(z)), tensor(p))


@pytest.mark.parametrize("seed", range(8))
def test_sparsemax_is_the_nearest_point_of_the_simplex(seed: int) -> None:
    z = randn(5, seed=seed) * (0.3 + seed)
    p = twin.sparsemax(z)
    close(p.sum(), tensor(1.0))
    close(p, twin.simplex_projection(z))


def test_sparsemax_loss_by_hand() -> None:
    # z = (1, 0.5, -2): tau = 0.25, S = {0, 1}; -1 + (1 - 1/16 + 1/4 - 1/16) / 2 + 1/2
    close(twin.sparsemax_loss(tensor([[1, 0.5, -2]]), torch.tensor([0])), tensor(-1 + 1.125 / 2 + 0.5))
    close(twin.sparsemax_loss(tensor([[5, 0, 0]]), torch.tensor([0])), tensor(0.0))


@pytest.mark.parametrize("loss", ["mse", "ce", "sparsemax"])
def test_output_error_is_the_gradient_of_the_loss(loss: twin.Loss) -> None:
    logits = randn(3, 4).requires_grad_()
    close(twin.output_error(logits, Y, loss), torch.autograd.grad(twin.predictor_loss(logits, Y, loss), logits)[0])


def test_mse_loss_by_hand() -> None:
    close(twin.mse_loss(tensor([[2, 1], [0, 0]]), torch.tensor([0, 1])), tensor((2 + 1) / 4))


@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_closed_form_solves_the_normal_equations(ridge: float) -> None:
    h, y = randn(7, 2, 2, 1), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    weight = twin.closed_form(h, y, 3, ridge)
    flat, labels = h.flatten(1), F.one_hot(y, 3).double()
    close(flat.T @ (flat @ weight - labels) + ridge * weight, torch.zeros(4, 3).double())
    if ridge == 0:
        close(weight, torch.linalg.lstsq(flat, labels).solution)


def test_closed_form_by_hand() -> None:
    # H = (1, 2)^T, labels 0 and 1: H^T H = 5, H^T Y = (1, 2).
    close(twin.closed_form(tensor([[1], [2]]), torch.tensor([0, 1]), 2), tensor([[0.2, 0.4]]))
    close(twin.closed_form(tensor([[1], [2]]), torch.tensor([0, 1]), 2, ridge=5.0), tensor([[0.1, 0.2]]))


def test_elimination_swaps_rows() -> None:
    assert twin.solve([[0.0, 2.0], [4.0, 0.0]], [[2.0], [8.0]]) == [[2.0], [1.0]]


def test_prediction_adds_the_blocks_probabilities() -> None:
    logits = [tensor([[0, math.log(3)]]), tensor([[5, 0]])]
    second = 1 / (1 + math.exp(-5))
    close(twin.cascade_prediction(logits), tensor([[0.25 + second, 0.75 + 1 - second]]))
    close(twin.cascade_prediction(logits[1:], "sparsemax"), tensor([[1, 0]]))
    close(twin.cascade_prediction(logits, "none"), logits[0] + logits[1])


def test_frozen_step() -> None:
    step = twin.cascaded_step([hidden] * 2, PARAMS, PREDICTORS, X, Y)
    logits = H2 @ PREDICTORS[1]
    close(step.logits, [H1 @ PREDICTORS[0], logits])
    close(step.losses[1], F.cross_entropy(logits, Y))
    close(step.predictor_gradients[1], H2.T @ (logits.softmax(1) - F.one_hot(Y, 3)) / 3)
    assert step.gradients == [[], []]


@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_dfa_step(loss: twin.Loss) -> None:
    step = twin.cascaded_dfa_step([hidden] * 2, PARAMS, PREDICTORS, FEEDBACK, X, Y, loss=loss)
    frozen = twin.cascaded_step([hidden] * 2, PARAMS, PREDICTORS, X, Y, loss=loss)
    close(
        (step.losses, step.logits, step.predictor_gradients), (frozen.losses, frozen.logits, frozen.predictor_gradients)
    )
    for i, (x, h) in enumerate([(X, H1), (H1, H2)]):
        logits = h @ PREDICTORS[i]
        error = ((logits.softmax(1) if loss == "ce" else logits) - F.one_hot(Y, 3)) / 3
        close(step.gradients[i], [(error @ FEEDBACK[i] * (1 - h**2)).T @ x])


def test_dfa_through_the_predictors_own_weights_is_its_gradient() -> None:
    feedback = [p.T for p in PREDICTORS]
    step = twin.cascaded_dfa_step([hidden] * 2, PARAMS, PREDICTORS, feedback, X, Y, loss="sparsemax")
    theta = PARAMS[0][0].clone().requires_grad_()
    loss = twin.sparsemax_loss(hidden(X, [theta]) @ PREDICTORS[0], Y)
    close(step.gradients[0], list(torch.autograd.grad(loss, theta)))
