"""Float64 numbers for the tests that hold the naive twins against what is worked out by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference.feedback import RELU, TANH, Layer

CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, **CLOSE)


def hidden(x: Tensor, theta: list[Tensor]) -> Tensor:
    return torch.tanh(x @ theta[0].T)


def linear(x: Tensor, theta: list[Tensor]) -> Tensor:
    return x @ theta[0].T


def head_loss(h: Tensor, head: list[Tensor], y: Tensor) -> Tensor:
    return F.cross_entropy(h @ head[0].T if head else h, y)


def mlp() -> tuple[list[Layer], Tensor]:
    layers = [
        Layer(randn(4, 5, seed=1), randn(4, seed=2), TANH),
        Layer(randn(6, 4, seed=3), randn(6, seed=4), RELU),
        Layer(randn(3, 6, seed=5), randn(3, seed=6)),
    ]
    return layers, randn(2, 5)


def convnet() -> tuple[list[Layer], Tensor]:
    layers = [
        Layer(randn(3, 2, 3, 3, seed=1), randn(3, seed=2), TANH, padding=1, pool=2),
        Layer(randn(4, 3, 3, 3, seed=3), randn(4, seed=4), RELU, stride=2, padding=1),
        Layer(randn(3, 4, seed=5), randn(3, seed=6)),
    ]
    return layers, randn(2, 2, 4, 4)
