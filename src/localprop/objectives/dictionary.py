"""Dictionary contrastive learning: compare averaged block features with label embeddings."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from localprop.errors import check_positive
from localprop.functional.dictionary import (
    Reduction,
    Similarity,
    combine_embeddings,
    dictionary_scores,
    orthogonal_embeddings,
    pool_embeddings,
)
from localprop.functional.precision import full_precision
from localprop.objectives.base import Objective, prediction_loss
from localprop.types import BlockSpec, LocalBatch, LocalLoss

Initialisation = Literal["normal", "orthogonal"]
Projection = Literal["pool", "label", "feature"]


class LabelDictionary(nn.Module):
    """Hold the label embeddings T, shape (Z M, C_D); row z M + m is embedding m of class z.

    Args:
        num_classes: Z.
        width: C_D, the length of an embedding.
        embeddings_per_class: M.
        initialisation: "normal", every entry N(0, 1); or "orthogonal", rows orthogonal to each other.
        embedding_norm: Length of an orthogonal row. Default sqrt(C_D), the length of a normal row.
        adaptive: Whether T is trained. A static T is a buffer: no gradient and no weight decay can reach it.

    Raises:
        ValueError: A setting out of its range.

    Note: The published code scales orthogonal rows to 4.81 (C_D = 512) and 4.06 (256) in convolutional nets and to
        sqrt(C_D) in fully connected ones; pass `embedding_norm` to use its numbers.

    References: Choi et al., "Dictionary Contrastive Learning for Efficient Local Supervision without Auxiliary
        Networks", ICLR 2024.
    """

    embeddings: Tensor

    def __init__(
        self,
        num_classes: int,
        width: int,
        *,
        embeddings_per_class: int = 1,
        initialisation: Initialisation = "normal",
        embedding_norm: float | None = None,
        adaptive: bool = True,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"dictionary_width: must be at least 1, got {width}")
        if embeddings_per_class < 1:
            raise ValueError(f"embeddings_per_class: must be at least 1, got {embeddings_per_class}")
        if initialisation not in ("normal", "orthogonal"):
            raise ValueError(f"initialisation: must be 'normal' or 'orthogonal', got {initialisation!r}")
        if embedding_norm is not None and (initialisation == "normal" or not 0 < embedding_norm < math.inf):
            raise ValueError(
                f"embedding_norm: must be positive and goes with initialisation='orthogonal', got {embedding_norm} "
                f"with {initialisation!r}"
            )
        self.embeddings_per_class = embeddings_per_class
        num_embeddings = num_classes * embeddings_per_class
        if initialisation == "normal":
            values = torch.randn(num_embeddings, width)
        else:
            values = orthogonal_embeddings(num_embeddings, width, embedding_norm or math.sqrt(width))
        if adaptive:
            self.embeddings = nn.Parameter(values)
        else:
            self.register_buffer("embeddings", values)

    @property
    def width(self) -> int:
        """C_D, the length of an embedding."""
        return self.embeddings.shape[1]


class DictionaryContrast(Objective):
    """Train a block by the dictionary contrastive loss.

    With averaged features hbar_n (over positions, or over the K chunks of a flat output) and embeddings t_{l,z} fitted
    to the block's width:
        L = -(1/N) sum_n log [ exp(<hbar_n, t_{l,y_n}> / tau) / sum_z exp(<hbar_n, t_{l,z}> / tau) ].

    Args:
        spec: The block.
        dictionary: The label embeddings, possibly shared with other blocks.
        learns_dictionary: Whether this block's loss also trains the dictionary; otherwise the block sees sg[T].
        similarity: "dot" (published), or "cosine".
        temperature: tau > 0.
        reduction: How a class's M embeddings make one logit: "logsumexp" or "max".
        projection: How T fits the block's width C_l: "pool", average pooling (published); "label", a learned map
            f_P: R^{C_D} -> R^{C_l} of the embeddings; "feature", a learned map R^{C_l} -> R^{C_D} of the features.

    Shape: h (N, C, H, W), (N, K, C) or (N, H).

    Cost: Z M C_D parameters for the whole network when the dictionary is shared and adaptive; C_D C_l more a block
        for a learned projection. No memory beyond the features.

    Raises:
        ValueError: A setting out of its range.

    Note: The paper's projections are not published in detail; here they are bias-free linear maps. A projection of the
        features is applied after averaging, which by linearity is the same and K times cheaper.

    References: Choi et al., "Dictionary Contrastive Learning for Efficient Local Supervision without Auxiliary
        Networks", ICLR 2024.
    """

    def __init__(
        self,
        spec: BlockSpec,
        dictionary: LabelDictionary,
        *,
        learns_dictionary: bool = True,
        similarity: Similarity = "dot",
        temperature: float = 1.0,
        reduction: Reduction = "logsumexp",
        projection: Projection = "pool",
    ) -> None:
        super().__init__(spec)
        check_positive("temperature", temperature)
        if similarity not in ("dot", "cosine"):
            raise ValueError(f"similarity: must be 'dot' or 'cosine', got {similarity!r}")
        if reduction not in ("logsumexp", "max"):
            raise ValueError(f"reduction: must be 'logsumexp' or 'max', got {reduction!r}")
        if projection not in ("pool", "label", "feature"):
            raise ValueError(f"projection: must be 'pool', 'label' or 'feature', got {projection!r}")
        self.dictionary = dictionary
        self.learns_dictionary = learns_dictionary
        self.similarity: Similarity = similarity
        self.temperature = temperature
        self.reduction: Reduction = reduction
        self.label_projection = (
            nn.Linear(dictionary.width, spec.channels, bias=False) if projection == "label" else None
        )
        self.feature_projection = (
            nn.Linear(spec.channels, dictionary.width, bias=False) if projection == "feature" else None
        )

    def updated_parameters(self) -> list[nn.Parameter]:
        """Return the projection's parameters and, if this block trains it, the dictionary."""
        fixed = set() if self.learns_dictionary else set(self.dictionary.parameters())
        return [parameter for parameter in super().updated_parameters() if parameter not in fixed]

    def block_embeddings(self) -> Tensor:
        """Return the embeddings t_l that this block's features are compared with, shape (Z M, C_l or C_D)."""
        embeddings = self.dictionary.embeddings
        if not self.learns_dictionary:
            embeddings = embeddings.detach()
        if self.feature_projection is not None:
            return embeddings
        if self.label_projection is not None:
            projected: Tensor = self.label_projection(embeddings)
            return projected
        return pool_embeddings(embeddings, self.spec.channels)

    def logits(self, h: Tensor) -> Tensor:
        """Return the similarity of each sample with each class, shape (N, Z)."""
        features = self.averaged_features(h)
        # Z C products a sample: not worth half precision, whose scores of size sqrt(C) would lose digits.
        with full_precision(h):
            if self.feature_projection is not None:
                features = self.feature_projection(features)
            scores = dictionary_scores(features, self.block_embeddings(), self.similarity, self.temperature)
            return combine_embeddings(scores, self.dictionary.embeddings_per_class, self.reduction)

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the block output `h`; logs the bound log Z - L on the information I(hbar; y)."""
        return prediction_loss(self.logits(h), batch.target)
