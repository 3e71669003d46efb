"""Hebbian learning: what a layer's input and output alone say about its weights."""

from __future__ import annotations

import torch
from torch import Tensor


def competition(u: Tensor, temperature: float, channel_axis: int) -> Tensor:
    """Share each position's activity among the units: y = softmax(u / tau), sign-flipped for all but the winner.

    Args:
        u: Weighted inputs of the units.
        temperature: tau > 0; towards 0 the winner alone is left.
        channel_axis: Axis of the units.

    Shape: that of `u`.

    References: Journe et al., "Hebbian Deep Learning Without Feedback", ICLR 2023, arXiv:2209.11883.
    """
    shares = (u / temperature).softmax(channel_axis)
    winner = torch.zeros_like(shares, dtype=torch.bool).scatter_(
        channel_axis, u.argmax(channel_axis, keepdim=True), True
    )
    return torch.where(winner, shares, -shares)


def oja_change(correlation: Tensor, strength: Tensor, weight: Tensor) -> Tensor:
    """Return Oja's change of weights, sum_n y_{n,k} (x_n - u_{n,k} w_k).

    Args:
        correlation: sum_n y_{n,k} x_n. Shape (K, ...).
        strength: sum_n y_{n,k} u_{n,k}. Shape (K,).
        weight: w_k, one row a unit. Shape (K, ...).

    Shape: that of `weight`.

    References: Oja, "A Simplified Neuron Model as a Principal Component Analyzer", Journal of Mathematical Biology,
        1982.
    """
    return correlation - strength.view(-1, *[1] * (weight.dim() - 1)) * weight
