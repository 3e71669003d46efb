"""Target propagation: targets for hidden blocks, and losses of the feedback that makes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from localprop.functional.distance import squared_error


def logit_gradient(logits: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of each sample's own cross-entropy: softmax(h) - onehot(y).

    Args:
        logits: Shape (N, Z).
        y: Class indices. Shape (N,).

    Shape: (N, Z), detached.
    """
    logits = logits.detach()
    return logits.softmax(1) - F.one_hot(y, logits.shape[1])


def difference_target(h: Tensor, fed_target: Tensor, fed_output: Tensor) -> Tensor:
    """Return t = h + g(t_above) - g(h_above): the error that the feedback g makes at h_above is taken off.

    If g is the exact inverse, g(h_above) = h and the target is g(t_above).

    Args:
        h: The block's output. Shape (N, ...).
        fed_target: g(t_above), of the same shape.
        fed_output: g(h_above), of the same shape.

    References: Lee et al., "Difference Target Propagation", 2015, arXiv:1412.7525.
    """
    return h + (fed_target - fed_output)


def target_loss(h: Tensor, target: Tensor) -> Tensor:
    """Return 1/2 ||h_n - sg[t_n]||^2, averaged over the batch.

    Args:
        h: The block's output. Shape (N, ...).
        target: Its target, of the same shape.
    """
    return squared_error(h, target.detach()) / 2


def jacobian_loss(fed_noisy: Tensor, fed: Tensor, fed_disturbed: Tensor, noise: Tensor) -> Tensor:
    """Return the loss whose minimum is a feedback with the transposed Jacobian of the forward pass.

    (1/N) sum_n -2 e_n . (g(f(h + e)) - g(f(h)))_n + ||(g(f(h) + d) - g(f(h)))_n||^2, with e, d ~ N(0, sigma^2).
    In expectation over small noise: sigma^2 (||J_g||^2 - 2 tr(J_g J_f)), so J_g -> J_f^T.

    Args:
        fed_noisy: g(f(h + e)). Shape (N, ...).
        fed: g(f(h)).
        fed_disturbed: g(f(h) + d).
        noise: e.

    References: Ernoult et al., "Towards Scaling Difference Target Propagation by Learning Backprop Targets", ICML
        2022, arXiv:2201.13415.
    """
    dtype = torch.promote_types(fed.dtype, torch.float32)
    agreement = (noise * (fed_noisy - fed).to(dtype)).flatten(1).sum(1).mean()
    return squared_error(fed_disturbed, fed) - 2 * agreement
