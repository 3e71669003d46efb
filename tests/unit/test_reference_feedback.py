"""The twins of feedback alignment and its kin, against backpropagation and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.by_hand import close, convnet, mlp, randn, tensor
from tests.reference import feedback as twin

Y = torch.tensor([0, 2])


def activate(layer: twin.Layer, a: Tensor) -> Tensor:
    return {twin.TANH: torch.tanh, twin.RELU: F.relu, twin.IDENTITY: lambda v: v}[layer.activation](a)


def torch_layer(layer: twin.Layer, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The activation, before pooling."""
    if weight.dim() == 2:
        return activate(layer, F.linear(x.flatten(1), weight, bias))
    return activate(layer, F.conv2d(x, weight, bias, layer.stride, layer.padding))


def torch_loss(layers: list[twin.Layer], parameters: list[Tensor], x: Tensor) -> Tensor:
    for i, layer in enumerate(layers):
        x = torch_layer(layer, x, parameters[2 * i], parameters[2 * i + 1])
        x = F.max_pool2d(x, layer.pool) if layer.pool > 1 else x
    return F.cross_entropy(x, Y)


def parameters_of(layers: list[twin.Layer]) -> list[Tensor]:
    return [p.clone().requires_grad_() for layer in layers for p in (layer.weight, layer.bias)]


@pytest.mark.parametrize("net", [mlp, convnet])
def test_fa_with_the_weights_as_feedback_is_backpropagation(net) -> None:
    layers, x = net()
    parameters = parameters_of(layers)
    expected = torch_loss(layers, parameters, x)
    loss, gradients = twin.fa_gradients(layers, [layer.weight for layer in layers], x, Y)
    close(loss, expected.detach())
    close([g for pair in gradients for g in pair], list(torch.autograd.grad(expected, parameters)))


def test_fa_carries_errors_back_by_the_feedback_alone() -> None:
    layers, x = mlp()
    feedback = [randn(*layer.weight.shape, seed=10 + i) for i, layer in enumerate(layers)]
    _, gradients = twin.fa_gradients(layers, feedback, x, Y)
    a1 = F.linear(x, layers[0].weight, layers[0].bias)
    a2 = F.linear(a1.tanh(), layers[1].weight, layers[1].bias)
    logits = F.linear(a2.relu(), layers[2].weight, layers[2].bias)
    e = (logits.softmax(1) - F.one_hot(Y, 3)) / 2
    d2 = (e @ feedback[2]) * (a2 > 0)
    d1 = (d2 @ feedback[1]) * (1 - a1.tanh() ** 2)
    close(gradients, [(d1.T @ x, d1.sum(0)), (d2.T @ a1.tanh(), d2.sum(0)), (e.T @ a2.relu(), e.sum(0))])


def test_the_backward_of_one_layer() -> None:
    x, delta, weight = randn(2, 3, 4), randn(2, 3, 5, seed=1), randn(5, 4, seed=2)
    step = twin.linear_backward(x, delta, weight)
    close(step.input, delta @ weight)
    close(step.weight, torch.einsum("nko,nkd->od", delta, x))
    close(step.bias, delta.sum((0, 1)))
    x, weight, delta = randn(2, 3, 5).requires_grad_(), randn(4, 3, 3, seed=1).requires_grad_(), randn(2, 4, 3, seed=2)
    expected = torch.autograd.grad((F.conv1d(x, weight, stride=2, padding=1) * delta).sum(), [x, weight])
    step = twin.conv1d_backward(x.detach(), delta, weight.detach(), stride=2, padding=1)
    close([step.input, step.weight, step.bias], [*expected, delta.sum((0, 2))])


def test_signals_by_hand() -> None:
    logits, y = tensor([[math.log(3), 0], [0, 0]]), torch.tensor([1, 0])
    close(twin.signal_of(logits, y, "dfa"), tensor([[0.375, -0.375], [-0.25, 0.25]]))
    close(twin.signal_of(logits, y, "sdfa"), tensor([[0.5, -0.5], [-0.5, 0.5]]))
    close(twin.signal_of(logits, y, "drtp"), tensor([[0, 0.5], [0.5, 0]]))


def test_direct_error_by_hand() -> None:
    close(twin.direct_error(tensor([[1, -2]]), tensor([[[1, 2]], [[3, 4]]])), tensor([[[-5, -6]]]))


@pytest.mark.parametrize("signal", ["dfa", "sdfa", "drtp"])
@pytest.mark.parametrize("net", [mlp, convnet])
def test_direct_feedback_reaches_the_activation(net, signal: twin.Signal) -> None:
    layers, x = net()
    parameters = parameters_of(layers)
    traces = twin.forward(layers, x)
    matrices = [randn(3, *trace.activation.shape[1:], seed=20 + i) for i, trace in enumerate(traces[:-1])]
    loss, gradients = twin.direct_gradients(layers, matrices, x, Y, signal)
    expected = torch_loss(layers, parameters, x)
    close(loss, expected.detach())
    sent = twin.signal_of(traces[-1].output, Y, signal)
    for i in range(len(layers) - 1):
        own = parameters[2 * i : 2 * i + 2]
        activation = torch_layer(layers[i], traces[i].input, *own)
        delta = torch.tensordot(sent, matrices[i], 1)
        close(list(gradients[i]), list(torch.autograd.grad((activation * delta).sum(), own)))
    close(list(gradients[-1]), list(torch.autograd.grad(expected, parameters[-2:])))


@pytest.mark.parametrize("signal", ["dfa", "sdfa", "drtp"])
def test_the_step_over_blocks_is_the_step_over_layers(signal: twin.Signal) -> None:
    layers, x = mlp()
    blocks = [
        lambda x, p: torch.tanh(x @ p[0].T + p[1]),
        lambda x, p: torch.relu(x @ p[0].T + p[1]),
        lambda x, p: x @ p[0].T + p[1],
    ]
    params = [[layer.weight, layer.bias] for layer in layers]
    matrices = [randn(3, 4, seed=20), randn(3, 6, seed=21)]
    loss, gradients = twin.direct_gradients(layers, matrices, x, Y, signal)
    step = twin.direct_step(blocks, params, matrices, x, Y, 0.1, signal)
    close(step.losses, [None, None, loss])
    close(step.gradients, [list(pair) for pair in gradients])
    close(step.params[1][1], params[1][1] - 0.1 * gradients[1][1])


def test_sign_symmetric_feedback_by_hand() -> None:
    weight = tensor([[-2, 0, 3]])
    close(twin.usf_feedback(weight, 0.5), tensor([[-0.5, 0, 0.5]]))
    close(twin.sign_feedback(weight, tensor([[4, 5, -6]])), tensor([[-4, 0, 6]]))
    assert twin.initial_std(randn(4, 2), "xavier") == pytest.approx(math.sqrt(1 / 3))
    assert twin.initial_std(randn(4, 2, 3, 3), "kaiming") == pytest.approx(1 / math.sqrt(54))


def test_alignment_angle() -> None:
    weight = tensor([[1, 0], [0, 0]])
    assert twin.alignment_angle(weight, weight) == 0.0
    assert twin.alignment_angle(weight, -weight) == pytest.approx(math.pi)
    assert twin.alignment_angle(weight, tensor([[1, 1], [0, 0]])) == pytest.approx(math.pi / 4)
