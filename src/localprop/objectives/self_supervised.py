"""Self-supervised objectives: blocks learn without labels, and a probe tells what a linear classifier reads in them."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from localprop.errors import check_positive
from localprop.functional.info_nce import nt_xent_loss, row_info_nce_loss
from localprop.functional.pooling import average_positions
from localprop.functional.precision import full_precision
from localprop.objectives.base import Objective
from localprop.objectives.probe import Probe
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class SelfSupervised(Objective):
    """Train a block by a loss without labels, and beside it a linear probe on sg[h] that the block never feels.

    L = L_ssl(h) + CE(probe(sg[h]), y): the two share no parameter, so each is trained by its own term.

    Args:
        spec: The block.
    """

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__(spec)
        self.probe = Probe(spec)

    @abstractmethod
    def self_supervised_loss(self, h: Tensor) -> Tensor:
        """Return L_ssl(h)."""

    def logits(self, h: Tensor) -> Tensor:
        """Return what the probe reads, shape (N, Z)."""
        return self.probe.logits(h)

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the block output `h`; logs both terms."""
        probe = self.probe(h, batch)
        with full_precision(h):
            loss = self.self_supervised_loss(h)
        logs = {"self_supervised": loss.detach(), "probe": probe.loss.detach()}
        return LocalLoss(loss + probe.loss, probe.logits, logs)


class ViewContrast(SelfSupervised):
    """Train a block to tell two views of each image from all other views of the batch.

    L_ssl = `nt_xent_loss(g(hbar), tau)`, with g a head of two linear layers and a ReLU between them.

    Args:
        spec: The block.
        temperature: tau > 0.
        projection: Width of the head's output, at least 1.

    Shape: h (2N, ...), rows i and i + N being views of one image.

    Cost: C^2 + C (P + 1) + P parameters a block for the head, and the probe's.

    Raises:
        ValueError: A setting out of its range.

    References: Chen et al., ICML 2020, arXiv:2002.05709; block by block: Xiong et al., "LoCo: Local Contrastive
        Representation Learning", NeurIPS 2020, arXiv:2008.01342.
    """

    def __init__(self, spec: BlockSpec, *, temperature: float = 0.5, projection: int = 128) -> None:
        super().__init__(spec)
        check_positive("temperature", temperature)
        if projection < 1:
            raise ValueError(f"projection: must be at least 1, got {projection}")
        self.temperature = temperature
        self.head = nn.Sequential(
            nn.Linear(spec.channels, spec.channels), nn.ReLU(), nn.Linear(spec.channels, projection)
        )

    def self_supervised_loss(self, h: Tensor) -> Tensor:
        """Contrast the views."""
        return nt_xent_loss(self.head(self.averaged_features(h)), self.temperature)


class RowPrediction(SelfSupervised):
    """Train a block to predict the code of an image's patch from the patches above it.

    L_ssl = `row_info_nce_loss(z, W, negatives)`, where z is the average of h over the positions of a patch.

    Args:
        spec: The block, run on single patches.
        grid: Rows and columns of patches of an image.
        predicted_rows: K, how many rows below a patch are predicted.
        skipped_rows: Rows between a patch and the first predicted one, which overlap it; K + skipped rows < R.
        negatives: M, codes drawn at random beside the positive one; at least 1.

    Shape: h (N R S, ...): patches row by row, image by image.

    Cost: K C^2 parameters a block, and the probe's.

    Raises:
        ValueError: A setting out of its range.

    References: van den Oord et al., 2018, arXiv:1807.03748; Lowe et al., NeurIPS 2019, arXiv:1905.11786.
    """

    def __init__(
        self,
        spec: BlockSpec,
        *,
        grid: tuple[int, int],
        predicted_rows: int = 5,
        skipped_rows: int = 1,
        negatives: int = 16,
    ) -> None:
        super().__init__(spec)
        if predicted_rows < 1 or skipped_rows < 0 or predicted_rows + skipped_rows >= grid[0]:
            raise ValueError(
                f"predicted_rows: at least 1, and with skipped_rows less than the {grid[0]} rows of patches, got "
                f"{predicted_rows} and {skipped_rows}; a smaller patch or stride gives more rows"
            )
        if negatives < 1:
            raise ValueError(f"negatives: must be at least 1, got {negatives}")
        self.grid, self.skipped_rows, self.negatives = grid, skipped_rows, negatives
        width = spec.channels
        self.predictors = nn.Parameter(torch.randn(predicted_rows, width, width) / width)

    def self_supervised_loss(self, h: Tensor) -> Tensor:
        """Predict rows from rows above; draws the negatives."""
        features = self.averaged_features(h)
        codes = features.reshape(-1, *self.grid, features.shape[1])
        shape = (len(self.predictors), *codes.shape[:3], self.negatives)
        drawn = torch.randint(len(features), shape).to(h.device, non_blocking=True)
        return row_info_nce_loss(codes, self.predictors, drawn, self.skipped_rows)


def average_logits(logits: Tensor, count: int) -> Tensor:
    """Average the logits of the `count` patches of each image: (N count, Z) -> (N, Z)."""
    return average_positions(logits.reshape(-1, count, logits.shape[1]), channel_axis=-1)
