"""Kernels on image patches: whitening, and the nearest entries of a dictionary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def whitening(covariance: Tensor, ridge: float) -> Tensor:
    """Return (lambda I + Sigma)^(-1/2).

    Args:
        covariance: Sigma, symmetric. Shape (P, P).
        ridge: lambda, positive.

    Shape: (P, P), symmetric.

    Note: Not 1 / (sqrt(eigenvalue) + lambda), which some code has: it blows up directions that vary little.

    References: Thiry et al., "The Unreasonable Effectiveness of Patches in Deep Convolutional Kernels Methods",
        ICLR 2021, arXiv:2101.07528.
    """
    values, vectors = torch.linalg.eigh(covariance)
    whitener: Tensor = (vectors / (values.clamp(min=0) + ridge).sqrt()) @ vectors.T
    return whitener


def patch_filters(dictionary: Tensor, mean: Tensor, whitener: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what turns distances to a whitened dictionary into a convolution.

    With centred x' = x - mu, d' = d - mu, and W the whitener: ||W x' - W d'||^2 / 2 = const(x) - <x, f> + <mu, f> + n,
    f = W^T W d' and n = ||W d'||^2 / 2. (Without the factor 1/2 the nearest entries are others, unless all are of one
    length.)

    Args:
        dictionary: d, flattened patches. Shape (D, P).
        mean: mu. Shape (P,).
        whitener: W. Shape (P, P).

    Returns:
        The filters f (D, P), the offsets <mu, f> (D,) and the half squared lengths n (D,).
    """
    whitened = (dictionary - mean) @ whitener.T
    filters = whitened @ whitener
    return filters, filters @ mean, (whitened**2).sum(1) / 2


def nearest_patches(x: Tensor, filters: Tensor, offsets: Tensor, half_norms: Tensor, neighbours: int) -> Tensor:
    """Mark, for every window of an image, the nearest entries of the dictionary, and of the negated dictionary.

    Entry d is marked if its distance is strictly below the (Q + 1)-th smallest over the dictionary.

    Args:
        x: Images or maps. Shape (N, C, H, W).
        filters: Shape (D, C, p, p).
        offsets: Shape (D,).
        half_norms: Shape (D,).
        neighbours: Q, 1 .. D - 1.

    Shape: (N, 2 D, H - p + 1, W - p + 1), zeros and ones; first the dictionary, then the negated one.
    """
    products = F.conv2d(x, filters, -offsets)
    lengths = half_norms[:, None, None]
    marks = []
    for sign in (1, -1):
        closeness = sign * products - lengths
        border = closeness.topk(neighbours + 1, dim=1, sorted=False).values.amin(1, keepdim=True)
        mark = (closeness > border).to(x.dtype)
        marks.append(mark.masked_fill_(closeness.isnan(), torch.nan))  # what is not a number stays so
    return torch.cat(marks, 1)
