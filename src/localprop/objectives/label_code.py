"""Local errors that no trained head sends back: random codes of the labels, to be like and to be predicted."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.functional import feedback
from localprop.functional.pooling import num_pooled_features, pool_map_to_budget, pool_to_budget
from localprop.functional.precision import full_precision
from localprop.functional.similarity import adjusted_cosine, similarity_features, similarity_loss
from localprop.objectives.base import Objective, Scored
from localprop.types import BlockSpec, LocalBatch, LocalLoss


class LabelCode(nn.Module):
    """Hold a fixed random code of the labels: row z is P onehot(z), entries uniform in +-1/sqrt(Z).

    Args:
        num_classes: Z.
        width: Q, the length of a code; at least 1.

    Raises:
        ValueError: The width is below 1.
    """

    codes: Tensor

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"code_width: must be at least 1, got {width}")
        bound = 1 / math.sqrt(num_classes)
        self.register_buffer("codes", torch.empty(num_classes, width).uniform_(-bound, bound))

    @property
    def bits(self) -> Tensor:
        """1[P onehot(z) > 0], shape (Z, Q)."""
        return (self.codes > 0).to(self.codes.dtype)


class CodeSimilarity(Objective):
    """Train a block so that its samples are as similar to each other as the codes of their labels are.

    L = (1/N^2) sum_ij (S_ij(std(pool(h))) - S_ij(P onehot(y)))^2, with the adjusted cosine similarity S.

    Args:
        spec: The block.
        code: P, the labels' codes.
        feature_budget: Most features that the average pooling leaves; at least 1.
        scored: The block's "output", or its "activation", before closing pooling and dropout (published).

    Shape: h (N, C, H, W), (N, K, C) or (N, D).

    Cost: no trained parameters; N^2 similarities. It makes no prediction of its own.

    Raises:
        ValueError: A setting out of its range.

    References: Nokland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019, arXiv:1901.06656.
    """

    def __init__(
        self, spec: BlockSpec, code: LabelCode, *, feature_budget: int = 2048, scored: Scored = "output"
    ) -> None:
        super().__init__(spec, scored)
        num_pooled_features(self.scored_shape, feature_budget)  # refuses a budget out of its range
        self.code = code
        self.feature_budget = feature_budget

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score `h` against the rest of the batch."""
        with full_precision(h):
            features = similarity_features(pool_map_to_budget(self.laid_out(h), self.feature_budget))
            wanted = adjusted_cosine(self.code.codes[batch.target])
            return LocalLoss(similarity_loss(features, wanted))


class CodePrediction(Objective):
    """Train a block to predict the signs of its label's code through a linear layer trained by feedback alignment.

    L = (1/(N Q)) sum_nq BCE(sigmoid(p_nq), 1[P onehot(y_n) > 0]_q), p = W flatten(pool(h)) + b. The error goes back to
    h through a fixed random matrix B in place of W, so that W never carries an error.

    The logit of class z is the log-likelihood of its bits, sum_q p_q 1[P onehot(z) > 0]_q, up to a constant.

    Args:
        spec: The block.
        code: P, the labels' codes.
        feature_budget: Most features that the linear layer reads; at least 1.
        scored: The block's "output", or its "activation", before closing pooling and dropout (published).

    Shape: h (N, C, H, W), (N, K, C) or (N, D).

    Cost: Q (F + 1) trained parameters a block, F <= max(feature_budget, C), and Q F fixed ones.

    Raises:
        ValueError: A setting out of its range.

    Note: W and b start at zero, as published.

    References: Nokland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019, arXiv:1901.06656.
    """

    feedback: Tensor

    def __init__(
        self, spec: BlockSpec, code: LabelCode, *, feature_budget: int = 2048, scored: Scored = "output"
    ) -> None:
        super().__init__(spec, scored)
        self.code = code
        self.feature_budget = feature_budget
        num_features, width = num_pooled_features(self.scored_shape, feature_budget), code.codes.shape[1]
        self.weight = nn.Parameter(torch.zeros(width, num_features))
        self.bias = nn.Parameter(torch.zeros(width))
        bound = 1 / math.sqrt(num_features)
        self.register_buffer("feedback", torch.empty(width, num_features).uniform_(-bound, bound))

    def predicted_bits(self, h: Tensor) -> Tensor:
        """Return the logit of every bit, shape (N, Q)."""
        features = pool_to_budget(self.laid_out(h), self.feature_budget)
        with full_precision(h):
            return feedback.linear(features, self.weight, self.bias, feedback=self.feedback)

    def logits(self, h: Tensor) -> Tensor:
        """Return the log-likelihood of every class's bits up to a constant, shape (N, Z)."""
        return self._class_logits(self.predicted_bits(h))

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score `h`."""
        predicted = self.predicted_bits(h)
        loss = F.binary_cross_entropy_with_logits(predicted, self.code.bits[batch.target])
        return LocalLoss(loss, self._class_logits(predicted.detach()))

    def _class_logits(self, predicted: Tensor) -> Tensor:
        with full_precision(predicted):
            return predicted @ self.code.bits.T
