"""Forward-Forward: every block tells samples with their true label from samples with a wrong one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.functional.goodness import (
    Border,
    Reduction,
    goodness,
    likely_wrong_labels,
    normalise_activity,
    wrong_labels,
)
from localprop.functional.pooling import average_positions
from localprop.functional.precision import at_least_single
from localprop.network import LocalNetwork, still_statistics
from localprop.rules.base import Rule, block_groups
from localprop.seed import derive
from localprop.types import BlockSpec, BlockStep, Key

Negatives = Literal["uniform", "hard"]
Inference = Literal["goodness", "softmax"]
PairLoss = Callable[[Tensor, Tensor], Tensor]
READOUT: Key = (None, "readout")


class ForwardForward(Rule):
    """Train hidden blocks to be active on samples with their true label and quiet on samples with a wrong one.

    Three copies of the batch run through the network as one: with the true label (positive), with a wrong label
    (negative), and with a neutral one. For hidden block l: h_l = f_l(sg[norm(h_{l-1})]), G_l = sum_j h_{l,j}^2 (or the
    mean), and theta_l gets the gradient of loss(G_l+, G_l-) + peer_weight Peer(h_l+). The last block is trained by the
    cross-entropy of its logits on the neutral copy, detached.

    The answer is, with `inference` "goodness", the sum of the goodness of all hidden blocks but the first for each
    label in turn; with "softmax", a linear classifier of its own (group `(None, "readout")`) that reads the normalised
    activities of all hidden blocks but the first on the neutral copy. A network with one hidden block uses that block.

    Args:
        net: The network; at least two blocks.
        specs: Its blocks.
        label: Puts class weights (N, Z) into inputs: `label(x, weights, rule)`.
        losses: One a hidden block: (goodness of positives, goodness of negatives) -> scalar.
        reduction: How activities make a goodness: "sum" or "mean".
        border: What crosses a border: activities of root mean square 1 ("rms") or of length 1 ("l2").
        negatives: Wrong labels are drawn "uniform"ly, or "hard": as likely as the last block finds them.
        peer_weight: Weight of peer normalisation (see `PeerNormalisation`); 0 leaves it out.
        inference: What answers: "goodness" (Z passes) or "softmax" (one pass).

    Raises:
        ValueError: A setting out of its range, or a network without hidden blocks.

    Note: Batch normalisation sees the three copies together: by themselves, positives and negatives would be scaled to
        the same goodness. With `blocks`, the first input is labelled already, and of 3 N rows.

    References: Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", 2022, arXiv:2212.13345.
    """

    is_chain = False
    _not_early_because = "a block's goodness takes a pass from the image for every label"

    def __init__(
        self,
        net: LocalNetwork,
        specs: Sequence[BlockSpec],
        label: nn.Module,
        losses: Sequence[PairLoss],
        *,
        reduction: Reduction = "sum",
        border: Border = "rms",
        negatives: Negatives = "uniform",
        peer_weight: float = 0.0,
        inference: Inference = "goodness",
    ) -> None:
        super().__init__(net, specs)
        for name, value, allowed in (
            ("goodness", reduction, ("sum", "mean")),
            ("border", border, ("rms", "l2")),
            ("negatives", negatives, ("uniform", "hard")),
            ("inference", inference, ("goodness", "softmax")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: must be {allowed[0]!r} or {allowed[1]!r}, got {value!r}")
        if not 0 <= peer_weight < math.inf:
            raise ValueError(f"peer_weight: must be at least 0 and finite, got {peer_weight}")
        if len(specs) < 2:
            raise ValueError(
                "net: goodness needs a hidden block before the classifier; cut the network into two or more"
            )
        hidden = specs[:-1]
        self.label = label
        self.losses = tuple(losses)
        self.reduction: Reduction = reduction
        self.border: Border = border
        self.negatives: Negatives = negatives
        self.answering = range(min(1, len(hidden) - 1), len(hidden))
        self.peers = nn.ModuleList(PeerNormalisation(spec, peer_weight) for spec in hidden if peer_weight)
        width = sum(math.prod(specs[index].shape) for index in self.answering)
        self.readout = nn.Linear(width, specs[0].num_classes) if inference == "softmax" else None

    def parameter_groups(self) -> dict[Key, list[nn.Parameter]]:
        """Return one group a block, then the readout if it answers."""
        groups = block_groups(self.net)
        if self.readout is not None:
            groups[READOUT] = list(self.readout.parameters())
        return groups

    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield (block, "block") for block after block, then the readout; see `Rule.steps`.

        Raises:
            ValueError: The batch does not fit, or a stretch of blocks is asked for where a part reads all of them.
        """
        whole = range(len(self.net))
        blocks = whole if blocks is None else blocks
        if blocks != whole and (self.readout is not None or self.negatives == "hard"):
            raise ValueError(
                f"blocks: the readout and hard negatives need all blocks, got {blocks}; "
                "use inference 'goodness' and negatives 'uniform'"
            )
        self.check_batch(x, y if blocks.start == 0 else y.repeat(3), blocks)
        self._passes += 1
        groups = self.parameter_groups()
        size = len(y)
        features: list[Tensor] = []
        with self.cleared_if_abandoned():
            inputs = self._labelled(x, y) if blocks.start == 0 else self._normalise(x)
            for index, _, h, output in self._run(inputs, blocks):
                if self.readout is not None and index in self.answering:
                    features.append(self._normalise(output[2 * size :]).flatten(1))
                if (index, "block") not in groups:
                    continue
                logits = None
                if index == whole[-1]:
                    logits = at_least_single(h[2 * size :])
                    loss = F.cross_entropy(logits, y)
                else:
                    loss = self._contrast(index, h[:size], h[size : 2 * size])
                del h  # the yield below must not keep the graph alive
                torch.autograd.backward(loss if scale == 1.0 else loss * scale)
                prediction = None if logits is None else logits.detach()
                yield BlockStep((index, "block"), loss.detach(), prediction, output)
                del loss, logits, output
            if self.readout is not None:
                logits = self.readout(at_least_single(torch.cat(features, 1)))
                loss = F.cross_entropy(logits, y)
                torch.autograd.backward(loss if scale == 1.0 else loss * scale)
                yield BlockStep(READOUT, loss.detach(), logits.detach())

    def exits(self, x: Tensor) -> list[Tensor | None]:
        """Return each hidden block's goodness for every label, and the network's answer; see `Rule.exits`.

        Cost: Z passes, one label after the other.
        """
        self.check_input(x)
        hidden = range(len(self.net) - 1)
        with torch.no_grad():
            by_label = [
                [goodness(h, self.reduction) for _, _, h, _ in self._run(self.label(x, weights, self), hidden)]
                for weights in torch.eye(self.specs[0].num_classes, dtype=x.dtype, device=x.device)
            ]
            exits = [torch.stack(of_block, dim=1) for of_block in zip(*by_label, strict=True)]
            if self.readout is None:
                answer = torch.stack([exits[index] for index in self.answering]).sum(0)
            else:
                answer = self.predict(x)
            return [*exits, answer]

    def predict(self, x: Tensor) -> Tensor:
        """Return the network's answer, shape (N, Z); one pass if the readout answers."""
        if self.readout is None:
            return super().predict(x)
        self.check_input(x)
        with torch.no_grad():
            passes = self._run(self.label(x, self._neutral(x), self), range(len(self.net) - 1))
            features = [self._normalise(output).flatten(1) for index, _, _, output in passes if index in self.answering]
            logits: Tensor = self.readout(at_least_single(torch.cat(features, 1)))
            return logits

    def _contrast(self, index: int, positive: Tensor, negative: Tensor) -> Tensor:
        loss = self.losses[index](goodness(positive, self.reduction), goodness(negative, self.reduction))
        return loss + self.peers[index](positive) if self.peers else loss

    def _labelled(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the positive, the negative and the neutral copy, one after the other."""
        classes = torch.eye(self.specs[0].num_classes, dtype=x.dtype, device=x.device)
        weights = torch.cat([classes[y], classes[self.wrong(x, y)], self._neutral(x).expand(len(x), -1)])
        labelled: Tensor = self.label(torch.cat([x, x, x]), weights, self)
        return labelled

    def wrong(self, x: Tensor, y: Tensor) -> Tensor:
        """Draw the labels of the negatives, shape (N,); none is the true one."""
        generator = torch.Generator().manual_seed(derive(self.seed, "negatives", self._step, self._passes))
        if self.negatives == "uniform":
            return wrong_labels(y, self.specs[0].num_classes, generator)
        with torch.no_grad(), still_statistics(self.net):
            *_, (_, _, logits, _) = self._run(self.label(x, self._neutral(x), self), range(len(self.net)))
        return likely_wrong_labels(logits, y, generator)

    def _neutral(self, x: Tensor) -> Tensor:
        num_classes = self.specs[0].num_classes
        return x.new_full((num_classes,), 1 / num_classes)

    def _normalise(self, h: Tensor) -> Tensor:
        return normalise_activity(h, self.border)

    def _run(self, x: Tensor, blocks: range) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        return self.net.iter_blocks(x, blocks=blocks, boundary=self._normalise, context=self.context)


class PeerNormalisation(nn.Module):
    """Keep units equally active: w mean_j (mean_i a_i - a_j)^2 for the running mean activities a of positives.

    a = 0.9 a_before + 0.1 mean of h over the batch (and over the positions of a map); gradients flow through the new
    part alone.

    Args:
        spec: The block.
        weight: w > 0.

    References: Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", 2022, arXiv:2212.13345; the
        numbers are those of Lowe's reimplementation.
    """

    activity: Tensor

    def __init__(self, spec: BlockSpec, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.channel_axis = 1 if spec.channel_axis == 0 else -1
        self.register_buffer("activity", torch.zeros(spec.shape[spec.channel_axis]))

    def forward(self, h: Tensor) -> Tensor:
        """Move the running means and return the penalty."""
        activity = 0.9 * self.activity + 0.1 * average_positions(h, self.channel_axis).mean(0)
        self.activity.copy_(activity.detach())
        penalty: Tensor = self.weight * (activity.mean() - activity).square().mean()
        return penalty
