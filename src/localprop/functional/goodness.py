"""Goodness: how active a block is, and what is learned from it with forward passes alone."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from localprop.functional.dictionary import pool_embeddings
from localprop.functional.pooling import average_positions
from localprop.functional.precision import at_least_single

Reduction = Literal["sum", "mean"]
Border = Literal["rms", "l2"]


def goodness(h: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Reduce each sample's squared activities to one number: G_n = sum_j h_{n,j}^2, or the mean over j.

    Half precision is squared and added up in float32.

    Args:
        h: Block output. Shape (N, ...).
        reduction: "sum" or "mean".

    Shape: (N,).

    References: Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", 2022, arXiv:2212.13345.
    """
    squares = at_least_single(h).square()
    dims = tuple(range(1, h.dim()))
    return squares.sum(dims) if reduction == "sum" else squares.mean(dims)


def group_goodness(h: Tensor, num_groups: int, channel_axis: int = 1) -> Tensor:
    """Give each class a group of channels: G_{n,z} = mean of h_{n,c,k}^2 over the channels c of group z and all k.

    Group z holds the channels floor(z C / Z) .. ceil((z + 1) C / Z) - 1: C / Z each where Z divides C; otherwise
    neighbouring groups share a channel.

    Args:
        h: Block output. Shape (N, C, ...) with `channel_axis` 1, (N, K, C) with -1, or (N, H): then C = H.
        num_groups: Z; at most C.
        channel_axis: Axis of the channels.

    Shape: (N, Z), in at least float32.

    References: Papachristodoulou et al., "Convolutional Channel-Wise Competitive Learning for the Forward-Forward
        Algorithm", AAAI 2024, arXiv:2312.12668.
    """
    squares = average_positions(at_least_single(h).square(), channel_axis)
    return pool_embeddings(squares, num_groups)


def threshold_loss(positive: Tensor, negative: Tensor, threshold: float) -> Tensor:
    """Raise positives above a threshold and push negatives below it.

    L = (1/N) sum_n [ softplus(theta - G+_n) + softplus(G-_n - theta) ]: with p = sigmoid(G - theta), the cross-entropy
    of positives with 1 and of negatives with 0.

    Args:
        positive: Goodness of samples with their true label. Shape (N,).
        negative: Goodness of samples with a wrong label. Shape (N,).
        threshold: theta.

    References: Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", 2022, arXiv:2212.13345.
    """
    return -(F.logsigmoid(positive - threshold) + F.logsigmoid(threshold - negative)).mean()


def symmetric_loss(positive: Tensor, negative: Tensor, sharpness: float) -> Tensor:
    """Widen the gap between positives and negatives: L = (1/N) sum_n softplus(-alpha (G+_n - G-_n)).

    Args:
        positive: Goodness of samples with their true label. Shape (N,).
        negative: Goodness of the same samples with a wrong label. Shape (N,).
        sharpness: alpha > 0.

    References: Lee and Song, "SymBa: Symmetric Backpropagation-Free Contrastive Learning with Forward-Forward
        Algorithm for Optimizing Convergence", 2023, arXiv:2303.08418.
    """
    return -F.logsigmoid(sharpness * (positive - negative)).mean()


def normalise_activity(h: Tensor, border: Border = "rms") -> Tensor:
    """Leave of each sample's activity its direction alone: h / sqrt(mean_j h_j^2), or h / sqrt(sum_j h_j^2).

    A sample of zeros stays what it is.

    Args:
        h: Block output. Shape (N, ...).
        border: "rms": the result has root mean square 1; "l2": it has length 1.

    Shape: that of `h`.
    """
    size = goodness(h, "mean" if border == "rms" else "sum").sqrt().clamp(min=1e-8)
    return h / size.to(h.dtype).view(-1, *[1] * (h.dim() - 1))


def wrong_labels(target: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """Draw for each sample one of the Z - 1 wrong classes, all equally likely.

    Args:
        target: Class indices. Shape (N,).
        num_classes: Z >= 2.
        generator: Source of randomness, on the CPU.

    Shape: (N,), int64; never equal to `target`.
    """
    shift = torch.randint(1, num_classes, target.shape, generator=generator)
    return (target + shift.to(target.device, non_blocking=True)) % num_classes


def likely_wrong_labels(logits: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
    """Draw for each sample a wrong class as likely as a prediction has it: P(z) = p_z / (1 - p_y), p = softmax(logits).

    Args:
        logits: A prediction. Shape (N, Z).
        target: Class indices. Shape (N,).
        generator: Source of randomness, on the CPU.

    Shape: (N,), int64; never equal to `target`.
    """
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64).clamp(min=1e-300)
    gumbel = -(-uniform.log()).log()  # the largest of logits + Gumbel noise is a draw from their softmax
    scores = logits.double() + gumbel.to(logits.device, non_blocking=True)
    return scores.scatter(1, target[:, None], -torch.inf).argmax(1)
