"""Contrastive losses without labels: one positive among negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent_loss(projections: Tensor, temperature: float) -> Tensor:
    """Contrast two views of each sample with all other views of the batch.

    With a_i = projections_i / ||projections_i||, rows i and i + N being views of one sample and p(i) the other of the
    two: L = -(1/2N) sum_i log [ exp(a_i.a_p(i) / tau) / sum_{k != i} exp(a_i.a_k / tau) ].

    Args:
        projections: First all samples' first views, then their second ones. Shape (2N, P).
        temperature: tau > 0.

    Cost: 4 N^2 similarities.

    References: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
        arXiv:2002.05709.
    """
    a = F.normalize(projections, dim=1)
    logits = (a @ a.T / temperature).fill_diagonal_(-torch.inf)
    count = len(a) // 2
    partner = torch.arange(len(a), device=a.device).roll(count)
    return F.cross_entropy(logits, partner)


def row_info_nce_loss(codes: Tensor, predictors: Tensor, negatives: Tensor, skipped_rows: int) -> Tensor:
    """Predict the codes of patches from a patch above them, among codes drawn at random.

    With z_{n,i,j} the code of patch (i, j) of image n, o = k + skipped_rows, and for every k = 1 .. K and every pair of
    patches o rows apart:
        s_+ = <z_{n,i+o,j}, W_k z_{n,i,j}>, s_m = <z_m, W_k z_{n,i,j}> for M random codes m,
        L_k = -mean log [ exp s_+ / (exp s_+ + sum_m exp s_m) ];   L = (1/K) sum_k L_k.

    Args:
        codes: z. Shape (N, R, S, C).
        predictors: W_1 .. W_K. Shape (K, C, C), K + skipped_rows < R.
        negatives: For every k and patch (n, i, j), the places of M codes among all N R S of the batch, int64. Entries
            of patches whose partner would lie below the grid are not used. Shape (K, N, R, S, M).
        skipped_rows: Rows between a patch and the first predicted one, which overlap it.

    Note: Negatives are drawn from all positions of the batch and may hit the positive, as in the original code.

    References: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018,
        arXiv:1807.03748; Lowe et al., "Putting An End to End-to-End", NeurIPS 2019, arXiv:1905.11786.
    """
    rows = codes.shape[1]
    every = codes.flatten(0, 2)
    losses = []
    for number, predictor in enumerate(predictors):
        offset = number + 1 + skipped_rows
        context = codes[:, : rows - offset] @ predictor.T
        positive = (codes[:, offset:] * context).sum(-1, keepdim=True)
        drawn = every[negatives[number, :, : rows - offset]]
        scores = torch.cat([positive, torch.einsum("nijmc,nijc->nijm", drawn, context)], -1).flatten(0, 2)
        losses.append(F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device)))
    return torch.stack(losses).mean()
