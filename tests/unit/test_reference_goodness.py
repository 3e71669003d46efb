"""The twin of the goodness methods, against numbers worked out by hand and torch's own functions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.by_hand import close, randn, tensor
from tests.reference import goodness as twin


def hidden(x: Tensor, theta: list[Tensor]) -> Tensor:
    return torch.relu(x @ theta[0].T + theta[1])


BLOCKS = [hidden, hidden]
PARAMS = [[randn(6, 5, seed=1), randn(6, seed=2)], [randn(4, 6, seed=3), randn(4, seed=4)]]


# ---------------------------------------------------------------- labels


def test_overlay_by_hand() -> None:
    x = tensor([[5, 6, 7, 8], [1, 2, 3, 4]])
    y = torch.tensor([1, 0])
    close(twin.overlay_label(x, y, 2, high=9.0), tensor([[0, 9, 7, 8], [9, 0, 3, 4]]))
    close(twin.overlay_neutral(x, 2), tensor([[0.5, 0.5, 7, 8], [0.5, 0.5, 3, 4]]))
    close(twin.overlay_neutral(x, 2, high=3.0, low=1.0), tensor([[2, 2, 7, 8], [2, 2, 3, 4]]))
    close(x, tensor([[5, 6, 7, 8], [1, 2, 3, 4]]))
    with pytest.raises(ValueError, match="one pixel a class"):
        twin.overlay_label(x, y, 5)


def test_overlay_of_an_image_runs_along_its_rows() -> None:
    x = torch.full((1, 2, 2, 2), 7.0, dtype=torch.float64)
    y = torch.tensor([2])
    close(twin.overlay_label(x, y, 3), tensor([[[[0, 0], [1, 7]], [[7, 7], [7, 7]]]]))
    close(twin.overlay_label(x, y, 3, every_channel=True), tensor([[[[0, 0], [1, 7]], [[0, 0], [1, 7]]]]))


def test_a_negative_with_the_true_label_is_refused() -> None:
    twin.check_negatives(torch.tensor([0, 1]), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="sample 1"):
        twin.check_negatives(torch.tensor([0, 1]), torch.tensor([1, 1]))


def test_patterns_stand_beside_the_input() -> None:
    patterns = tensor([[1, 2], [3, 4]])
    close(twin.append_pattern(tensor([[9], [8]]), patterns, torch.tensor([1, 0])), tensor([[9, 3, 4], [8, 1, 2]]))
    images, maps = randn(2, 1, 3, 3), randn(4, 1, 3, 2, seed=1)
    beside = twin.append_pattern(images, maps, torch.tensor([3, 0]), axis=3)
    close(beside, torch.cat([images, maps[[3, 0]]], dim=3))


# ---------------------------------------------------------------- losses


def test_goodness_by_hand() -> None:
    h = tensor([[[[1, 2]], [[0, -2]]]])
    close(twin.goodness(h), tensor([9]))
    close(twin.goodness(h, "mean"), tensor([2.25]))


def test_forward_forward_loss_by_hand() -> None:
    loss = twin.forward_forward_loss(tensor([2.0, 5.0]), tensor([2.0, 1.0]), 2.0)
    close(loss, tensor((2 * math.log(2) + math.log1p(math.exp(-3)) + math.log1p(math.exp(-1))) / 2))


def test_forward_forward_loss_is_twice_the_binary_cross_entropy() -> None:
    positive, negative = 5 * randn(6), 5 * randn(6, seed=1)
    logits, labels = torch.cat([positive, negative]) - 1.5, torch.cat([torch.ones(6), torch.zeros(6)]).double()
    expected = 2 * F.binary_cross_entropy_with_logits(logits, labels)
    close(twin.forward_forward_loss(positive, negative, 1.5), expected)


def test_symba_loss_by_hand() -> None:
    close(
        twin.symba_loss(tensor([1.0, 2.0]), tensor([1.0, 1.5]), 4.0),
        tensor((math.log(2) + math.log1p(math.exp(-2))) / 2),
    )


def test_losses_have_gradients_at_zero() -> None:
    g = tensor([0.0]).requires_grad_()
    close(torch.autograd.grad(twin.forward_forward_loss(g, tensor([0.0]), 0.0), g)[0], tensor([-0.5]))


def test_peer_normalisation_by_hand() -> None:
    h = tensor([[2, 0], [4, 2]]).requires_grad_()
    penalty, running = twin.peer_normalisation(h, tensor([0.5, 0.5]), weight=0.1, momentum=0.5)
    close(running, tensor([1.75, 0.75]))  # half of 0.5 and half of (3, 1)
    close(penalty, tensor(0.1 * 0.25))
    assert not running.requires_grad
    # d/dh_nj = weight (2 / 2) (r_j - mean) (1 - momentum) / N
    close(torch.autograd.grad(penalty, h)[0], 0.1 * tensor([[0.5, -0.5], [0.5, -0.5]]) * 0.25)


def test_peer_normalisation_by_channel() -> None:
    h = randn(3, 2, 2, 2)
    _, running = twin.peer_normalisation(h, torch.zeros(2).double(), momentum=0.9, per_channel=True)
    close(running, 0.1 * h.mean((0, 2, 3)))
    _, running = twin.peer_normalisation(h, torch.zeros(2, 2, 2).double(), momentum=0.9)
    close(running, 0.1 * h.mean(0))


@pytest.mark.parametrize(("border", "length"), [("rms", math.sqrt(12.5)), ("l2", 5.0), ("none", 1.0)])
def test_normalised(border: twin.Border, length: float) -> None:
    close(twin.normalised(tensor([[3, 4]]), border), tensor([[3, 4]]) / length)
    close(twin.normalised(tensor([[0, 0]]), border), tensor([[0, 0]]))


# ---------------------------------------------------------------- steps


def test_forward_forward_step_of_one_weight_by_hand() -> None:
    # h = w x with w = 2: G_pos = 4, G_neg = 16, theta = 4. dL/dw = 2 w (-x+^2 sigmoid(0) + x-^2 sigmoid(12)).
    step = twin.forward_forward_step([lambda x, p: x @ p[0].T], [[tensor([[2]])]], tensor([[1]]), tensor([[2]]), [4.0])
    sigmoid = 1 / (1 + math.exp(-12))
    close(step.losses, [tensor(math.log(2) + 12 + math.log1p(math.exp(-12)))])
    close(step.gradients, [[tensor([[4 * (-0.5 + 4 * sigmoid)]])]])
    assert step.state is None


def test_pair_steps_in_matrix_form() -> None:
    positive, negative = randn(3, 5, seed=5), randn(3, 5, seed=6)
    running = [torch.full((6,), 0.5).double(), torch.full((4,), 0.5).double()]
    ff = twin.forward_forward_step(BLOCKS, PARAMS, positive, negative, [6.0, 4.0], running=running)
    symba = twin.symba_step(BLOCKS, PARAMS, positive, negative, kind="mean", border="l2")
    theta = [p.clone().requires_grad_() for p in PARAMS[1]]

    def second(x: Tensor, p: float) -> Tensor:
        h = hidden(x, PARAMS[0])
        return hidden(h / h.square().mean(1, keepdim=True).sqrt() if p == 0 else F.normalize(h), theta)

    up, down = second(positive, 0), second(negative, 0)
    r = 0.9 * running[1] + 0.1 * up.mean(0)
    loss = (F.softplus(4 - up.square().sum(1)) + F.softplus(down.square().sum(1) - 4)).mean()
    loss = loss + 0.03 * r.var(unbiased=False)
    close(ff.losses[1], loss.detach())
    close(ff.gradients[1], list(torch.autograd.grad(loss, theta)))
    close(ff.state[1], r.detach())

    up, down = second(positive, 2), second(negative, 2)
    loss = F.softplus(-4 * (up.square().mean(1) - down.square().mean(1))).mean()
    close(symba.losses[1], loss.detach())
    close(symba.gradients[1], list(torch.autograd.grad(loss, theta)))


def test_inference_skips_the_first_block() -> None:
    x, y = randn(3, 5, seed=7), torch.arange(2)
    inputs = [twin.overlay_label(x, y[z].repeat(3), 2) for z in range(2)]
    scores = twin.label_goodness(BLOCKS, PARAMS, inputs)
    for z in range(2):
        h = hidden(inputs[z], PARAMS[0])
        close(scores[:, z], hidden(h / h.square().mean(1, keepdim=True).sqrt(), PARAMS[1]).square().sum(1))
    only = twin.label_goodness(BLOCKS[:1], PARAMS[:1], inputs)
    close(only[:, 0], hidden(inputs[0], PARAMS[0]).square().sum(1))


def test_one_pass_inference() -> None:
    x = twin.overlay_neutral(randn(3, 5, seed=7), 2)
    features = twin.one_pass_features(BLOCKS, PARAMS, x, border="l2")
    assert features.shape == (3, 4)
    close(features.square().sum(1), torch.ones(3).double())
    weight, bias = randn(2, 4, seed=8), randn(2, seed=9)
    close(twin.one_pass_logits(features, weight, bias), F.linear(features, weight, bias))


# ---------------------------------------------------------------- goodness by class


def test_mono_forward() -> None:
    h, projection, y = randn(3, 2, 2, 2), randn(4, 8, seed=1), torch.tensor([0, 3, 1])
    close(twin.projected_goodness(h, projection), h.flatten(1) @ projection.T)
    close(twin.mono_forward_loss(h, projection, y), F.cross_entropy(h.flatten(1) @ projection.T, y))
    projections = [randn(3, 6, seed=2), randn(3, 4, seed=3)]
    x, y = randn(3, 5), torch.tensor([2, 0, 1])
    step = twin.mono_forward_step(BLOCKS, PARAMS, projections, x, y)
    h = hidden(hidden(x, PARAMS[0]), PARAMS[1])
    logits = h @ projections[1].T
    error = (logits.softmax(1) - F.one_hot(y, 3)) / 3
    close(step.losses[1], F.cross_entropy(logits, y))
    close(step.auxiliary[1], error.T @ h)
    close(step.gradients[1][1], (error @ projections[1] * (h > 0)).sum(0))


def test_group_goodness_by_hand() -> None:
    h = tensor([[1, 2, 3, 4]])
    close(twin.group_goodness(h, 2), tensor([[2.5, 12.5]]))
    close(twin.group_goodness(h, 3), tensor([[2.5, 6.5, 12.5]]))  # channels 0-1, 1-2, 2-3
    close(twin.group_goodness(h[:, :2], 3), tensor([[1, 2.5, 4]]))  # channels 0, 0-1, 1
    close(twin.group_goodness(h, 2, chunks=2), tensor([[5, 10]]))  # (1, 3) and (2, 4)


@pytest.mark.parametrize("classes", [2, 3, 6, 8])
def test_group_goodness_of_maps(classes: int) -> None:
    h, y = randn(3, 6, 2, 2), torch.tensor([1, 0, 1])
    expected = F.adaptive_avg_pool1d(h.square().mean((2, 3)), classes)
    close(twin.group_goodness(h, classes), expected)
    close(twin.group_loss(h, y, classes), F.cross_entropy(expected, y))


def test_group_step() -> None:
    x, y = randn(3, 5), torch.tensor([1, 0, 1])
    step = twin.group_step(BLOCKS, PARAMS, x, y, 2)
    theta = [p.clone().requires_grad_() for p in PARAMS[1]]
    h = hidden(hidden(x, PARAMS[0]), theta)
    loss = F.cross_entropy(h.square().reshape(3, 2, 2).mean(2), y)
    close(step.losses[1], loss.detach())
    close(step.gradients[1], list(torch.autograd.grad(loss, theta)))
