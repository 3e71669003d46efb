"""Predictive Forward-Forward: a recurrent circuit that tells true labels from wrong ones, and one that predicts it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.errors import check_positive
from localprop.functional.distance import squared_error
from localprop.functional.goodness import Border, Reduction, goodness, normalise_activity, threshold_loss, wrong_labels
from localprop.functional.precision import at_least_single
from localprop.functional.predictive import lateral_inhibition, straight_through_relu
from localprop.network import LocalNetwork, body_and_tail
from localprop.rules.base import unique
from localprop.rules.chained import Chained
from localprop.rules.predictors import feedback_net
from localprop.seed import derive, seeded
from localprop.types import BlockSpec, BlockStep, Key


class PredictiveForwardForward(Chained):
    """Train hidden blocks as a recurrent circuit whose goodness is small for true labels and large for wrong ones.

    States z_1 .. z_L of the hidden blocks start at z_l = relu(f_l(n(z_{l-1}))), z_0 = x. The label is not in the image:
    it is what the top sees above itself, z_{L+1} = scale onehot(label). In each of K rounds, from the states before,
        z_l <- alpha z_l + (1 - alpha) (relu(f_l(n(z_{l-1})) + V_l n(z_{l+1}) - R_l n(z_l)) + noise)
    with n the normalisation, R_l the competition of `lateral_inhibition`, and a relu whose derivative is 1. All on the
    right but f_l, V_l and R_l is constant. Half of the rows have the true label, half a wrong one, and
    L_l = mean softplus(G_l+ - theta_l) + softplus(theta_l - G_l-), G_l = sum_j z_{l,j}^2 (or the mean).

    Then generators predict each state from the one above, zhat_l = relu(g_{l+1}(n(z_{l+1} + noise))), the image by a
    sigmoid, and the top from a latent vector that takes a gradient step a round, by ||zhat_l - sg[z_l]||^2. They train
    no block.

    Order: (l, "block") of all hidden blocks, then (l, "generator") of what predicts below block l, K times; at last
    the last block, by the cross-entropy of its logits on the states of the start, which know no label.

    Args:
        net: The network; at least two blocks.
        specs: Its blocks.
        rounds: K, at least 1.
        threshold: theta a unit, positive: theta_l = threshold D_l for the sum, threshold for the mean.
        reduction: How activities make a goodness: "sum" or "mean".
        border: n: activities of length 1 ("l2") or of root mean square 1 ("rms"). The image and the label keep theirs.
        dampening: alpha, in [0, 1).
        context_scale: Scale of the label, positive.
        group: Units that compete with each other, at least 1.
        noise: Standard deviation of the states' noise, at least 0.
        generator_noise: That of what generators read, at least 0.
        latent: Size of the latent vector, at least 1.
        latent_rate: Length of its gradient step, positive.

    Cost: 1 + 2 K passes through a hidden block in training, and 1 + Z (K / 2 + 1) to predict, for Z labels. Top-down
        weights and generators are 3x3 convolutions between maps, and linear on all units else.

    Raises:
        ValueError: A setting out of its range, a network without hidden blocks, or a stretch of blocks.

    Note: z_l is the block's activation, before its closing pooling, and a closing `nn.ReLU` gives way to the circuit's;
        other nonlinearities stay. Running statistics of batch normalisation follow all rounds. A label comes down one
        block a round: below the top K blocks nothing is learned, and below the top K/2 + 1 nothing is answered, so take
        K >= 2 (L - 1).

    References: Ororbia and Mali, "The Predictive Forward-Forward Algorithm", 2023, arXiv:2301.01452.
    """

    is_chain = False
    accumulates = False
    _not_early_because = "blocks settle together, with messages from those above, for every label"

    def __init__(
        self,
        net: LocalNetwork,
        specs: Sequence[BlockSpec],
        *,
        rounds: int,
        threshold: float,
        reduction: Reduction,
        border: Border,
        dampening: float,
        context_scale: float,
        group: int,
        noise: float,
        generator_noise: float,
        latent: int,
        latent_rate: float,
    ) -> None:
        super().__init__(net, specs)
        for name, value, allowed in (
            ("goodness", reduction, ("sum", "mean")),
            ("border", border, ("rms", "l2")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: must be {allowed[0]!r} or {allowed[1]!r}, got {value!r}")
        for name, count in {"rounds": rounds, "group": group, "latent": latent}.items():
            if count < 1:
                raise ValueError(f"{name}: must be at least 1, got {count}")
        positive = {"threshold": threshold, "context_scale": context_scale, "latent_rate": latent_rate}
        for name, number in positive.items():
            check_positive(name, number)
        for name, number in {"noise": noise, "generator_noise": generator_noise}.items():
            if not 0 <= number < math.inf:
                raise ValueError(f"{name}: must be at least 0 and finite, got {number}")
        if not 0 <= dampening < 1:
            raise ValueError(f"dampening: must be in [0, 1), got {dampening}")
        if len(specs) < 2:
            raise ValueError(
                "net: goodness needs a hidden block before the classifier; cut the network into two or more"
            )
        self.rounds = rounds
        self.reduction: Reduction = reduction
        self.border: Border = border
        self.dampening = dampening
        self.context_scale = context_scale
        self.noise = noise
        self.generator_noise = generator_noise
        self.latent = latent
        self.latent_rate = latent_rate
        self.hidden = [spec.at_activation() for spec in specs[:-1]]
        self.thresholds = [threshold * (math.prod(spec.shape) if reduction == "sum" else 1) for spec in self.hidden]
        shapes = [spec.shape for spec in self.hidden]
        self.top_down = nn.ModuleList(
            feedback_net(above, shape, hidden=0, bias=False)
            for above, shape in zip([*shapes[1:], (specs[0].num_classes,)], shapes, strict=True)
        )
        self.lateral = nn.ModuleList(Competition(spec, group) for spec in self.hidden)
        self.generators = nn.ModuleList(
            feedback_net(above, shape, hidden=0, bias=False)
            for above, shape in zip([*shapes, (latent,)], [specs[0].input_shape, *shapes], strict=True)
        )

    def parameter_groups(self) -> dict[Key, list[nn.Parameter]]:
        """Return the groups of hidden blocks, of generators, and of the last block."""
        circuits = zip(self.net.blocks, self.top_down, self.lateral, strict=False)
        groups: dict[Key, list[nn.Parameter]] = {
            (index, "block"): unique([p for module in circuit for p in module.parameters()])
            for index, circuit in enumerate(circuits)
        }
        for index, generator in enumerate(self.generators):
            groups[index, "generator"] = unique(list(generator.parameters()))
        if last := unique(list(self.net.blocks[-1].parameters())):
            groups[len(self.net) - 1, "block"] = last
        return groups

    def _train(self, x: Tensor, y: Tensor, scale: float) -> Iterator[BlockStep]:
        with torch.no_grad():
            start = self._start(x)
        features = self._message(len(start) - 1, start)
        states = [torch.cat([z, z]) for z in start]
        inputs, image = torch.cat([x, x]), self.image(x)
        pixels, context = torch.cat([image, image]), self._context(torch.cat([y, self._wrong(y)]), x)
        latent = self._drawn(1.0, x.new_empty(2 * len(x), self.latent), "latent")
        for number in range(self.rounds):
            moved = []
            for index, state in enumerate(states):
                noise = self._drawn(self.noise, state, "noise", number, index)
                z = self._move(index, states, inputs, context) + (1 - self.dampening) * noise
                positive, negative = goodness(z, self.reduction).chunk(2)
                loss = threshold_loss(-positive, -negative, -self.thresholds[index])
                moved.append(z.detach())
                del z, positive, negative  # the yield below must not keep the graph alive
                torch.autograd.backward(loss, torch.full_like(loss, scale))
                yield BlockStep((index, "block"), loss.detach())
            states = moved
            for index, target in enumerate([pixels, *states]):
                if index < len(states):
                    noise = self._drawn(self.generator_noise, states[index], "generator", number, index)
                    source = normalise_activity(states[index] + noise, self.border)
                else:
                    source = latent = latent.detach().requires_grad_()
                loss = squared_error(self._predicted(index, source), target)
                torch.autograd.backward(loss, torch.full_like(loss, scale))
                yield BlockStep((index, "generator"), loss.detach())
            assert latent.grad is not None
            latent = latent.detach() - self.latent_rate * latent.grad / scale
        last = len(self.net) - 1
        if any(parameter.requires_grad for parameter in self.net.blocks[last].parameters()):
            logits = at_least_single(self._run(last, features).h)
            loss = F.cross_entropy(logits, y)
            torch.autograd.backward(loss, torch.full_like(loss, scale))
            yield BlockStep((last, "block"), loss.detach(), logits.detach(), logits.detach())

    def exits(self, x: Tensor) -> list[Tensor | None]:
        """Return minus each hidden block's goodness for every label in the middle rounds, and their sum.

        Rounds K/2 - 1 .. K/2 + 1 are averaged; there is no noise.
        """
        self.check_input(x)
        middle = self.rounds // 2
        with torch.no_grad():
            start = self._start(x)
            columns = []
            for label in range(self.specs[0].num_classes):
                states, collected = start, []
                context = self._context(torch.full((x.shape[0],), label, device=x.device), x)
                for number in range(1, middle + 2):
                    states = [self._move(index, states, x, context) for index in range(len(states))]
                    if number >= middle - 1:
                        collected.append(torch.stack([-goodness(z, self.reduction) for z in states]))
                columns.append(torch.stack(collected).mean(0))
            scores = torch.stack(columns, dim=-1)  # (L, N, Z)
            return [*scores, scores.sum(0)]

    def _start(self, x: Tensor) -> list[Tensor]:
        """Return the states of one pass from the image upwards: no label, no competition, no noise."""
        states: list[Tensor] = []
        for index in range(len(self.hidden)):
            states.append(self._drive(index, self._message(index - 1, states) if states else x).relu())
        return states

    def _move(self, index: int, states: Sequence[Tensor], x: Tensor, context: Tensor) -> Tensor:
        """Return a block's next state, without noise."""
        below = self._message(index - 1, states) if index else x
        above = context if index == len(states) - 1 else normalise_activity(states[index + 1], self.border)
        own = normalise_activity(states[index], self.border)
        drive = self._drive(index, below)
        with self.context(index, "circuit"):
            circuit = at_least_single(self.top_down[index](above)) - at_least_single(self.lateral[index](own))
        return self.dampening * states[index] + (1 - self.dampening) * straight_through_relu(drive + circuit)

    def _drive(self, index: int, below: Tensor) -> Tensor:
        with self.context(index):
            return at_least_single(_parts(self.net.blocks[index])[0](below))

    def _message(self, index: int, states: Sequence[Tensor]) -> Tensor:
        """Return what the block after block `index` is given: its normalised state, pooled as the block does."""
        tail = _parts(self.net.blocks[index])[1]
        with self.context(index, "tail"):
            message: Tensor = tail(normalise_activity(states[index], self.border))
            return message

    def _predicted(self, index: int, source: Tensor) -> Tensor:
        with self.context(index, "generator"):
            predicted = at_least_single(self.generators[index](source))
        return predicted.relu() if index else predicted.sigmoid()

    def _context(self, labels: Tensor, x: Tensor) -> Tensor:
        return self.context_scale * F.one_hot(labels, self.specs[0].num_classes).to(x.dtype)

    def _wrong(self, y: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(derive(self.seed, "negatives", self._step, self._passes))
        return wrong_labels(y, self.specs[0].num_classes, generator)

    def _drawn(self, std: float, like: Tensor, *place: int | str) -> Tensor:
        with seeded(derive(self.seed, *place, self._step, self._passes), like.device):
            return std * torch.randn(like.shape, dtype=like.dtype, device=like.device)  # whatever the memory layout


class Competition(nn.Module):
    """Let the units of a block, or the channels of its map, compete in groups; see `lateral_inhibition`.

    Args:
        spec: The block.
        group: Units of a group.

    Cost: `group` parameters a unit.
    """

    def __init__(self, spec: BlockSpec, group: int) -> None:
        super().__init__()
        num_groups = -(-spec.shape[spec.channel_axis] // group)
        self.channel_axis = 1 if spec.channel_axis == 0 else -1
        self.weight = nn.Parameter(0.05 * torch.rand(num_groups, group, group))

    def forward(self, z: Tensor) -> Tensor:
        """Return what is subtracted from the units' inputs."""
        return lateral_inhibition(z, self.weight, self.channel_axis)


def _parts(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Cut a block into what drives its state and the closing pooling that follows it; a closing ReLU is left out."""
    body, tail = body_and_tail(block)
    if isinstance(body, nn.Sequential) and len(body) > 1 and isinstance(body[-1], nn.ReLU):
        body = nn.Sequential(*list(body)[:-1])
    return body, tail
