"""Contrast the samples of a batch with each other: by their averaged features, or through a trained head."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from localprop.errors import check_positive
from localprop.functional.contrast import supervised_contrastive_loss
from localprop.functional.precision import full_precision
from localprop.objectives.base import Objective, Scored
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class FeatureContrast(Objective):
    """Train a block by the supervised contrastive loss of its averaged features, without an auxiliary network.

    L_feat is `supervised_contrastive_loss(hbar, y, tau)`: the contrastive local loss with f_phi = identity.

    Args:
        spec: The block.
        temperature: tau > 0.

    Shape: h (N, C, H, W), (N, K, C) or (N, H).

    Cost: no parameters; N^2 similarities. It makes no prediction of its own.

    Raises:
        ValueError: The temperature is not positive.

    Note: With about N / Z positives an anchor, small batches of many classes leave anchors without any; these
        contribute nothing. A flat output is averaged over its K chunks, as for the dictionary.

    References: Choi et al., "Dictionary Contrastive Learning for Efficient Local Supervision without Auxiliary
        Networks", ICLR 2024.
    """

    def __init__(self, spec: BlockSpec, *, temperature: float = 0.07) -> None:
        super().__init__(spec)
        check_positive("temperature", temperature)
        self.temperature = temperature

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the block output `h` against the rest of the batch."""
        features = self.averaged_features(h)
        with full_precision(h):
            return LocalLoss(supervised_contrastive_loss(features, batch.target, self.temperature))


class HeadContrast(Objective):
    """Train a block by the supervised contrastive loss of what a trained head makes of its features.

    L_contrast is `supervised_contrastive_loss(f_phi(h), y, tau)`.

    Args:
        spec: The block.
        head: f_phi, which gives one vector a sample, in at least float32.
        temperature: tau > 0.
        scored: The block's "output", or its "activation", before closing pooling and dropout.

    Shape: h (N, C, H, W), (N, K, C) or (N, D), as the head takes it.

    Cost: the head's parameters; N^2 similarities. It makes no prediction of its own.

    Raises:
        ValueError: The temperature is not positive.

    References: Wang et al., "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training", ICLR 2021,
        arXiv:2101.10832.
    """

    head: Callable[[Tensor], Tensor]

    def __init__(
        self, spec: BlockSpec, head: nn.Module, *, temperature: float = 0.07, scored: Scored = "output"
    ) -> None:
        super().__init__(spec, scored)
        check_positive("temperature", temperature)
        self.temperature = temperature
        self.head = head

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score `h` against the rest of the batch."""
        features = self.head(self.laid_out(h))
        with full_precision(h):
            return LocalLoss(supervised_contrastive_loss(features, batch.target, self.temperature))
