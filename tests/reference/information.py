"""InfoPro (Wang et al., ICLR 2021) and its per-layer forms: supervised contrast through a head, and reconstruction.

A module's loss is l1 R(x | h) + l2 T(h, y), with R a decoder's reconstruction error and T either the supervised
contrastive loss of a head's 128 outputs ("contrast") or the cross-entropy of its Z outputs ("softmax").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .contrast import supervised_contrastive_loss
from .dictionary import cross_entropy
from .layers import ConvLayer, LinearLayer, adaptive_average_pool, apply_convs, apply_linears, bilinear
from .prediction import pred_logits
from .similarity import binary_cross_entropy_with_logits

Lambda = tuple[float, float]
"""(weight of the reconstruction, weight of the task term)."""


class Decoder(NamedTuple):
    """A 3x3 convolution C -> 12 with batch normalisation and ReLU, and one 12 -> image channels."""

    weight1: Tensor
    bias1: Tensor | None
    gamma: Tensor
    beta: Tensor
    weight2: Tensor
    bias2: Tensor | None


def contrast_loss(
    h: Tensor, y: Tensor, weight: Tensor, bias: Tensor, *, budget: int, temperature: float = 0.07
) -> Tensor:
    """LL-cont: supervised contrast of a linear layer's outputs on the features pooled to the budget."""
    return supervised_contrastive_loss(pred_logits(h, weight, bias, budget), y, temperature)


def head(h: Tensor, convs: Sequence[ConvLayer], linears: Sequence[LinearLayer]) -> Tensor:
    """A head "McNf": M convolutions, the average over space, N linear layers; a flat h meets the linear layers alone.

    1c2f is one 3x3 convolution of padding 1 with batch normalisation and ReLU, then Linear, ReLU, Linear.
    """
    if h.dim() == 4:
        h = adaptive_average_pool(apply_convs(h, convs), 1, 1).reshape(h.shape[0], -1)
    return apply_linears(h, linears)


def reconstruct(h: Tensor, decoder: Decoder, height: int, width: int) -> Tensor:
    """Logits of the image: bilinear upsampling with aligned corners comes first."""
    upsampled = bilinear(h, height, width)
    first = ConvLayer(decoder.weight1, decoder.bias1, decoder.gamma, decoder.beta)
    second = ConvLayer(decoder.weight2, decoder.bias2, relu=False)
    return apply_convs(upsampled, [first, second])


def reconstruction_loss(h: Tensor, image: Tensor, decoder: Decoder) -> Tensor:
    """Binary cross-entropy of the sigmoid against the raw image in [0, 1], averaged over all N C H W entries."""
    return binary_cross_entropy_with_logits(reconstruct(h, decoder, *image.shape[2:]), image)


def softmax_task(outputs: Tensor, y: Tensor) -> Tensor:
    """T of InfoPro softmax."""
    return cross_entropy(outputs, y)


def contrast_task(outputs: Tensor, y: Tensor, temperature: float = 0.07) -> Tensor:
    """T of InfoPro contrast; the outputs are L2-normalised in it."""
    return supervised_contrastive_loss(outputs, y, temperature)


def infopro_loss(reconstruction: Tensor, task: Tensor, weights: Lambda) -> Tensor:
    """l1 R + l2 T."""
    return weights[0] * reconstruction + weights[1] * task


def contrec_loss(
    h: Tensor,
    y: Tensor,
    image: Tensor,
    weight: Tensor,
    bias: Tensor,
    decoder: Decoder | None,
    *,
    budget: int,
    weights: Lambda = (1.0, 1.0),
    temperature: float = 0.07,
) -> Tensor:
    """LL-contrec: l1 R + l2 LL-cont; a flat layer has no decoder and keeps l2 LL-cont."""
    task = contrast_loss(h, y, weight, bias, budget=budget, temperature=temperature)
    if decoder is None:
        return weights[1] * task
    return infopro_loss(reconstruction_loss(h, image, decoder), task, weights)


def lambda_schedule(first: Lambda, last: Lambda, modules: int) -> list[Lambda]:
    """Weights of the modules 1 .. K - 1, in a line from `first` at module 1 to `last` at module K - 1.

    Module K has the plain cross-entropy and no entry. With K = 2 there is one entry: `first`.
    """
    schedule = []
    for module in range(1, modules):
        progress = (module - 1) / (modules - 2) if modules > 2 else 0.0
        schedule.append(
            (first[0] + progress * (last[0] - first[0]), first[1] + progress * (last[1] - first[1])),
        )
    return schedule
