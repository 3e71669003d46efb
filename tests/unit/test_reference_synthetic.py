"""The twin of synthetic gradients, against numbers worked out by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.by_hand import close, hidden, linear, randn, tensor
from tests.reference import synthetic as twin
from tests.reference.training import backprop_step

Y = torch.tensor([0, 2, 1])


def constant(h: Tensor, condition: Tensor | None, theta: list[Tensor]) -> Tensor:
    return theta[0] + 0 * h


X = randn(3, 5, seed=1)
BLOCKS = [hidden, hidden, linear]
PARAMS = [[randn(4, 5, seed=2)], [randn(4, 4, seed=3)], [randn(3, 4, seed=4)]]


def true_gradients() -> list[Tensor]:
    """The gradients of the cross-entropy at both hidden outputs."""
    h1 = hidden(X, PARAMS[0]).requires_grad_()
    h2 = hidden(h1, PARAMS[1])
    loss = F.cross_entropy(linear(h2, PARAMS[2]), Y)
    return list(torch.autograd.grad(loss, [h1, h2]))


def test_squared_error_by_hand() -> None:
    predicted = tensor([[1, 2], [0, 0]]).requires_grad_()
    loss = twin.squared_error(predicted, tensor([[0, 0], [3, 0]]))
    close(loss, tensor((5 + 9) / 2))
    close(torch.autograd.grad(loss, predicted)[0], tensor([[1, 2], [-3, 0]]))


def test_mlp_synthesiser() -> None:
    h, y = randn(3, 2, 2, 1), torch.tensor([0, 1, 1])
    theta = [randn(5, 4, seed=1), randn(5, seed=2), randn(4, 5, seed=3), randn(4, seed=4), randn(5, 2, seed=5)]
    before = h.flatten(1) @ theta[0].T + theta[1]
    close(twin.mlp_synthesiser(h, None, theta[:4]).flatten(1), before.relu() @ theta[2].T + theta[3])
    conditioned = (before + theta[4].T[y]).relu() @ theta[2].T + theta[3]
    close(twin.mlp_synthesiser(h, twin.one_hot(y, 2), theta).flatten(1), conditioned)


def test_step_of_single_numbers_by_hand() -> None:
    # Blocks h1 = 2 x, h2 = 3 h1, logits (h2, 0) with x = 1: h1 = 2, h2 = 6; M1 = 0.5 and M2 = -1 whatever h.
    blocks = [linear, linear, lambda x, p: torch.cat([x * p[0], 0 * x], dim=1)]
    params = [[tensor([[2]])], [tensor([[3]])], [tensor(1.0)]]
    synthesis = [[tensor(0.5)], [tensor(-1.0)]]
    step = twin.synthetic_step(blocks, params, [constant] * 2, synthesis, tensor([[1]]), torch.tensor([0]))
    p = 1 / (1 + torch.exp(tensor(6.0)))  # the wrong class's probability: dCE/dh2 = -p
    close(step.gradients[:2], [[tensor([[0.5]])], [tensor([[-2]])]])  # M1 x and M2 h1
    close(step.gradients[2], [-6 * p])
    close(step.arriving, [tensor([[-3]]), -p.reshape(1, 1)])  # w2 M2, and the true gradient
    close(step.synthesis_losses, [tensor(3.5**2), (-1 + p) ** 2])
    close(step.synthesis_gradients, [[tensor(7.0)], [2 * (-1 + p)]])
    assert step.input_losses == []


def test_with_true_synthetic_gradients_it_is_backpropagation() -> None:
    truth = true_gradients()
    step = twin.synthetic_step(BLOCKS, PARAMS, [constant] * 2, [[truth[0]], [truth[1]]], X, Y)
    expected = backprop_step(BLOCKS, PARAMS, X, Y, 0.1)
    close(step.gradients, expected.gradients)
    close(step.loss, expected.losses[-1])
    close(step.arriving, truth)
    close(step.synthesis_losses, [tensor(0.0)] * 2)


def test_scale_changes_the_synthesisers_unit_only() -> None:
    truth = true_gradients()
    step = twin.synthetic_step(
        BLOCKS, PARAMS, [constant] * 2, [[3 * truth[0]], [3 * truth[1]]], X, Y, scale=3.0, loss_scale=7.0
    )
    close(step.gradients, backprop_step(BLOCKS, PARAMS, X, Y, 0.1).gradients)
    close(step.synthesis_losses, [tensor(0.0)] * 2)
    doubled = [
        twin.synthetic_step(BLOCKS, PARAMS, [constant] * 2, [[randn(3, 4)]] * 2, X, Y, loss_scale=s) for s in (1, 2)
    ]
    close(doubled[1].synthesis_gradients, [[2 * g for g in group] for group in doubled[0].synthesis_gradients])
    close(doubled[1].gradients, doubled[0].gradients)


def test_label_condition_reaches_the_synthesiser() -> None:
    theta = [randn(4, 4, seed=5), randn(4, seed=6), randn(4, 4, seed=7), randn(4, seed=8), randn(4, 3, seed=9)]
    step = twin.synthetic_step(BLOCKS, PARAMS, [twin.mlp_synthesiser] * 2, [theta, theta], X, Y, classes=3)
    h1 = hidden(X, PARAMS[0])
    m1 = (h1 @ theta[0].T + theta[1] + theta[4].T[Y]).relu() @ theta[2].T + theta[3]
    close(step.gradients[0][0], (m1 * (1 - h1**2)).T @ X)
    close(step.synthesis_losses[0], (m1 - step.arriving[0]).square().sum(1).mean())
    assert len(step.synthesis_gradients[0]) == 5


def test_unlocked_blocks_compute_on_predicted_inputs() -> None:
    predictors, predictor_params = [linear] * 2, [[randn(4, 5, seed=10)], [randn(4, 5, seed=11)]]
    phi = [[randn(3, 4, seed=12)], [randn(3, 4, seed=13)]]
    step = twin.synthetic_step(
        BLOCKS, PARAMS, [constant] * 2, phi, X, Y, predictors=predictors, predictor_params=predictor_params
    )
    p1, p2 = X @ predictor_params[0][0].T, X @ predictor_params[1][0].T
    h1, h2 = hidden(X, PARAMS[0]), hidden(p1, PARAMS[1])
    close(step.input_losses, [(p1 - h1).square().sum(1).mean(), (p2 - h2).square().sum(1).mean()])
    close(step.input_gradients, [[2 / 3 * (p1 - h1).T @ X], [2 / 3 * (p2 - h2).T @ X]])
    close(step.loss, F.cross_entropy(linear(p2, PARAMS[2]), Y))
    close(step.gradients[1][0], (phi[1][0] * (1 - h2**2)).T @ p1)
    close(step.arriving[0], (phi[1][0] * (1 - h2**2)) @ PARAMS[1][0])
