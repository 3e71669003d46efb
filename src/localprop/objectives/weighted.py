"""A weighted sum of objectives of one block."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from localprop.objectives.base import Objective
from localprop.types import LocalBatch, LocalLoss


class WeightedSum(Objective):
    """Train a block by several objectives at once: L = sum_i w_i L_i.

    Args:
        parts: Name -> (weight, objective); all of one block, all scoring the same of it. The prediction is that of
            the first part that makes one.

    Raises:
        ValueError: No parts, a weight that is not positive and finite, or parts that do not go together.

    Note: The logs hold each part's own loss as NAME_loss, not weighted.
    """

    def __init__(self, parts: Mapping[str, tuple[float, Objective]]) -> None:
        if not parts:
            raise ValueError("parts: need at least one objective, got none")
        for name, (weight, _) in parts.items():
            if not 0 < weight < math.inf:
                raise ValueError(f"{name}: its weight must be positive and finite, got {weight}")
        objectives = [objective for _, objective in parts.values()]
        first = objectives[0]
        if any(part.spec != first.spec or part.reads != first.reads for part in objectives):
            raise ValueError(f"parts: {list(parts)} must score the same of one block")
        super().__init__(first.spec, first.reads)
        self.weights = {name: weight for name, (weight, _) in parts.items()}
        self.parts = nn.ModuleDict({name: objective for name, (_, objective) in parts.items()})
        self.needs_image = any(objective.needs_image for objective in objectives)
        self.real_targets = all(objective.real_targets for objective in objectives)

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score `h` by every part."""
        scores = {name: part(h, batch) for name, part in self._items()}
        terms = [
            score.loss if self.weights[name] == 1 else self.weights[name] * score.loss for name, score in scores.items()
        ]
        logs = {name: value for score in scores.values() for name, value in score.logs.items()}
        logs |= {f"{name}_loss": score.loss.detach() for name, score in scores.items()}
        logits = next((score.logits for score in scores.values() if score.logits is not None), None)
        return LocalLoss(sum(terms[1:], terms[0]), logits, logs)

    def logits(self, h: Tensor) -> Tensor | None:
        """Return the prediction of the first part that makes one, shape (N, Z), or None."""
        for _, part in self._items():
            if (logits := part.logits(h)) is not None:
                return logits
        return None

    def _items(self) -> list[tuple[str, Objective]]:
        items = list(self.parts.items())
        return [(name, part) for name, part in items if isinstance(part, Objective)]
