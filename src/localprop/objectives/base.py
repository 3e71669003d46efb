"""The contract of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from localprop.functional.dictionary import information_bound
from localprop.functional.pooling import average_chunks, averaged_output, standard_layout
from localprop.types import BlockSpec, LocalBatch, LocalLoss

Scored = Literal["output", "activation"]


class Objective(nn.Module, ABC):
    """Score one block's output: `h, batch -> LocalLoss`.

    Subclasses take the block's `BlockSpec` first and named keyword hyperparameters after it.

    Args:
        spec: The block that is scored.
        scored: What of the block is scored; default what the class reads.

    Attributes:
        reads: What is scored: the block's "output", or its "activation", before closing pooling and dropout.
        needs_image: Whether the batch must carry the raw images.
        real_targets: Whether the target may be real-valued, shape (N, T), with T in place of the number of classes.

    Raises:
        ValueError: `scored` is neither.
    """

    __call__: Callable[..., LocalLoss]
    reads: Scored = "output"
    needs_image = False
    real_targets = False

    def __init__(self, spec: BlockSpec, scored: Scored | None = None) -> None:
        super().__init__()
        if scored not in (None, "output", "activation"):
            raise ValueError(f"scored: must be 'output' or 'activation', got {scored!r}")
        self.spec = spec
        self.reads = scored or self.reads

    @property
    def scored_shape(self) -> tuple[int, ...]:
        """Shape of one sample of what is scored, as `laid_out` gives it, without the batch axis."""
        return self._scored_spec.standard_shape

    @abstractmethod
    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score `h`, shape (N, *spec.shape), or (N, *spec.activation_shape) if it reads the activation."""

    def logits(self, h: Tensor) -> Tensor | None:
        """Return the block's own prediction, shape (N, Z), or None if the objective makes none."""
        return None

    def updated_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that this objective's loss trains, beside the block's own."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def averaged_features(self, h: Tensor) -> Tensor:
        """Return the averaged feature vector of each sample, shape (N, C): over positions, or over the K chunks."""
        if h.dim() == 2:
            return average_chunks(h, self.spec.chunks)
        return averaged_output(h, self.spec.channel_axis)

    def laid_out(self, h: Tensor) -> Tensor:
        """View what is scored as flat (N, D), tokens (N, K, C) or maps (N, C, H, W), wherever its channels stand."""
        return standard_layout(h, self._scored_spec.channel_axis)

    @property
    def _scored_spec(self) -> BlockSpec:
        return self.spec if self.reads == "output" else self.spec.at_activation()

    def extra_repr(self) -> str:
        """Name the block."""
        return f"block={self.spec.name!r}, channels={self.spec.channels}"


def prediction_loss(logits: Tensor, target: Tensor) -> LocalLoss:
    """Return the cross-entropy of a block's own prediction; logs the bound log Z - L on I(h; y)."""
    loss = F.cross_entropy(logits, target)
    return LocalLoss(loss, logits, {"bound_nats": information_bound(loss, logits.shape[1])})
