"""The twin of InfoPro, against numbers worked out by hand and torch's own functions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.by_hand import close, randn
from tests.reference import information as twin
from tests.reference.contrast import supervised_contrastive_loss
from tests.reference.layers import ConvLayer, LinearLayer

Y = torch.tensor([0, 1, 0])


def decoder(channels: int, colours: int) -> twin.Decoder:
    return twin.Decoder(
        randn(12, channels, 3, 3, seed=1),
        randn(12, seed=2),
        randn(12, seed=3),
        randn(12, seed=4),
        randn(colours, 12, 3, 3, seed=5) / 10,  # large logits round the sigmoid to 1
        randn(colours, seed=6),
    )


def test_contrast_through_a_head() -> None:
    h, weight, bias = randn(3, 4, 2, 2), randn(5, 8, seed=1), randn(5, seed=2)
    a = F.normalize(F.linear(F.avg_pool2d(h, (2, 1)).flatten(1), weight, bias)) @ torch.eye(5, dtype=torch.float64)
    # Anchors 0 and 2 have each other; anchor 1 has no positive.
    s = a @ a.T / 0.5
    expected = (math.log(s[0, 1].exp() + s[0, 2].exp()) + math.log(s[2, 0].exp() + s[2, 1].exp()) - 2 * s[0, 2]) / 3
    close(twin.contrast_loss(h, Y, weight, bias, budget=8, temperature=0.5), expected)


def test_head_0c1f_is_a_linear_layer_on_averages() -> None:
    h, weight, bias = randn(2, 3, 2, 4), randn(5, 3, seed=1), randn(5, seed=2)
    close(twin.head(h, [], [LinearLayer(weight, bias)]), F.linear(h.mean((2, 3)), weight, bias))
    close(twin.head(h[:, :, 0, 0], [], [LinearLayer(weight, bias)]), F.linear(h[:, :, 0, 0], weight, bias))


def test_head_1c2f() -> None:
    h, conv, gamma, beta = randn(2, 3, 4, 4), randn(6, 3, 3, 3, seed=1), randn(6, seed=2), randn(6, seed=3)
    w1, b1, w2, b2 = randn(5, 6, seed=4), randn(5, seed=5), randn(4, 5, seed=6), randn(4, seed=7)
    c = F.relu(F.batch_norm(F.conv2d(h, conv, stride=2, padding=1), None, None, gamma, beta, training=True))
    expected = F.linear(F.relu(F.linear(c.mean((2, 3)), w1, b1)), w2, b2)
    convs = [ConvLayer(conv, gamma=gamma, beta=beta, stride=2)]
    close(twin.head(h, convs, [LinearLayer(w1, b1, relu=True), LinearLayer(w2, b2)]), expected)


@pytest.mark.parametrize("colours", [1, 3])
def test_reconstruction(colours: int) -> None:
    h, image, d = randn(2, 2, 2, 3), randn(2, colours, 4, 4, seed=9).sigmoid(), decoder(2, colours)
    upsampled = F.interpolate(h, (4, 4), mode="bilinear", align_corners=True)
    hidden = F.conv2d(upsampled, d.weight1, d.bias1, padding=1)
    hidden = F.relu(F.batch_norm(hidden, None, None, d.gamma, d.beta, training=True))
    expected = F.binary_cross_entropy(F.conv2d(hidden, d.weight2, d.bias2, padding=1).sigmoid(), image)
    close(twin.reconstruction_loss(h, image, d), expected)


def test_a_decoder_that_says_one_half_loses_log_two() -> None:
    d = decoder(2, 1)._replace(weight2=torch.zeros(1, 12, 3, 3, dtype=torch.float64), bias2=None)
    loss = twin.reconstruction_loss(randn(2, 2, 2, 2), randn(2, 1, 2, 2).sigmoid(), d)
    close(loss, torch.tensor(math.log(2), dtype=torch.float64))


def test_contrec() -> None:
    h, image, d = randn(3, 2, 2, 2), randn(3, 1, 2, 2, seed=9).sigmoid(), decoder(2, 1)
    weight, bias = randn(4, 8, seed=10), randn(4, seed=11)
    contrast = twin.contrast_loss(h, Y, weight, bias, budget=8)
    expected = 0.3 * twin.reconstruction_loss(h, image, d) + 0.7 * contrast
    close(twin.contrec_loss(h, Y, image, weight, bias, d, budget=8, weights=(0.3, 0.7)), expected)
    close(twin.contrec_loss(h, Y, image, weight, bias, None, budget=8, weights=(0.3, 0.7)), 0.7 * contrast)


def test_tasks() -> None:
    outputs = randn(3, 4)
    close(twin.softmax_task(outputs, Y), F.cross_entropy(outputs, Y))
    close(twin.contrast_task(outputs, Y, 0.1), supervised_contrastive_loss(outputs, Y, 0.1))


def test_lambda_schedule() -> None:
    assert twin.lambda_schedule((5, 0.5), (0, 0), 2) == [(5, 0.5)]
    assert twin.lambda_schedule((6, 0), (1, 2), 4) == [(6, 0), (3.5, 1), (1, 2)]
    schedule = twin.lambda_schedule((5, 0), (0.5, 1), 16)
    assert len(schedule) == 15
    assert schedule[7] == pytest.approx((2.75, 0.5))
