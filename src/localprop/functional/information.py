"""What a block's output still tells of its image.

References:
    Wang et al., "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training", ICLR 2021,
    arXiv:2101.10832.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def reconstruction_loss(logits: Tensor, image: Tensor) -> Tensor:
    """Return the binary cross-entropy of reconstructed pixels, averaged over all of them.

    L = -mean [ x log s + (1 - x) log(1 - s) ] with s = sigmoid(logits). Its least value is the pixels' own entropy.

    Args:
        logits: Shape (N, ...).
        image: Pixels x in [0, 1]. Same shape.
    """
    return F.binary_cross_entropy_with_logits(logits.to(image.dtype), image)


def linear_schedule(first: float, last: float, length: int) -> list[float]:
    """Return `length` numbers in equal steps from `first` to `last`; `first` alone where there is one."""
    step = (last - first) / max(length - 1, 1)
    return [first + step * index for index in range(length)]
