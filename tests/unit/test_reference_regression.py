"""The twin of local regression, against numbers worked out by hand and torch's own functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.by_hand import close, randn, tensor
from tests.reference import regression as twin


def test_squared_error_by_hand() -> None:
    predicted, target = tensor([[1, 2], [0, -1], [3, 3]]), tensor([[0, 2], [2, -1], [3, 0]])
    close(twin.squared_error(predicted, target), tensor((1 + 4 + 9) / 6))
    predicted.requires_grad_()
    [gradient] = torch.autograd.grad(twin.squared_error(predicted, target), predicted)
    close(gradient, tensor([[1, 0], [-2, 0], [0, 3]]) * 2 / 6)


def test_classes_are_one_hot() -> None:
    close(twin.one_hot(torch.tensor([2, 0]), 3), tensor([[0, 0, 1], [1, 0, 0]]))


def test_the_loss_is_that_of_a_linear_layer() -> None:
    h, target, weight, bias = randn(3, 5), randn(3, 2, seed=1), randn(2, 5, seed=2), randn(2, seed=3)
    close(twin.regression_loss(h, target, weight, bias, budget=9), F.mse_loss(F.linear(h, weight, bias), target))
    maps, weight = randn(3, 2, 4, 4), randn(2, 8, seed=2)
    pooled = F.avg_pool2d(maps, 2).flatten(1)
    close(
        twin.regression_loss(maps, target, weight, bias, budget=8), F.mse_loss(F.linear(pooled, weight, bias), target)
    )
