"""The twins of deeper auxiliary networks, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.by_hand import close, head_loss, hidden, linear, randn, tensor
from tests.reference import auxiliary as twin
from tests.reference import greedy, overlap

Y = torch.tensor([0, 1, 2])
LR = 0.1


BLOCKS = [hidden, hidden, hidden, linear]
PARAMS = [[randn(4, 5, seed=1)], [randn(6, 4, seed=2)], [randn(5, 6, seed=3)], [randn(3, 5, seed=4)]]
X = randn(3, 5)


# ---------------------------------------------------------------- AugLocal


def test_auxiliary_layers_by_hand() -> None:
    assert twin.auxiliary_indices(0, 11, 2) == [5, 10]
    assert twin.auxiliary_indices(2, 10, 3) == [4, 7, 9]  # 2 + 7 / 3, 2 + 14 / 3, 9
    assert twin.auxiliary_indices(7, 10, 3) == [8, 9]
    assert twin.auxiliary_indices(6, 10, 3) == [7, 8, 9]
    assert twin.auxiliary_indices(0, 6, 2) == [2, 5]  # 2.5 goes to 2
    assert twin.auxiliary_indices(3, 4, 2) == []


def test_the_pyramid_falls_from_d_to_half_of_it() -> None:
    assert [twin.pyramid_depth(layer, 7, 6) for layer in range(6)] == [6, 6, 5, 4, 4, 4]  # 6, 5.5, 5, 4.5, 4, 3.5
    assert twin.pyramid_depth(0, 2, 6) == 6
    assert twin.pyramid_depth(54, 56, 1) == 1


# ---------------------------------------------------------------- MAN


def test_ema_by_hand() -> None:
    close(twin.ema_update([tensor([2.0])], [tensor([10.0])], 0.75), [tensor([4.0])])


def test_the_average_passes_gradients_to_its_input_alone() -> None:
    x, copy, average = randn(2, 4).requires_grad_(), randn(3, 4, seed=1), randn(3, 4, seed=2).requires_grad_()
    output = twin.momentum_output(linear, x, [copy], [average])
    close(output, x @ (copy + average).T)
    gradients = torch.autograd.grad(output.sum(), [x, average], allow_unused=True)
    close(gradients[0], (copy + average).sum(0).expand(2, 4))
    assert gradients[1] is None


def test_man_step() -> None:
    copies, averages = [[randn(6, 4, seed=5)], [randn(5, 6, seed=6)]], [[randn(6, 4, seed=7)], [randn(5, 6, seed=8)]]
    heads = [[randn(3, width, seed=9)] for width in (6, 5, 5)]
    step, new_copies, moved = twin.man_step(BLOCKS, PARAMS, copies, averages, heads, [head_loss] * 3, X, Y, LR, 0.9)
    theta, copy, head = (p[0].clone().requires_grad_() for p in (PARAMS[0], copies[0], heads[0]))
    h = torch.tanh(X @ theta.T)
    loss = F.cross_entropy((torch.tanh(h @ copy.T) + torch.tanh(h @ averages[0][0].T)) @ head.T, Y)
    gradients = torch.autograd.grad(loss, [theta, copy, head])
    close(step.losses[0], loss.detach())
    close(step.gradients[0], [gradients[0]])
    close(new_copies[0], [copies[0][0] - LR * gradients[1]])
    close(step.dictionary[0], [heads[0][0] - LR * gradients[2]])
    close(moved[0], [0.9 * averages[0][0] + 0.1 * step.params[1][0]])
    assert len(new_copies) == len(moved) == 2
    assert len(step.dictionary) == 3
    plain = greedy.decoupled_step(BLOCKS, PARAMS, heads, [head_loss] * 3, X, Y, LR, trained=[2, 3])
    close(step.gradients[2:], plain.gradients[2:])


# ---------------------------------------------------------------- HPFF


def test_patches_by_hand() -> None:
    h = torch.arange(8, dtype=torch.float64).reshape(1, 1, 2, 4)
    close([p.flatten() for p in twin.patches(h, 2)], [tensor([0, 1]), tensor([2, 3]), tensor([4, 5]), tensor([6, 7])])
    close(twin.patch_average(lambda p: p.amax((2, 3)), h, 2), tensor([[4.0]]))  # 1, 3, 5, 7
    with pytest.raises(ValueError, match="side must divide"):
        twin.patches(h, 3)


HEADS = [[randn(3, width, seed=width)] for width in (4, 6, 5)]
CASCADE_HEADS = [[randn(3, width, seed=width + 20)] for width in (4, 6, 5)]


def hpff(weights: tuple[float, float]) -> tuple:
    heads, cascade_heads = [*HEADS, []], [*CASCADE_HEADS, []]
    return twin.hpff_step(
        BLOCKS, PARAMS, heads, cascade_heads, [head_loss] * 4, [head_loss] * 4, X, Y, LR, [weights] * 4
    )


def test_hpff_without_cascade_is_greedy() -> None:
    step, cascade_heads = hpff((1.0, 0.0))
    expected = greedy.decoupled_step(BLOCKS, PARAMS, HEADS, [head_loss] * 3, X, Y, LR)
    close(step.losses, expected.losses)
    close(step.gradients, expected.gradients)
    close(step.dictionary, [*expected.dictionary, []])
    close(cascade_heads, [*CASCADE_HEADS, []])


def test_hpff_is_the_weighted_sum_of_greedy_and_overlapping_pairs() -> None:
    step, cascade_heads = hpff((0.3, 0.7))
    alone = greedy.decoupled_step(BLOCKS, PARAMS, HEADS, [head_loss] * 3, X, Y, LR)
    pairs = overlap.overlap_step(
        BLOCKS, PARAMS, overlap.windows(4, 2, 1), [*CASCADE_HEADS[1:], []], [head_loss] * 3, X, Y, LR
    )
    for i in range(4):
        close(step.gradients[i], [0.3 * alone.gradients[i][0] + 0.7 * pairs.gradients[i][0]])
    close(step.losses[0], 0.3 * alone.losses[0])
    close(step.losses[2], 0.3 * alone.losses[2] + 0.7 * pairs.losses[1])
    moved = CASCADE_HEADS[1][0] - pairs.dictionary[0][0]
    close(cascade_heads[1], [CASCADE_HEADS[1][0] - 0.7 * moved])
