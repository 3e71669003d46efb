"""Feedback alignment, direct feedback, direct targets and sign-symmetric feedback, with gradients by hand.

A network is a list of layers: a linear map or a convolution, an activation given with its derivative, and max pooling
before the next layer. The loss is cross-entropy averaged over the batch, so that the error at the logits is
e = (softmax - onehot) / N. The last layer has the identity as its activation and always gets its true gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .dictionary import cross_entropy, cross_entropy_gradient
from .layers import conv2d, linear
from .similarity import onehot
from .training import Block, Groups, Step

Signal = Literal["dfa", "sdfa", "sdfa-centred", "drtp"]
LayerGradients = list[tuple[Tensor, Tensor]]
"""(gradient of the weight, gradient of the bias) of every layer."""


class Activation(NamedTuple):
    """f and f', both at the pre-activation."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


IDENTITY = Activation(lambda a: a, torch.ones_like)
TANH = Activation(torch.tanh, lambda a: 1 - torch.tanh(a) ** 2)
RELU = Activation(lambda a: a * (a > 0).double(), lambda a: (a > 0).double())


class Layer(NamedTuple):
    """weight (D', D) or (C', C, k, k), bias or None, activation, and the side of the max pooling after it."""

    weight: Tensor
    bias: Tensor | None = None
    activation: Activation = IDENTITY
    stride: int = 1
    padding: int = 0
    pool: int = 1


class Trace(NamedTuple):
    """What one layer did: its input, f's argument and value, and the pooled output."""

    input: Tensor
    before: Tensor
    activation: Tensor
    output: Tensor


class Backward(NamedTuple):
    """Gradients of one linear map or convolution."""

    input: Tensor
    weight: Tensor
    bias: Tensor


def linear_backward(x: Tensor, delta: Tensor, feedback: Tensor) -> Backward:
    """x (..., D), delta (..., D') at the output, feedback (D', D) in the place of the weight."""
    outputs, inputs = feedback.shape
    rows, errors = x.reshape(-1, inputs), delta.reshape(-1, outputs)
    x_gradient = torch.zeros_like(rows)
    w_gradient = torch.zeros_like(feedback)
    b_gradient = torch.zeros(outputs, dtype=torch.float64)
    for n in range(rows.shape[0]):
        for o in range(outputs):
            b_gradient[o] += errors[n, o]
            for d in range(inputs):
                w_gradient[o, d] += errors[n, o] * rows[n, d]
                x_gradient[n, d] += errors[n, o] * feedback[o, d]
    return Backward(x_gradient.reshape(x.shape), w_gradient, b_gradient)


def conv2d_backward(x: Tensor, delta: Tensor, feedback: Tensor, stride: int = 1, padding: int = 0) -> Backward:
    """x (N, C, H, W), delta (N, C', H', W') at the output, feedback (C', C, k, k) in the place of the weight."""
    samples, outputs, rows, columns = delta.shape
    height, width = x.shape[2:]
    x_gradient, w_gradient = torch.zeros_like(x), torch.zeros_like(feedback)
    b_gradient = torch.zeros(outputs, dtype=torch.float64)
    for n in range(samples):
        for o in range(outputs):
            for i in range(rows):
                for j in range(columns):
                    b_gradient[o] += delta[n, o, i, j]
                    for p in range(feedback.shape[2]):
                        for q in range(feedback.shape[3]):
                            a, b = i * stride + p - padding, j * stride + q - padding
                            if 0 <= a < height and 0 <= b < width:
                                w_gradient[o, :, p, q] += delta[n, o, i, j] * x[n, :, a, b]
                                x_gradient[n, :, a, b] += delta[n, o, i, j] * feedback[o, :, p, q]
    return Backward(x_gradient, w_gradient, b_gradient)


def conv1d_backward(x: Tensor, delta: Tensor, feedback: Tensor, stride: int = 1, padding: int = 0) -> Backward:
    """x (N, C, L), delta (N, C', L') at the output, feedback (C', C, k) in the place of the weight."""
    samples, outputs, places = delta.shape
    x_gradient, w_gradient = torch.zeros_like(x), torch.zeros_like(feedback)
    b_gradient = torch.zeros(outputs, dtype=torch.float64)
    for n in range(samples):
        for o in range(outputs):
            for i in range(places):
                b_gradient[o] += delta[n, o, i]
                for p in range(feedback.shape[2]):
                    a = i * stride + p - padding
                    if 0 <= a < x.shape[2]:
                        w_gradient[o, :, p] += delta[n, o, i] * x[n, :, a]
                        x_gradient[n, :, a] += delta[n, o, i] * feedback[o, :, p]
    return Backward(x_gradient, w_gradient, b_gradient)


def layer_backward(layer: Layer, trace: Trace, delta: Tensor, feedback: Tensor) -> Backward:
    """Go back through the linear map or the convolution of a layer, with `feedback` in the place of its weight."""
    if layer.weight.dim() == 2:
        return linear_backward(trace.input, delta, feedback)
    return conv2d_backward(trace.input, delta, feedback, layer.stride, layer.padding)


def _windows(shape: torch.Size, side: int) -> list[tuple[tuple[int, int, int, int], list[tuple[int, int, int, int]]]]:
    samples, channels, height, width = shape
    return [
        ((n, c, i, j), [(n, c, i * side + p, j * side + q) for p in range(side) for q in range(side)])
        for n in range(samples)
        for c in range(channels)
        for i in range(height // side)
        for j in range(width // side)
    ]


def _winner(h: Tensor, window: list[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    """Return where the largest entry stands, the first one on ties."""
    best = window[0]
    for place in window[1:]:
        if h[place].item() > h[best].item():
            best = place
    return best


def max_pool(h: Tensor, side: int) -> Tensor:
    samples, channels, height, width = h.shape
    pooled = torch.zeros(samples, channels, height // side, width // side, dtype=torch.float64)
    for place, window in _windows(h.shape, side):
        pooled[place] = h[_winner(h, window)]
    return pooled


def max_pool_backward(h: Tensor, delta: Tensor, side: int) -> Tensor:
    """Hand every error to the entry that won."""
    gradient = torch.zeros_like(h)
    for place, window in _windows(h.shape, side):
        gradient[_winner(h, window)] += delta[place]
    return gradient


def forward(layers: Sequence[Layer], x: Tensor) -> list[Trace]:
    """Run the network; a map meets a linear layer flattened, channels first."""
    traces = []
    for layer in layers:
        if layer.weight.dim() == 2:
            x = x.reshape(x.shape[0], -1)
            before = linear(x, layer.weight, layer.bias)
        else:
            before = conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)
        activation = layer.activation.value(before)
        output = max_pool(activation, layer.pool) if layer.pool > 1 else activation
        traces.append(Trace(x, before, activation, output))
        x = output
    return traces


def fa_gradients(
    layers: Sequence[Layer], feedback: Sequence[Tensor], x: Tensor, y: Tensor
) -> tuple[Tensor, LayerGradients]:
    """(loss, gradients): the chain rule with feedback[l], of the shape of layer l's weight, where W_l would carry back.

    feedback[0] plays no part. With the weights themselves as feedback this is backpropagation.
    """
    traces = forward(layers, x)
    logits = traces[-1].output
    error = cross_entropy_gradient(logits, y)
    gradients: LayerGradients = []
    for i in reversed(range(len(layers))):
        error = error.reshape(traces[i].output.shape)
        if layers[i].pool > 1:
            error = max_pool_backward(traces[i].activation, error, layers[i].pool)
        delta = error * layers[i].activation.slope(traces[i].before)
        step = layer_backward(layers[i], traces[i], delta, feedback[i])
        gradients.insert(0, (step.weight, step.bias))
        error = step.input
    return cross_entropy(logits, y), gradients


def signal_of(logits: Tensor, y: Tensor, signal: Signal) -> Tensor:
    """What is sent to the hidden layers, (N, Z): e, sign(e) / N (or less its mean over classes), or onehot / N."""
    samples, classes = logits.shape
    if signal == "dfa":
        return cross_entropy_gradient(logits, y)
    if signal == "drtp":
        return onehot(y, classes) / samples
    signs = torch.sign(cross_entropy_gradient(logits, y)) / samples
    if signal == "sdfa-centred":
        for n in range(samples):
            mean = sum(float(signs[n, z]) for z in range(classes)) / classes
            signs[n] = torch.stack([signs[n, z] - mean for z in range(classes)])
    return signs


def direct_error(signal: Tensor, matrix: Tensor) -> Tensor:
    """delta[n] = sum_z signal[n, z] B[z], of shape (N, *B.shape[1:])."""
    samples, classes = signal.shape
    rows = []
    for n in range(samples):
        row = torch.zeros(matrix.shape[1:], dtype=torch.float64)
        for z in range(classes):
            row = row + signal[n, z] * matrix[z]
        rows.append(row)
    return torch.stack(rows)


def direct_gradients(
    layers: Sequence[Layer], matrices: Sequence[Tensor], x: Tensor, y: Tensor, signal: Signal
) -> tuple[Tensor, LayerGradients]:
    """(loss, gradients) of DFA, sDFA or DRTP.

    matrices[l] (Z, *shape of hidden layer l's activation) brings the error to the activation, before pooling, so that
    only the activation's own derivative is applied.
    """
    traces = forward(layers, x)
    logits = traces[-1].output
    sent = signal_of(logits, y, signal)
    gradients: LayerGradients = []
    for i in range(len(layers)):
        error = cross_entropy_gradient(logits, y) if i == len(layers) - 1 else direct_error(sent, matrices[i])
        delta = error * layers[i].activation.slope(traces[i].before)
        step = layer_backward(layers[i], traces[i], delta, layers[i].weight)
        gradients.append((step.weight, step.bias))
    return cross_entropy(logits, y), gradients


def direct_step(
    blocks: list[Block], params: Groups, matrices: Sequence[Tensor], x: Tensor, y: Tensor, lr: float, signal: Signal
) -> Step:
    """Train blocks of any inside by DFA, sDFA or DRTP: block l's output gets the error signal B_l.

    The error goes back through the block by its true derivative and ends at the block's input. A block's output
    is its activation here; pooling belongs to the block after.
    """
    h, outputs, leaves = x, [], []
    for i in range(len(blocks)):
        leaves.append([theta.detach().clone().requires_grad_() for theta in params[i]])
        outputs.append(blocks[i](h.detach(), leaves[i]))
        h = outputs[-1]
    loss = cross_entropy(h, y)
    sent = signal_of(h.detach(), y, signal)
    losses: list[Tensor | None] = [None] * (len(blocks) - 1)
    gradients, updated = [], []
    for i in range(len(blocks)):
        last = i == len(blocks) - 1
        objective = loss if last else (outputs[i] * direct_error(sent, matrices[i])).sum()
        gradients.append(list(torch.autograd.grad(objective, leaves[i])) if leaves[i] else [])
        updated.append([(t - lr * g).detach() for t, g in zip(leaves[i], gradients[i], strict=True)])
    return Step([*losses, loss.detach()], gradients, updated, None)


# Sign-symmetric feedback: what stands for the weight in `fa_gradients`


def initial_std(weight: Tensor, init: Literal["xavier", "kaiming"]) -> float:
    """Standard deviation of the initialisation: sqrt(2 / (fan_in + fan_out)), or 1 / sqrt(3 fan_in)."""
    window = math.prod(weight.shape[2:])
    fan_out, fan_in = weight.shape[0] * window, weight.shape[1] * window
    return math.sqrt(2 / (fan_in + fan_out)) if init == "xavier" else 1 / math.sqrt(3 * fan_in)


def usf_feedback(weight: Tensor, std: float) -> Tensor:
    """Entries s sign(W)."""
    return sign_feedback(weight, torch.full_like(weight, std))


def sign_feedback(weight: Tensor, magnitude: Tensor) -> Tensor:
    """Entries |M| sign(W): brSF with a new M for every batch, frSF with one M for ever."""
    flat_weight, flat_magnitude = weight.reshape(-1), magnitude.reshape(-1)
    entries = []
    for i in range(flat_weight.shape[0]):
        sign = (flat_weight[i] > 0).double() - (flat_weight[i] < 0).double()
        entries.append(flat_magnitude[i].abs() * sign)
    return torch.stack(entries).reshape(weight.shape)


def alignment_angle(weight: Tensor, feedback: Tensor) -> float:
    """Angle between the flattened W and B, in radians."""
    w, b = weight.reshape(-1).tolist(), feedback.reshape(-1).tolist()
    product = sum(w[i] * b[i] for i in range(len(w)))
    norms = math.sqrt(sum(value**2 for value in w)) * math.sqrt(sum(value**2 for value in b))
    return math.acos(max(-1.0, min(1.0, product / norms)))
