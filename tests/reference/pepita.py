"""PEPITA (Dellaferrera and Kreiman, ICML 2022): the error is carried by a second forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dictionary import cross_entropy, cross_entropy_gradient
from .feedback import Layer, LayerGradients, forward, layer_backward


def pepita_gradients(
    layers: Sequence[Layer], projection: Tensor, x: Tensor, y: Tensor
) -> tuple[Tensor, LayerGradients]:
    """(loss of the first pass, gradients) from a second pass on x + F e, with F (entries of x, Z).

    e_n = softmax_n - onehot_n, not divided by N. Averaged over the batch: dW_l = (h_l - h_l^err) (h_{l-1}^err)^T and,
    at the last layer, dW_L = e (h_{L-1}^err)^T; h_l is the activation. A bias gets the average of the left factor. A
    convolution sums the product over its positions.
    """
    first = forward(layers, x)
    logits = first[-1].output
    samples, classes = logits.shape
    error = cross_entropy_gradient(logits, y) * samples
    modulation = torch.zeros(samples, projection.shape[0], dtype=torch.float64)
    for n in range(samples):
        for d in range(projection.shape[0]):
            for z in range(classes):
                modulation[n, d] += projection[d, z] * error[n, z]
    second = forward(layers, x + modulation.reshape(x.shape))
    gradients: LayerGradients = []
    for i in range(len(layers)):
        difference = error if i == len(layers) - 1 else first[i].activation - second[i].activation
        step = layer_backward(layers[i], second[i], difference / samples, layers[i].weight)
        gradients.append((step.weight, step.bias))
    return cross_entropy(logits, y), gradients
