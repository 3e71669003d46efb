"""The twins' layers, against torch's own functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.by_hand import close, randn
from tests.reference import layers as twin


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (1, 0), (2, 0)])
def test_convolutions(stride: int, padding: int) -> None:
    h, weight, bias = randn(2, 3, 5, 4), randn(2, 3, 3, 3, seed=1), randn(2, seed=2)
    settings = {"stride": stride, "padding": padding}
    close(twin.conv2d(h, weight, bias, **settings), F.conv2d(h, weight, bias, **settings))
    close(twin.conv2d(h, weight, **settings), F.conv2d(h, weight, **settings))
    weight = weight.transpose(0, 1)
    close(twin.conv_transpose2d(h, weight, bias, **settings), F.conv_transpose2d(h, weight, bias, **settings))


def test_linear_and_relu() -> None:
    h, weight, bias = randn(3, 4), randn(2, 4, seed=1), randn(2, seed=2)
    close(twin.linear(h, weight, bias), F.linear(h, weight, bias))
    close(twin.linear(h, weight), h @ weight.T)
    h = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    [gradient] = torch.autograd.grad(twin.relu(h).sum(), h)
    assert twin.relu(h).tolist() == [0.0, 0.0, 2.0]
    assert gradient.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 3)])
def test_batch_norm(shape: tuple[int, ...]) -> None:
    h, gamma, beta = randn(*shape), randn(3, seed=1), randn(3, seed=2)
    close(twin.batch_norm(h, gamma, beta), F.batch_norm(h, None, None, gamma, beta, training=True))


@pytest.mark.parametrize("size", [(2, 2), (1, 1), (3, 2), (5, 4)])
def test_pooling_and_resizing(size: tuple[int, int]) -> None:
    h = randn(2, 2, 5, 3)
    close(twin.adaptive_average_pool(h, *size), F.adaptive_avg_pool2d(h, size))
    close(twin.bilinear(h, *size), F.interpolate(h, size, mode="bilinear", align_corners=True))


def test_chains() -> None:
    h, conv, gamma, beta = randn(2, 3, 4, 4), randn(2, 3, 3, 3, seed=1), randn(2, seed=2), randn(2, seed=3)
    expected = F.relu(F.batch_norm(F.conv2d(h, conv, stride=2, padding=1), None, None, gamma, beta, training=True))
    close(twin.apply_convs(h, [twin.ConvLayer(conv, gamma=gamma, beta=beta, stride=2)]), expected)
    flat, weight, bias = randn(4, 3), randn(2, 3, seed=4), randn(2, seed=5)
    hidden = F.relu(F.batch_norm(F.linear(flat, weight, bias), None, None, gamma, beta, training=True))
    layers = [twin.LinearLayer(weight, bias, gamma, beta, relu=True), twin.LinearLayer(weight.T)]
    close(twin.apply_linears(flat, layers), hidden @ weight)
