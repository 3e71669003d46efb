"""Dictionary contrastive learning: block features compared with label embeddings.

References:
    Choi et al., "Dictionary Contrastive Learning for Efficient Local Supervision without Auxiliary Networks",
    ICLR 2024.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Similarity = Literal["dot", "cosine"]
Reduction = Literal["logsumexp", "max"]


def pool_embeddings(embeddings: Tensor, width: int) -> Tensor:
    """Average-pool label embeddings along their own axis to a block's width: t_l = pool_l(t).

    Output i is the mean of inputs floor(i C_D / C_l) .. ceil((i + 1) C_D / C_l) - 1.

    Args:
        embeddings: Label embeddings. Shape (Z, C_D).
        width: C_l, at least 1; a width above C_D repeats entries, as adaptive pooling does.

    Shape: (Z, C_l).
    """
    if embeddings.shape[1] == width:
        return embeddings
    return F.adaptive_avg_pool1d(embeddings[None], width)[0]


def dictionary_scores(features: Tensor, embeddings: Tensor, similarity: Similarity, temperature: float) -> Tensor:
    """Score averaged features against label embeddings: <hbar_n, t_z> / temperature.

    By linearity <hbar, t> = (1/K) sum_k <h_k, t>, so averaging first costs K times less and is the same number.
    With "cosine" both sides are scaled to unit length before.

    Args:
        features: Averaged block features. Shape (N, C).
        embeddings: Label embeddings of the block's width. Shape (Z M, C).
        similarity: "dot" or "cosine".
        temperature: Positive divisor of the scores.

    Shape: (N, Z M).
    """
    if similarity == "cosine":
        features, embeddings = F.normalize(features, dim=1), F.normalize(embeddings, dim=1)
    scores = features @ embeddings.T
    return scores if temperature == 1.0 else scores / temperature


def combine_embeddings(scores: Tensor, embeddings_per_class: int, reduction: Reduction) -> Tensor:
    """Reduce the scores of a class's M embeddings to one logit, by their maximum or log-sum-exp.

    Args:
        scores: Row z M + m of the dictionary is embedding m of class z. Shape (N, Z M).
        embeddings_per_class: M, at least 1.
        reduction: "logsumexp" or "max".

    Shape: (N, Z).
    """
    if embeddings_per_class == 1:
        return scores
    by_class = scores.reshape(len(scores), -1, embeddings_per_class)
    return by_class.logsumexp(2) if reduction == "logsumexp" else by_class.amax(2)


def information_bound(loss: Tensor, num_classes: int) -> Tensor:
    """Lower bound on the information between features and label, in nats: I(hbar; y) >= log Z - L.

    It holds in expectation over data that the features were not fitted to, with balanced classes; on training data it
    is optimistic. A negative value says nothing.
    """
    return math.log(num_classes) - loss.detach()


def orthogonal_embeddings(num_embeddings: int, width: int, norm: float) -> Tensor:
    """Draw embeddings that are orthogonal to each other, each of length `norm`.

    Shape: (num_embeddings, width).

    Raises:
        ValueError: More embeddings than dimensions.
    """
    if num_embeddings > width:
        raise ValueError(
            f"initialisation: {num_embeddings} embeddings cannot be orthogonal in {width} dimensions; "
            "use 'normal', or a larger dictionary_width"
        )
    return norm * torch.nn.init.orthogonal_(torch.empty(num_embeddings, width))


def effective_rank(embeddings: Tensor) -> float:
    """Return how many directions embeddings take up: exp(-sum_k p_k log p_k), p_k = s_k / sum_j s_j.

    Args:
        embeddings: T, with the singular values s. Shape (Z, C).

    Returns:
        At least 1, at most min(Z, C); 0 if T is zero.

    References: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    singular = torch.linalg.svdvals(embeddings.detach().double())
    total = singular.sum()
    return math.exp(float(torch.special.entr(singular / total).sum())) if total > 0 else 0.0
