"""Centred kernel alignment: how alike two layers see the same samples.

References:
    Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, arXiv:1905.00414;
    Song et al., "Feature Selection via Dependence Maximization", JMLR 2012 (the unbiased estimate);
    Nguyen, Raghu and Kornblith, "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021, arXiv:2010.15327
    (its mean over batches).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from localprop.analysis.checks import check_features
from localprop.analysis.figures import matrix_figure
from localprop.analysis.subject import Finding, Subject

_FEWEST = 4


def unbiased_hsic(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741 # the field's letters
    """Estimate the Hilbert-Schmidt independence criterion of two kernel matrices without bias.

    With K~, L~ the kernels without their diagonals:
        HSIC_1 = [ tr(K~ L~) + (1'K~1)(1'L~1) / ((n-1)(n-2)) - 2 (1'K~L~1) / (n-2) ] / (n (n-3)).
    It is zero in expectation for independent samples, and may come out negative.

    Args:
        k: Kernels of pairs of samples. Shape (..., n, n), n at least 4, symmetric.
        l: The same of another layer.

    Shape: (...).

    Raises:
        ValueError: Fewer than 4 samples.
    """
    n = k.shape[-1]
    if n < _FEWEST:
        raise ValueError(f"k: the unbiased estimate needs at least {_FEWEST} samples, got {n}; give more")
    off = 1 - torch.eye(n, dtype=k.dtype, device=k.device)
    k, l = k * off, l * off  # noqa: E741
    rows_k, rows_l = k.sum(-1), l.sum(-1)
    both = (k * l).sum((-2, -1))
    product = rows_k.sum(-1) * rows_l.sum(-1) / ((n - 1) * (n - 2))
    cross = 2 * (rows_k * rows_l).sum(-1) / (n - 2)
    return (both + product - cross) / (n * (n - 3))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Compute the linear CKA of two layers on all samples at once, in its plain, biased form.

    CKA = |Y'X|_F^2 / (|X'X|_F |Y'Y|_F) with centred columns; 1 for layers that are one but for an orthogonal map and a
    factor. NaN if one of them is constant.

    Args:
        x: Features of one layer. Shape (N, P).
        y: Features of another on the same samples. Shape (N, Q).

    Raises:
        ValueError: Shapes do not fit, or numbers are not finite.

    Note: With few samples beside features it is near 1 for any two layers; `cka_matrix` is not.
    """
    _check([x], [y])
    x, y = _centred(x), _centred(y)
    # Of N x N or P x P the smaller: |Y'X|_F^2 is also the inner product of the kernels.
    if len(x) < max(x.shape[1], y.shape[1]):
        k, l = x @ x.T, y @ y.T  # noqa: E741
        cross, own_x, own_y = (k * l).sum(), k.norm(), l.norm()
    else:
        cross, own_x, own_y = (y.T @ x).square().sum(), (x.T @ x).norm(), (y.T @ y).norm()
    return float(cross / (own_x * own_y))


def cka_matrix(xs: Sequence[Tensor], ys: Sequence[Tensor], *, batch_size: int = 256) -> Tensor:
    """Compute the debiased linear CKA of every layer of one network with every layer of another, batch by batch.

    With kernels K_i = X_i X_i', L_j = Y_j Y_j' of a batch, means over batches, and HSIC_1 of `unbiased_hsic`:
        CKA_ij = mean HSIC_1(K_i, L_j) / sqrt(mean HSIC_1(K_i, K_i) mean HSIC_1(L_j, L_j)).

    It is at most about 1 for like layers, and about 0 (of either sign) for independent ones, however many features
    they have. A layer that tells no two samples apart, or no more than noise would, gives NaN.

    Args:
        xs: Features of each layer on the same samples, in random order. Shapes (N, P_i).
        ys: Features of the other network's layers on these samples; the same list for a network with itself.
        batch_size: Samples whose kernels are compared at once, at least 4; batches are made equal, so they may hold up
            to twice as many.

    Shape: (len(xs), len(ys)), float64.

    Cost: (len(xs) + len(ys)) batch_size^2 numbers, or four times as many.

    Raises:
        ValueError: Shapes do not fit, numbers are not finite, or fewer than 4 samples.

    Example:
        >>> import torch
        >>> h = torch.randn(64, 8)
        >>> round(float(cka_matrix([h], [3 * h.flip(1) - 1])), 4)
        1.0
    """
    _check(xs, ys)
    if batch_size < _FEWEST:
        raise ValueError(f"batch_size: must be at least {_FEWEST}, got {batch_size}")
    # Without their means, which change nothing but the digits that are lost.
    centred_x, centred_y = [_centred(x) for x in xs], [_centred(y) for y in ys]
    cross = torch.zeros(len(xs), len(ys), dtype=torch.float64, device=xs[0].device)
    own_x, own_y = cross.new_zeros(len(xs)), cross.new_zeros(len(ys))
    num_batches = max(1, len(xs[0]) // batch_size)
    parts_x, parts_y = ([h.tensor_split(num_batches) for h in layers] for layers in (centred_x, centred_y))
    for number in range(num_batches):
        kernels_x = _kernels([parts[number] for parts in parts_x])
        kernels_y = _kernels([parts[number] for parts in parts_y])
        own_x += unbiased_hsic(kernels_x, kernels_x)
        own_y += unbiased_hsic(kernels_y, kernels_y)
        cross += torch.stack([unbiased_hsic(kernel[None], kernels_y) for kernel in kernels_x])
    own = own_x[:, None].clamp_min(0) * own_y.clamp_min(0)
    return torch.where(own > 0, cross / own.sqrt(), math.nan)


def cka_of_run(subject: Subject) -> Finding:
    """Compare every block with every block of the other run on the averaged features of the test images, a row a block.

    Without another run the blocks are compared with each other.

    Raises:
        ValueError: The other run's blocks are no chain.
    """
    features = subject.test_features.averaged
    other = subject.against
    others = features if other is None else other.features(subject.test).averaged
    columns = subject.names if other is None else other.names
    matrix = cka_matrix(features, others).tolist()
    rows = [
        {"block": index, "name": name, **dict(zip(columns, row, strict=True))}
        for index, (name, row) in enumerate(zip(subject.names, matrix, strict=True))
    ]
    against = None if other is None else other.run.config.method.name
    return Finding(rows, {"matrix": matrix, "columns": list(columns), "against": against})


def cka_figure(finding: Finding) -> Figure:
    """Draw the matrix of all pairs of blocks."""
    names, against = [row["name"] for row in finding.rows], finding.details["against"]
    label = "CKA, linear, debiased" + (f", with {against}" if against else "")
    return matrix_figure(finding.details["matrix"], names, finding.details["columns"], label, (0, 1))


def _centred(h: Tensor) -> Tensor:
    """Take the mean of each feature away; what rounding leaves of a constant one is zero."""
    h = h.detach().double()
    centred = h - h.mean(0)
    return centred * (centred.abs().amax(0) > 1e-13 * h.abs().amax(0))


def _kernels(batch: Sequence[Tensor]) -> Tensor:
    return torch.stack([h @ h.T for h in batch])


def _check(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> None:
    if not xs or not ys:
        raise ValueError("xs, ys: need at least one layer each")
    for name, layers in (("xs", xs), ("ys", ys)):
        for number, h in enumerate(layers):
            check_features(f"{name}[{number}]", h, fewest=_FEWEST)
            if len(h) != len(xs[0]):
                raise ValueError(f"{name}[{number}]: need the same {len(xs[0])} samples for all layers, got {len(h)}")
