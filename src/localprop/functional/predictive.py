"""Predictive Forward-Forward: the rectifier that lets gradients through, and competition within groups of units."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def straight_through_relu(a: Tensor) -> Tensor:
    """Return max(a, 0) with the derivative 1 everywhere, so that a silent unit can learn to speak.

    Args:
        a: Any shape.

    Shape: that of `a`.
    """
    return a + (a.relu() - a).detach()


def lateral_inhibition(z: Tensor, weight: Tensor, channel_axis: int = 1) -> Tensor:
    """Let contiguous groups of g units compete: u_i = sum_{j != i} max(Lambda_ij, 0) z_j - max(Lambda_ii, 0) z_i.

    The sum runs over the group of unit i: other units inhibit it, and it excites itself. The units of a map are its
    channels, which compete at every position. If g does not divide their number, the last group is smaller.

    Args:
        z: Activities. Shape (N, D), or (N, ..., C, ...) with C on `channel_axis`.
        weight: Lambda, group by group. Shape (G, g, g) with G = ceil(C / g).
        channel_axis: Axis of the units.

    Shape: that of `z`; what is subtracted from a unit's input.

    References: Ororbia and Mali, "The Predictive Forward-Forward Algorithm", 2023, arXiv:2301.01452.
    """
    num_groups, size, _ = weight.shape
    sign = 1 - 2 * torch.eye(size, dtype=weight.dtype, device=weight.device)
    units = z.movedim(channel_axis, -1)
    channels = units.shape[-1]
    groups = F.pad(units, (0, num_groups * size - channels)).view(*units.shape[:-1], num_groups, size)
    inhibition = torch.einsum("...gj,gij->...gi", groups, weight.relu() * sign)
    return inhibition.flatten(-2)[..., :channels].movedim(-1, channel_axis)
