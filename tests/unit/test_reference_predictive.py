"""The twin of Predictive Forward-Forward, against numbers worked out by hand and the same in matrix form."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.by_hand import close, randn, tensor
from tests.reference import predictive as twin

X = randn(4, 5, seed=1)
PARAMS = [
    [randn(6, 5, seed=2), randn(6, 4, seed=3), randn(6, 6, seed=4)],
    [randn(4, 6, seed=5), randn(4, 3, seed=6), randn(4, 4, seed=7)],
]
STATES = [randn(4, 6, seed=8).abs(), randn(4, 4, seed=9).abs()]
NOISES = [0.01 * randn(4, 6, seed=10), 0.01 * randn(4, 4, seed=11)]
CONTEXT = twin.label_context(torch.tensor([0, 2, 1, 1]), 3)


def test_straight_through_relu() -> None:
    a = tensor([-1, 2]).requires_grad_()
    z = twin.straight_through_relu(a)
    close(z, tensor([0, 2]))
    close(torch.autograd.grad(z.sum(), a)[0], tensor([1, 1]))


def test_lateral_matrix_by_hand() -> None:
    weight = tensor([[1, 2, 3], [-4, 5, 6], [7, 8, -9]])
    close(twin.lateral_matrix(weight, 2), tensor([[-1, 2, 0], [0, -5, 0], [0, 0, 0]]))


def test_step_of_one_unit_by_hand() -> None:
    # a = 2 x + 0.1 5 + 0.5 (self-excitation of the normalised state 1), x = 1 and 0: a = 3 and 1.
    params = [[tensor([[2]]), tensor([[0.1]]), tensor([[0.5]])]]
    context = twin.label_context(torch.tensor([0, 0]), 1)
    step = twin.representation_step(
        params, [tensor([[4], [4]])], tensor([[1], [0]]), context, [tensor([[0.5], [0]])], 7.0, alpha=0.5
    )
    positive, negative = 0.5 * 4 + 0.5 * 3.5, 0.5 * 4 + 0.5 * 1
    close(step.states, [tensor([[positive], [negative]])])
    loss = math.log1p(math.exp(positive**2 - 7)) + math.log1p(math.exp(7 - negative**2))
    close(step.losses, [tensor(loss)])
    # d loss / d a = (1 - alpha) 2 z sigmoid(...), then times x
    slope = 0.5 * 2 * positive / (1 + math.exp(7 - positive**2))
    close(step.gradients[0][0], tensor([[slope]]))
    slope -= 0.5 * 2 * negative / (1 + math.exp(negative**2 - 7))
    close(step.gradients[0][1], tensor([[5 * slope]]))
    close(step.gradients[0][2], tensor([[slope]]))


def test_representation_step_in_matrix_form() -> None:
    step = twin.representation_step(PARAMS, STATES, X, CONTEXT, NOISES, 3.0, group=2)
    w, v, lateral = [p.clone().requires_grad_() for p in PARAMS[1]]
    mask = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).double() - 2 * torch.eye(4).double()
    a = F.normalize(STATES[0]) @ w.T + CONTEXT @ v.T - F.normalize(STATES[1]) @ (lateral.relu() * mask).T
    z = 0.3 * STATES[1] + 0.7 * (a + (a.relu() - a).detach() + NOISES[1])
    g = z.square().sum(1)
    loss = -(F.logsigmoid(3 - g[:2]) + F.logsigmoid(g[2:] - 3)).mean()  # F.softplus is rounded above 20
    close(step.states[1], z.detach())
    close(step.losses[1], loss.detach())
    close(step.gradients[1], list(torch.autograd.grad(loss, [w, v, lateral])))

    mask = torch.block_diag(*[torch.ones(2, 2)] * 3).double() - 2 * torch.eye(6).double()
    a = X @ PARAMS[0][0].T + F.normalize(STATES[1]) @ PARAMS[0][1].T
    a = a - F.normalize(STATES[0]) @ (PARAMS[0][2].relu() * mask).T
    close(step.states[0], 0.3 * STATES[0] + 0.7 * (a.relu() + NOISES[0]))


def test_generative_step_in_matrix_form() -> None:
    weights = [randn(5, 6, seed=12), randn(6, 4, seed=13), randn(4, 2, seed=14)]
    latent = randn(4, 2, seed=15)
    step = twin.generative_step(weights, STATES, X, latent, NOISES)
    leaves = [w.clone().requires_grad_() for w in weights]
    s = latent.clone().requires_grad_()
    predictions = [
        (F.normalize(STATES[0] + NOISES[0]) @ leaves[0].T).sigmoid(),
        (F.normalize(STATES[1] + NOISES[1]) @ leaves[1].T).relu(),
        (s @ leaves[2].T).relu(),
    ]
    losses = [(p - z).square().sum(1).mean() for p, z in zip(predictions, [X, *STATES], strict=True)]
    *gradients, latent_gradient = torch.autograd.grad(sum(losses), [*leaves, s])
    close(step.losses, [loss.detach() for loss in losses])
    close(step.predictions, [p.detach() for p in predictions])
    close(step.gradients, gradients)
    close(step.latent, latent - 0.025 * latent_gradient)


def test_generative_step_by_hand() -> None:
    # A state of 3 is normalised to 1; zhat_0 = 2 against x = 1, zhat_1 = 0.5 4 = 2 against 3.
    weights, latent = [tensor([[2]]), tensor([[0.5]])], tensor([[4]])
    step = twin.generative_step(weights, [tensor([[3]])], tensor([[1]]), latent, [tensor([[0]])], pixels="identity")
    close(step.losses, [tensor(1.0), tensor(1.0)])
    close(step.gradients, [tensor([[2]]), tensor([[-8]])])
    close(step.latent, tensor([[4 + 0.025 * 2 * 0.5]]))


def test_label_scores_are_those_of_the_middle_steps() -> None:
    scores = twin.label_scores(PARAMS, X, 3, steps=6, group=2)
    context = twin.label_context(torch.full((4,), 2), 3)
    states = twin.bottom_up_states(PARAMS, X)
    close(states[1], (F.normalize((X @ PARAMS[0][0].T).relu()) @ PARAMS[1][0].T).relu())
    quiet = [torch.zeros_like(z) for z in states]
    goodnesses = []
    for _ in range(4):
        states = twin.representation_step(PARAMS, states, X, context, quiet, 0.0, group=2).states
        goodnesses.append(sum(z.square().sum(1) for z in states))
    close(scores[:, 2], -(goodnesses[1] + goodnesses[2] + goodnesses[3]) / 3)
