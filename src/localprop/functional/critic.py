"""Local critics: a loss that learns to be the loss of the next exit."""

from __future__ import annotations

from torch import Tensor


def loss_gap(own: Tensor, following: Tensor) -> Tensor:
    """Compare the losses of two exits sample by sample: (1/N) sum_n |own_n - sg[following_n]|.

    Args:
        own: Losses of the exit that learns. Shape (N,).
        following: Losses of the next exit. Shape (N,).

    References: Lee et al., "Local Critic Training for Model-Parallel Learning of Deep Neural Networks", 2018,
        arXiv:1805.01128.
    """
    return (own - following.detach()).abs().mean()
