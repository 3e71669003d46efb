"""The twins of greedy learning, against numbers worked out by hand and torch's own functions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.by_hand import close, randn, tensor
from tests.reference import greedy as twin
from tests.reference.layers import ConvLayer, LinearLayer

Y = torch.tensor([0, 1, 2])
LR = 0.1


def normalised(h: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.batch_norm(h, None, None, gamma, beta, training=True)


# ---------------------------------------------------------------- heads


def test_conv_heads() -> None:
    h, weight, bias = randn(3, 2, 4, 4), randn(3, 8, seed=1), randn(3, seed=2)
    classifier = LinearLayer(weight, bias)
    close(twin.linear_head(h, [weight, bias]), F.linear(F.adaptive_avg_pool2d(h, 2).flatten(1), weight, bias))
    close(twin.conv_head(h.reshape(3, 32)[:, :8], [], classifier), F.linear(h.reshape(3, 32)[:, :8], weight, bias))
    first, second = randn(3, 2, 3, 3, seed=3), randn(2, 3, 3, 3, seed=4)
    deep = F.relu(F.conv2d(F.relu(F.conv2d(h, first, padding=1)), second, padding=1))
    expected = F.linear(F.adaptive_avg_pool2d(deep, 2).flatten(1), weight, bias)
    close(twin.conv_head(h, [ConvLayer(first), ConvLayer(second)], classifier), expected)


def hidden_linears(width: int) -> list[LinearLayer]:
    return [
        LinearLayer(randn(width, width, seed=s), randn(width, seed=s + 1), randn(width, seed=s + 2), randn(width), True)
        for s in (10, 20, 30)
    ]


def torch_mlp(h: Tensor, linears: list[LinearLayer]) -> Tensor:
    for layer in linears[:-1]:
        h = F.relu(normalised(F.linear(h, layer.weight, layer.bias), layer.gamma, layer.beta))
    return F.linear(h, linears[-1].weight, linears[-1].bias)


def test_mlp_heads() -> None:
    h = randn(4, 2, 9, 9)  # pooled to 3 x 3, then to 2 x 2
    linears = [*hidden_linears(8), LinearLayer(randn(3, 8, seed=1), randn(3, seed=2))]
    first = F.adaptive_avg_pool2d(h, 3)
    close(twin.mlp_head(h, linears), torch_mlp(F.adaptive_avg_pool2d(first, 2).flatten(1), linears))
    convs = [ConvLayer(randn(2, 2, 1, 1, seed=s), None, randn(2, seed=s), randn(2, seed=s + 1)) for s in (40, 50, 60)]
    deep = first
    for conv in convs:
        deep = F.relu(normalised(F.conv2d(deep, conv.weight), conv.gamma, conv.beta))
    close(twin.mlp_sr_head(h, convs, linears), torch_mlp(F.adaptive_avg_pool2d(deep, 2).flatten(1), linears))


def test_cnn_head() -> None:
    h, norm = randn(3, 2, 4, 4), twin.Norm(randn(2, seed=1), randn(2, seed=2))
    convs = [ConvLayer(randn(2, 2, 3, 3, seed=s), None, randn(2, seed=s), randn(2, seed=s + 1)) for s in (3, 5)]
    classifier = LinearLayer(randn(3, 8, seed=7), randn(3, seed=8))
    deep = h
    for conv in convs:
        deep = F.relu(normalised(F.conv2d(deep, conv.weight, padding=1), conv.gamma, conv.beta))
    pooled = normalised(F.adaptive_avg_pool2d(deep, 2), *norm)
    close(twin.cnn_head(h, convs, norm, classifier), F.linear(pooled.flatten(1), classifier.weight, classifier.bias))


# ---------------------------------------------------------------- targets


def test_roll_and_shifts() -> None:
    image = tensor([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]])
    close(twin.roll(image, 1), tensor([[[[9, 7, 8], [3, 1, 2], [6, 4, 5]]]]))
    close(twin.roll(randn(2, 3, 4, 5), 6), torch.roll(randn(2, 3, 4, 5), (6, 6), (2, 3)))
    assert twin.shifts(6) == [5, 7, 9, 11, 13, 16]
    assert twin.shifts(2) == [5, 16]
    assert twin.shifts(1) == [5]


def test_image_loss_by_hand() -> None:
    image = tensor([[[[1, 2], [3, 4]]]])
    close(twin.image_loss(torch.zeros_like(image), image), tensor(2.5))
    close(twin.image_loss(image, image, shift=1), tensor(2.0))  # |1-4|, |2-3|, |3-2|, |4-1|
    close(twin.label_and_image_loss(tensor(2), tensor(10), (0.9, 0.1)), tensor(2.8))


def test_rotation() -> None:
    image = tensor([[[[1, 2], [3, 4]]]])
    close(twin.rotate(image, torch.tensor([1])), tensor([[[[2, 4], [1, 3]]]]))
    images, turns = randn(5, 2, 3, 3), torch.tensor([0, 1, 2, 3, 2])
    expected = torch.stack([torch.rot90(images[n], int(turns[n]), (1, 2)) for n in range(5)])
    close(twin.rotate(images, turns), expected)
    logits = randn(5, 4)
    close(twin.rotation_loss(logits, turns), F.cross_entropy(logits, turns))


def test_coarse_targets() -> None:
    y = torch.arange(5)
    assert twin.coarse_labels(y, 2, 5).tolist() == [0, 0, 0, 1, 1]
    assert twin.coarse_labels(y, 5, 5).tolist() == [0, 1, 2, 3, 4]
    assert twin.group_counts(4, 10) == [2, 4, 7, 10]
    assert twin.group_counts(1, 10) == [2]
    logits = randn(5, 2)
    close(twin.coarse_loss(logits, y, 5), F.cross_entropy(logits, torch.tensor([0, 0, 0, 1, 1])))
    logits = randn(5, 5)
    p = logits.softmax(1)
    own = torch.cat([p[:3, :3].sum(1), p[3:, 3:].sum(1)])
    close(twin.coarse_loss_of_classes(logits, y, 2), -own.log().mean())
    close(twin.coarse_loss_of_classes(logits, y, 5), F.cross_entropy(logits, y))


def test_ensemble_by_hand() -> None:
    assert twin.layer_weights(3) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    mixed = twin.ensemble([tensor([[math.log(3), 0]]), tensor([[0, 0]])])
    close(mixed, tensor([[0.75 / 3 + 1 / 3, 0.25 / 3 + 1 / 3]]))


# ---------------------------------------------------------------- steps


def network() -> tuple[list, list[list[Tensor]], list[list[Tensor]], Tensor]:
    def hidden(x: Tensor, p: list[Tensor]) -> Tensor:
        return torch.tanh(x @ p[0].T)

    params = [[randn(4, 5, seed=1)], [randn(6, 4, seed=2)], [randn(3, 6, seed=3)]]
    heads = [[randn(3, 4, seed=4), randn(3, seed=5)], [randn(3, 6, seed=6), randn(3, seed=7)]]
    return [hidden, hidden, lambda x, p: x @ p[0].T], params, heads, randn(3, 5)


def head_loss(h: Tensor, head: list[Tensor], y: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(h, *head), y)


def test_decoupled_step() -> None:
    blocks, params, heads, x = network()
    step = twin.decoupled_step(blocks, params, heads, [head_loss] * 2, x, Y, LR)
    h = x
    for i in range(2):
        theta, phi = twin.leaves_of(params[i]), twin.leaves_of(heads[i])
        loss = head_loss(blocks[i](h, theta), phi, Y)
        gradients = torch.autograd.grad(loss, [*theta, *phi])
        close(step.losses[i], loss.detach())
        close(step.gradients[i], [gradients[0]])
        close(step.params[i], [params[i][0] - LR * gradients[0]])
        close(step.dictionary[i], [heads[i][0] - LR * gradients[1], heads[i][1] - LR * gradients[2]])
        h = blocks[i](h, params[i])
    close(step.losses[2], F.cross_entropy(blocks[2](h, params[2]), Y))


def test_layerwise_and_frozen_steps_train_the_named_blocks_alone() -> None:
    blocks, params, heads, x = network()
    every = twin.decoupled_step(blocks, params, heads, [head_loss] * 2, x, Y, LR)
    one = twin.decoupled_step(blocks, params, heads, [head_loss] * 2, x, Y, LR, trained=[1])
    assert one.losses[0] is None
    assert one.losses[2] is None
    close(one.params, [params[0], every.params[1], params[2]])
    close(one.dictionary[0], heads[0])
    close(one.dictionary[1], every.dictionary[1])
    frozen = twin.frozen_step(blocks, params, x, Y, LR)
    close(frozen.params, [params[0], params[1], every.params[2]])


def test_the_last_block_alone() -> None:
    weight, x = randn(3, 5, seed=1), randn(3, 5)
    step = twin.last_block_step(lambda x, p: x @ p[0].T, [weight], x, Y, LR)
    e = ((x @ weight.T).softmax(1) - F.one_hot(Y, 3)) / 3
    close(step.params, [[weight - LR * e.T @ x]])


def test_mixed_forms_agree() -> None:
    blocks, params, heads, x = network()
    arguments = (blocks, params, heads, twin.linear_head, x, Y, LR)
    hook, single = twin.mixed_hook_step(*arguments, weight=0.3), twin.mixed_loss_step(*arguments, weight=0.3)
    close(hook.gradients, single.gradients)
    close(hook.params, single.params)
    close(hook.dictionary, single.dictionary)


def test_mixed_without_weight_is_decoupled() -> None:
    blocks, params, heads, x = network()
    mixed = twin.mixed_hook_step(blocks, params, heads, twin.linear_head, x, Y, LR, weight=0.0)
    decoupled = twin.decoupled_step(blocks, params, heads, [head_loss] * 2, x, Y, LR)
    close(mixed.losses, decoupled.losses)
    close(mixed.gradients, decoupled.gradients)


def test_mixed_with_the_whole_weight_by_hand() -> None:
    blocks, params, heads, x = network()
    step = twin.mixed_hook_step(blocks, params, heads, twin.linear_head, x, Y, LR, weight=1.0)
    h1 = torch.tanh(x @ params[0][0].T)
    h2 = torch.tanh(h1 @ params[1][0].T)
    e = ((h2 @ params[2][0].T).softmax(1) - F.one_hot(Y, 3)) / 3
    delta = (e @ heads[0][0]) * (1 - h1**2)
    close(step.gradients[0], [delta.T @ x])
    close(step.dictionary[0], [heads[0][0] - LR * e.T @ h1, heads[0][1] - LR * e.sum(0)])
