"""The executor: takes a rule's steps and steps the optimisers, knowing nothing of how a gradient was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from localprop.rules.base import Rule
from localprop.rules.greedy import shared_parameters
from localprop.train.offload import OffloadedState
from localprop.types import BlockStep, Key


class LocalExecutor:
    """Train on one process: one optimiser a parameter group, stepped as soon as its gradients are final.

    Args:
        rule: Makes the gradients.
        make_optimizer: Builds the optimiser of a group of parameters.
        accumulate: Number of equal parts a batch is cut into; gradients are added up, weighted by the parts' sizes.
        clip_norm: Largest 2-norm of a group's gradient; None clips nothing.
        offload_optimizer: Keep the optimisers' state in host memory while they do not step; see `OffloadedState`.

    Raises:
        ValueError: A setting out of its range, a rule that cannot accumulate, or a state that is in host memory anyway.

    Note: With accumulation a parameter shared by blocks has moved only during the last part: the others see it as it
        was before the step. Batch normalisation sees one part at a time.
    """

    def __init__(
        self,
        rule: Rule,
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        *,
        accumulate: int = 1,
        clip_norm: float | None = None,
        offload_optimizer: bool = False,
    ) -> None:
        if accumulate < 1:
            raise ValueError(f"accumulate: must be at least 1, got {accumulate}")
        if accumulate > 1 and not rule.accumulates:
            raise ValueError(f"accumulate: {type(rule).__name__} updates several times a batch; use accumulate 1")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm: must be positive, got {clip_norm}")
        self.rule = rule
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.groups = rule.parameter_groups()
        self.optimizers: dict[Key, Optimizer] = {key: make_optimizer(group) for key, group in self.groups.items()}
        self._offloads = offload_optimizer
        if offload_optimizer:
            if self._device.type == "cpu":
                raise ValueError(
                    "offload_optimizer: on a CPU the optimisers' state is in host memory as it is; leave it out, or "
                    "train on an accelerator"
                )
            for optimizer in self.optimizers.values():
                OffloadedState(optimizer)
        self._shared = shared_parameters(self.groups)
        for key, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * rule.lr_factor(key)
        self._base_lr = {
            key: [group["lr"] for group in optimizer.param_groups] for key, optimizer in self.optimizers.items()
        }

    @property
    def _device(self) -> torch.device:
        return next(self.rule.parameters()).device

    def step(
        self, number: int, x: Tensor, y: Tensor, *, blocks: range | None = None, lr_factor: float | None = 1.0
    ) -> list[BlockStep]:
        """Do one optimiser step of every group on a batch, or of the groups of some blocks.

        Args:
            number: The step's number, which seeds what is random in it.
            x: Inputs, or with `blocks` the input of the first of them. Shape (N, ...).
            y: Targets. Shape (N,).
            blocks: The blocks to train; default all.
            lr_factor: Factor of every learning rate; None leaves the rates to the caller's own schedulers.

        Returns:
            One entry an update, in the rule's order. Losses are means over the whole batch, logits are those of all of
            it; logs are of its last part.
        """
        if lr_factor is not None:
            for key, optimizer in self.optimizers.items():
                for group, base in zip(optimizer.param_groups, self._base_lr[key], strict=True):
                    group["lr"] = base * lr_factor
        self.rule.begin(number)
        if self.accumulate == 1 or len(y) == 0:  # an empty batch is refused by the rule
            return [self._update(step) for step in self.rule.steps(x, y, blocks=blocks)]
        return self._accumulated(x, y, blocks)

    def _accumulated(self, x: Tensor, y: Tensor, blocks: range | None) -> list[BlockStep]:
        parts = list(zip(x.chunk(self.accumulate), y.chunk(self.accumulate), strict=True))
        waiting: dict[tuple[Key, nn.Parameter], Tensor] = {}
        losses: dict[Key, Tensor] = {}
        logits: dict[Key, list[Tensor]] = {}
        done = []
        for number, (part_x, part_y) in enumerate(parts):
            scale = len(part_y) / len(y)
            for step in self.rule.steps(part_x, part_y, blocks=blocks, scale=scale):
                if step.loss is not None:
                    losses[step.key] = losses.get(step.key, 0.0) + scale * step.loss
                if step.logits is not None:
                    logits.setdefault(step.key, []).append(step.logits)
                # Each group keeps its own sum of a shared gradient, as each optimiser keeps its own state of it.
                for parameter in self.groups[step.key]:
                    if parameter in self._shared and parameter.grad is not None:
                        total = parameter.grad + waiting.get((step.key, parameter), 0.0)
                        waiting[step.key, parameter] = total
                        parameter.grad = total if number == len(parts) - 1 else None
                if number == len(parts) - 1:
                    whole = torch.cat(logits[step.key]) if step.key in logits else None
                    done.append(replace(self._update(step), loss=losses.get(step.key), logits=whole))
        return done

    def _update(self, step: BlockStep) -> BlockStep:
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.groups[step.key], self.clip_norm)
        optimizer = self.optimizers[step.key]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return replace(step, output=None)  # what is kept must not hold activations

    def state_dict(self) -> dict[str, object]:
        """Return every optimiser's state, by the name of its group."""
        if self._offloads:  # the last steps' moves into host memory may still be going on
            torch.get_device_module(self._device).synchronize(self._device)
        return {key_name(key): optimizer.state_dict() for key, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        """Restore `state_dict()`.

        Raises:
            ValueError: The groups are not those of this rule.
        """
        names = {key_name(key): optimizer for key, optimizer in self.optimizers.items()}
        if set(names) != set(state):
            raise ValueError(f"optimizers: the checkpoint has groups {sorted(state)}, this run has {sorted(names)}")
        for name, optimizer in names.items():
            optimizer.load_state_dict(state[name])


def key_name(key: Key) -> str:
    """Write a group's key as text: "3.block", "network"."""
    block, group = key
    return group if block is None else f"{block}.{group}"
