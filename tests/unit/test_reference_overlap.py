"""The twin of overlapping blocks, against greedy learning and backpropagation."""

from __future__ import annotations

import torch

from tests.by_hand import close, head_loss, hidden, linear, randn
from tests.reference import greedy, training
from tests.reference import overlap as twin

Y = torch.tensor([0, 1, 2])
LR = 0.1


BLOCKS = [hidden, hidden, hidden, linear]
PARAMS = [[randn(4, 5, seed=1)], [randn(6, 4, seed=2)], [randn(5, 6, seed=3)], [randn(3, 5, seed=4)]]
X = randn(3, 5)


def test_windows() -> None:
    assert twin.windows(6, 2, 1) == [(0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]
    assert twin.windows(6, 3, 0) == [(0, 3), (3, 6)]
    assert twin.windows(6, 4, 1) == [(0, 4), (3, 6)]
    assert twin.windows(5, 3, 2) == [(0, 3), (1, 4), (2, 5)]
    assert twin.windows(2, 5, 1) == [(0, 2)]


def test_windows_of_one_block_are_greedy_learning() -> None:
    heads = [[randn(3, width, seed=width)] for width in (4, 6, 5)]
    step = twin.overlap_step(BLOCKS, PARAMS, twin.windows(4, 1, 0), [*heads, []], [head_loss] * 4, X, Y, LR)
    expected = greedy.decoupled_step(BLOCKS, PARAMS, heads, [head_loss] * 3, X, Y, LR)
    close(step.losses, expected.losses)
    close(step.gradients, expected.gradients)
    close(step.params, expected.params)
    close(step.dictionary, [*expected.dictionary, []])


def test_one_window_is_backpropagation() -> None:
    step = twin.overlap_step(BLOCKS, PARAMS, [(0, 4)], [[]], [head_loss], X, Y, LR)
    expected = training.backprop_step(BLOCKS, PARAMS, X, Y, LR)
    close(step.gradients, expected.gradients)
    close(step.params, expected.params)


def test_a_shared_block_gets_the_sum() -> None:
    head = [randn(3, 5, seed=9)]
    step = twin.overlap_step(BLOCKS, PARAMS, [(0, 3), (2, 4)], [head, []], [head_loss] * 2, X, Y, LR)
    first = training.backprop_step([*BLOCKS[:3], linear], [*PARAMS[:3], head], X, Y, LR)
    x2 = hidden(hidden(X, PARAMS[0]), PARAMS[1])
    second = training.backprop_step(BLOCKS[2:], PARAMS[2:], x2, Y, LR)
    close(step.losses, [first.losses[-1], second.losses[-1]])
    close(step.gradients[:2], first.gradients[:2])
    close(step.gradients[2], [first.gradients[2][0] + second.gradients[0][0]])
    close(step.gradients[3], second.gradients[1])
    close(step.dictionary, [first.params[3], []])
    close(step.params[2], [PARAMS[2][0] - LR * step.gradients[2][0]])
