"""The twin of PEPITA, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from tests.by_hand import close, convnet, mlp, randn, tensor
from tests.reference import feedback
from tests.reference import pepita as twin

Y = torch.tensor([0, 2])


def test_pepita_by_hand() -> None:
    # One sample, one input 1, hidden units 1 and -1 (ReLU: 1, 0), logits 0 and 0, so that e = (-1/2, 1/2).
    layers = [
        feedback.Layer(tensor([[1], [-1]]), None, feedback.RELU),
        feedback.Layer(torch.zeros(2, 2, dtype=torch.float64)),
    ]
    # x + F e = 1 + (2)(-1/2) + (6)(1/2) = 3; hidden units in the second pass: 3 and 0.
    _, gradients = twin.pepita_gradients(layers, tensor([[2, 6]]), tensor([[1]]), torch.tensor([0]))
    close(gradients[0][0], tensor([[(1 - 3) * 3], [0]]))
    close(gradients[0][1], tensor([-2, 0]))
    close(gradients[1][0], tensor([[-1.5, 0], [1.5, 0]]))


@pytest.mark.parametrize("net", [mlp, convnet])
def test_pepita_averages_over_samples(net) -> None:
    layers, x = net()
    projection = randn(x[0].numel(), 3, seed=30)
    _, both = twin.pepita_gradients(layers, projection, x, Y)
    alone = [twin.pepita_gradients(layers, projection, x[n : n + 1], Y[n : n + 1])[1] for n in range(2)]
    for i in range(len(layers)):
        close(both[i][0], (alone[0][i][0] + alone[1][i][0]) / 2)
        close(both[i][1], (alone[0][i][1] + alone[1][i][1]) / 2)
