"""The local similarity matching loss: samples of one class should look alike to a block."""

from __future__ import annotations

from torch import Tensor, nn

from localprop.functional.precision import full_precision
from localprop.functional.similarity import label_similarity, similarity_features, similarity_loss
from localprop.objectives.base import Objective, Scored
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class SimilarityMatching(Objective):
    """Train a block so that its samples are as similar to each other as their labels are.

    L = (1/N^2) sum_ij (S_ij(std(g(h))) - S_ij(onehot(y)))^2, with the adjusted cosine similarity S, a trained map g
    and each channel's standard deviation over positions (a flat output is taken as it is).

    Args:
        spec: The block.
        scored: The block's "output", or its "activation", before closing pooling and dropout (published).

    Shape: h (N, C, H, W), (N, K, C) or (N, D).

    Cost: g has 9 C^2 parameters for a map, a 3x3 convolution, and C^2 or D^2 for tokens and flat outputs, a linear
        layer. N^2 similarities. It makes no prediction of its own.

    Raises:
        ValueError: `scored` is neither.

    Note: Before its pooling a map has four times the positions, and the convolution costs more than the block itself:
        a published step takes 2.5 times a step of backprop.

    References: Nokland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019, arXiv:1901.06656.
    """

    def __init__(self, spec: BlockSpec, *, scored: Scored = "output") -> None:
        super().__init__(spec, scored)
        shape = self.scored_shape
        self.map: nn.Module = (
            nn.Conv2d(shape[0], shape[0], 3, padding=1, bias=False)
            if len(shape) == 3
            else nn.Linear(shape[-1], shape[-1], bias=False)
        )

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score `h` against the rest of the batch."""
        mapped = self.map(self.laid_out(h))
        with full_precision(h):
            wanted = label_similarity(batch.target, self.spec.num_classes)
            return LocalLoss(similarity_loss(similarity_features(mapped), wanted))
