"""The Cascaded Forward algorithm: every block's predictor is trained alone, and all of them answer together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from localprop.functional.cascade import ridge_weights
from localprop.network import LocalNetwork
from localprop.objectives.base import Objective
from localprop.objectives.cascade import CascadePrediction, Reading, probabilities
from localprop.rules.greedy import Greedy
from localprop.types import BlockStep, Phase


class Cascade(Greedy):
    """Train predictors as `Greedy` does, and answer by the sum of the blocks' probabilities.

    The answer is log((1/L) sum_l p_l) with p_l = softmax(z_l), or sparsemax(z_l): its softmax is the mean of the p_l.

    Args:
        net: The network; its last block is the last predictor.
        objectives: One a block.
        reading: "softmax" or "sparsemax".

    References: Zhao et al., "The Cascaded Forward Algorithm for Neural Network Training", arXiv:2303.09728.
    """

    answers_together = True

    def __init__(self, net: LocalNetwork, objectives: Sequence[Objective], *, reading: Reading = "softmax") -> None:
        super().__init__(net, objectives)
        self.reading = reading

    def answer(self, exits: Sequence[Tensor | None]) -> Tensor:
        """Return the logarithm of the mean probability over blocks, shape (N, Z)."""
        mean = torch.stack([probabilities(logits, self.reading) for logits in exits if logits is not None]).mean(0)
        return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()  # sparsemax gives zeros


class CascadeClosedForm(Cascade):
    """Solve for every block's predictor in one pass over the training set; no step is taken.

    With the features H (N x P) of block l over the whole training set and one-hot labels Y (N x Z):
        W_l^T = (H^T H + lambda s I)^{-1} H^T Y, s = trace(H^T H) / P,
    accumulated and solved in float64. The last block's closing linear layer is solved for likewise, its bias by a
    feature that is always 1.

    Args:
        net: The network; all of it stays as it was drawn but the last block's closing linear layer.
        objectives: One a block; the last is a `CascadeOutput`.
        ridge: lambda, 0 or more.

    Cost: P^2 numbers of 8 bytes a block while it is solved for, and two forward passes over the training set.

    Raises:
        ValueError: The last block does not end in a linear layer or is frozen, or the ridge is negative.

    Note: `prepare` gives batch normalisation the mean of the batches' statistics; as drawn, 0 and 1, they would not
        normalise.
    """

    def __init__(self, net: LocalNetwork, objectives: Sequence[Objective], *, ridge: float = 1e-4) -> None:
        super().__init__(net, objectives)
        if not 0 <= ridge < float("inf"):
            raise ValueError(f"ridge: must be 0 or more, got {ridge}")
        if len(net) - 1 in net.frozen:
            raise ValueError(f"freeze: block {net.names[-1]!r} is solved for by this method; leave it out")
        self.ridge = ridge
        self._body, self._readout = _body_and_readout(net)
        self.requires_grad_(False)

    def phases(self) -> tuple[Phase, ...]:
        """Return one phase without steps."""
        return (Phase("closed form", range(len(self.net)), 0.0),)

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Check the batch, and yield nothing: see `finish`."""
        self.check_batch(x, y, range(len(self.net)) if blocks is None else blocks)
        yield from ()

    def solved_parameters(self) -> list[nn.Parameter]:
        """Return the predictors' weights."""
        predictors = [objective.weight for objective in self.objectives if isinstance(objective, CascadePrediction)]
        return [*predictors, *self._readout.parameters()]

    def prepare(self, phase: Phase, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Average the statistics of batch normalisation over the training set."""
        moving = [block for index, block in enumerate(self.net.blocks) if index not in self.net.frozen]
        norms = [module for block in moving for module in block.modules() if isinstance(module, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        if not norms:
            return
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        try:
            for x, _ in batches:
                list(self._run(x, range(len(self.net))))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
                norm.eval()

    def finish(self, phase: Phase, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Solve for all predictors."""
        sums: dict[int, tuple[Tensor, Tensor]] = {}
        for x, y in batches:
            target = F.one_hot(y, self.specs[0].num_classes).double()
            for index, block_input, h, _ in self._run(x, range(len(self.net))):
                features = self._features(index, block_input, h).double()
                gram, cross = features.T @ features, features.T @ target
                if index in sums:
                    sums[index][0].add_(gram)
                    sums[index][1].add_(cross)
                else:
                    sums[index] = gram, cross
        for index, (gram, cross) in sums.items():
            self._set(index, ridge_weights(gram, cross, self.ridge).T)

    def _features(self, index: int, block_input: Tensor, h: Tensor) -> Tensor:
        objective = self._objective(index)
        if isinstance(objective, CascadePrediction):
            return objective.features(h)
        with self.context(index):
            features: Tensor = self._body(block_input)
        return features if self._readout.bias is None else F.pad(features, (0, 1), value=1.0)

    def _set(self, index: int, weight: Tensor) -> None:
        objective = self._objective(index)
        if isinstance(objective, CascadePrediction):
            objective.weight.copy_(weight)
        elif self._readout.bias is None:
            self._readout.weight.copy_(weight)
        else:
            self._readout.weight.copy_(weight[:, :-1])
            self._readout.bias.copy_(weight[:, -1])


def _body_and_readout(net: LocalNetwork) -> tuple[nn.Module, nn.Linear]:
    last = net.blocks[-1]
    modules = list(last) if isinstance(last, nn.Sequential) else [last]
    if not isinstance(modules[-1], nn.Linear):
        raise ValueError(
            f"net: the last block must end in a linear layer to be solved for, {net.names[-1]!r} ends in "
            f"{type(modules[-1]).__name__}; cut the network before its classifier"
        )
    return nn.Sequential(*modules[:-1]), modules[-1]
