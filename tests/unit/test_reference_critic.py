"""The twin of local critic training, against numbers worked out by hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.by_hand import close, hidden, linear, randn, tensor
from tests.reference import critic as twin

Y = torch.tensor([0, 2, 1])


def test_sample_losses() -> None:
    logits = randn(3, 4)
    close(twin.sample_losses(logits, Y), F.cross_entropy(logits, Y, reduction="none"))


def test_critic_loss_by_hand() -> None:
    own, following = tensor([1, 5, 2]).requires_grad_(), tensor([3, 1, 2]).requires_grad_()
    loss = twin.critic_loss(own, following)
    close(loss, tensor((2 + 4 + 0) / 3))  # differences are not averaged before the absolute value
    own_gradient, following_gradient = torch.autograd.grad(loss, [own, following], allow_unused=True)
    close(own_gradient, tensor([-1, 1, 0]) / 3)
    assert following_gradient is None


def test_step_of_two_classes_by_hand() -> None:
    # x = 1, h = w x = 2, critic logits (c h, 0) with c = 0: L_0 = log 2; the last block's logits (v h, 0) with v = 1.
    def pair(x: Tensor, p: list[Tensor]) -> Tensor:
        return torch.cat([x * p[0], 0 * x], dim=1)

    step = twin.critic_step(
        [linear, pair], [[tensor([[2]])], [tensor(1.0)]], [pair], [[tensor(0.0)]], tensor([[1]]), torch.tensor([0])
    )
    true_loss = math.log1p(math.exp(-2))
    close(step.losses, [tensor(math.log(2)), tensor(true_loss)])
    close(step.gradients[0], [tensor([[0]])])  # the critic is zero, so nothing reaches the block
    close(step.gradients[1], [tensor(-2 / (1 + math.exp(2)))])
    close(step.critic_losses, [tensor(math.log(2) - true_loss)])
    close(step.critic_gradients, [[tensor(-1.0)]])  # dL_0/dc = -h / 2, and L_0 lies above


def test_step_in_matrix_form() -> None:
    x = randn(3, 5, seed=1)
    params = [[randn(4, 5, seed=2)], [randn(4, 4, seed=3)], [randn(3, 4, seed=4)]]
    critics = [[randn(3, 4, seed=5)], [randn(3, 4, seed=6)]]
    step = twin.critic_step([hidden, hidden, linear], params, [linear] * 2, critics, x, Y)
    h1 = hidden(x, params[0])
    h2 = hidden(h1, params[1])
    logits = [h1 @ critics[0][0].T, h2 @ critics[1][0].T, h2 @ params[2][0].T]
    losses = [F.cross_entropy(z, Y, reduction="none") for z in logits]
    errors = [z.softmax(1) - F.one_hot(Y, 3) for z in logits]
    close(step.losses, [loss.mean() for loss in losses])
    close(step.gradients[0], [(errors[0] @ critics[0][0] * (1 - h1**2)).T @ x / 3])
    close(step.gradients[1], [(errors[1] @ critics[1][0] * (1 - h2**2)).T @ h1 / 3])
    close(step.gradients[2], [errors[2].T @ h2 / 3])
    for i, h in enumerate([h1, h2]):
        gap = losses[i] - losses[i + 1]
        close(step.critic_losses[i], gap.abs().mean())
        close(step.critic_gradients[i], [(gap.sign()[:, None] * errors[i]).T @ h / 3])
