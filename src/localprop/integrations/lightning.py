"""Train by local learning in Lightning, with its loggers, checkpoints and processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from localprop.functional.precision import full_precision
from localprop.integrations.reduction import average_gradients, broadcast
from localprop.rules import Rule
from localprop.train.errors import TrainingError
from localprop.train.executor import LocalExecutor
from localprop.train.finite import loss_problem, parameter_problem
from localprop.types import BlockStep, Key

try:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
except ImportError as missing:
    raise ImportError(
        "localprop.integrations.lightning needs a package that is not installed: pip install 'localprop[lightning]'",
        name=missing.name,
    ) from missing

__all__ = ["LocalDDPStrategy", "LocalModule"]

_MOST_UNCHECKED = 1000
"""Losses that are kept before they are looked at: reading them waits for the device."""
_PRECISIONS = ("32-true", "64-true", "bf16-mixed")


class LocalModule(LightningModule):
    """Train a rule in a Lightning `Trainer`: one optimiser a parameter group, stepped when its gradients are final.

    Batches are pairs (x, y). A batch is one step of the trainer, however many optimisers there are: `global_step`,
    `max_steps` and `every_n_train_steps` count batches, and the step's number seeds what is random in it.

    In training it logs `loss/NAME` and `error/NAME` of every block; in validation `validation_error`, of the network's
    answer, and `validation_error/NAME`; in testing the same with `test_error`. Errors are in percent, and left out
    where a block makes no prediction.

    Args:
        rule: The rule, from `localprop.methods.build`.
        optimizer: Builds the optimiser of a group of parameters.
        scheduler: Builds the learning-rate scheduler of an optimiser; None keeps the rate.
        interval: Whether schedulers step after every "step" or after every "epoch".
        accumulate: Number of equal parts that a batch is cut into; gradients are added up before a step.
        clip_norm: Largest 2-norm of a group's gradient, positive; None clips nothing.

    Raises:
        ValueError: The rule is none, or trains in phases; the optimiser is built already; an interval that is neither.

    Note: The trainer's `precision` sets the rule's `autocast_dtype`. Over several processes use `LocalDDPStrategy`.
        Callbacks see `on_before_optimizer_step` once for every group.

    Example:
        >>> import torch, localprop
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> rule = localprop.methods.build("dcl", localprop.split(model), num_classes=3, example=torch.zeros(2, 8))
        >>> module = LocalModule(rule, lambda params: torch.optim.SGD(params, lr=0.1))
        >>> module.automatic_optimization
        False
    """

    def __init__(
        self,
        rule: Rule,
        optimizer: Callable[[list[nn.Parameter]], Optimizer],
        *,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        interval: Literal["step", "epoch"] = "epoch",
        accumulate: int = 1,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(rule, Rule):
            raise ValueError(f"rule: need a rule, got a {type(rule).__name__}; use localprop.methods.build")
        _refuse_phases(rule)
        if not callable(optimizer):
            raise ValueError(
                f"optimizer: need a function that builds the optimiser of a group, got a {type(optimizer).__name__}; "
                "use lambda params: torch.optim.AdamW(params, lr=5e-4)"
            )
        if interval not in ("step", "epoch"):
            raise ValueError(f"interval: must be 'step' or 'epoch', got {interval!r}")
        self.automatic_optimization = False
        self.rule = rule
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self._interval = interval
        self._accumulate = accumulate
        self._clip_norm = clip_norm
        self._executor: _Executor | None = None
        self._unchecked: list[tuple[int, BlockStep]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the network's answer, shape (N, Z)."""
        return self.rule.predict(x)

    def setup(self, stage: str) -> None:
        """Refuse what local learning cannot do, before anything is trained.

        Raises:
            ValueError: A strategy or a precision that would give wrong gradients.
        """
        strategy, precision = self.trainer.strategy, self.trainer.precision
        if stage == "fit" and not isinstance(strategy, (SingleDeviceStrategy, LocalDDPStrategy)):
            raise ValueError(
                f"strategy: {type(strategy).__name__} is made for one backward pass a step, local learning has one "
                "a block; use Trainer(strategy=LocalDDPStrategy()) from localprop.integrations.lightning"
            )
        if precision not in _PRECISIONS:
            raise ValueError(f"precision: must be one of {', '.join(_PRECISIONS)}, got {precision!r}")
        self.rule.autocast_dtype = torch.bfloat16 if precision == "bf16-mixed" else None

    def configure_optimizers(self) -> Any:
        """Build an optimiser for every parameter group, and its scheduler."""
        executor = _Executor(self.rule, self._built, accumulate=self._accumulate, clip_norm=self._clip_norm)
        self._executor = executor
        optimizers = list(executor.optimizers.values())
        if self._make_scheduler is None:
            return optimizers
        schedulers = [self._make_scheduler(optimizer) for optimizer in optimizers]
        for built in schedulers:
            if isinstance(built, ReduceLROnPlateau) or not isinstance(built, LRScheduler):
                raise ValueError(
                    "scheduler: must build a scheduler of torch.optim.lr_scheduler that waits for no metric, got a "
                    f"{type(built).__name__}"
                )
        return optimizers, schedulers

    def on_fit_start(self) -> None:
        """Train in training mode, and step through Lightning's optimisers, which callbacks and profilers follow."""
        assert self._executor is not None
        self.rule.train()
        self._unchecked = []
        wrapped: Any = self.optimizers()  # one that is alone comes without a list
        listed = wrapped if isinstance(wrapped, list) else [wrapped]
        self._executor.optimizers = dict(zip(self._executor.groups, listed, strict=True))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Do one step of every group."""
        assert self._executor is not None
        x, y = _pair(batch)
        number = self.global_step
        with full_precision(y):  # as without Lightning: the rule switches autocast on where it belongs
            steps = self._executor.step(number, x, y, lr_factor=None)
        if self.trainer.world_size > 1:
            broadcast(self.rule.buffers())
        if self._interval == "step":
            self._step_schedulers()
        self._unchecked += [(number, BlockStep(step.key, step.loss)) for step in steps]
        if len(self._unchecked) >= _MOST_UNCHECKED:
            self._refuse_infinite_losses()
        names = self.rule.net.names
        for step in {step.key: step for step in steps}.values():
            if step.loss is not None:
                self.log(f"loss/{_name(step.key, names)}", step.loss, batch_size=len(y))
            if step.logits is not None and not y.is_floating_point():
                self.log(f"error/{_name(step.key, names)}", _error(step.logits, y), batch_size=len(y))

    def on_train_epoch_end(self) -> None:
        """Look at the losses, and step schedulers that go by epochs."""
        self._refuse_infinite_losses()
        if self._interval == "epoch":
            self._step_schedulers()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the errors on a batch of validation samples."""
        self._evaluate("validation_error", batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the errors on a batch of test samples."""
        self._evaluate("test_error", batch)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the logits of the network's answer, shape (N, Z); of a pair (x, y) the labels are not looked at."""
        with full_precision(next(self.parameters())):
            return self.rule.predict(batch[0] if isinstance(batch, (list, tuple)) else batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to write a checkpoint that is not finite over a good one.

        Raises:
            TrainingError: A loss or a parameter is not finite.
        """
        self._refuse_infinite_losses()
        problem = parameter_problem(self.rule.state_dict(), self.rule.net.names)
        if problem:
            raise TrainingError(f"{problem}; lower the learning rate, and go on from the last checkpoint")

    def _built(self, parameters: list[nn.Parameter]) -> Optimizer:
        optimizer: object = self._make_optimizer(parameters)
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"optimizer: must build a torch.optim.Optimizer, got a {type(optimizer).__name__}")
        return optimizer

    def _evaluate(self, metric: str, batch: Any) -> None:
        x, y = _pair(batch)
        if y.is_floating_point():
            raise ValueError(f"y: errors are of classes, got {y.dtype}; give validation_step a metric of your own")
        with full_precision(y):
            exits = self.rule.exits(x)
            answer = self.rule.answer(exits)
        self.log(metric, _error(answer, y), batch_size=len(y), prog_bar=True, sync_dist=True)
        for name, logits in zip(self.rule.net.names, exits, strict=True):
            if logits is not None:
                self.log(f"{metric}/{name}", _error(logits, y), batch_size=len(y), sync_dist=True)

    def _step_schedulers(self) -> None:
        found = self.lr_schedulers()
        for scheduler in found if isinstance(found, list) else [found]:
            if isinstance(scheduler, LRScheduler):
                scheduler.step()

    def _refuse_infinite_losses(self) -> None:
        problem = loss_problem(self._unchecked, self.rule.net.names)
        self._unchecked = []
        if problem:
            raise TrainingError(f"{problem}; lower the learning rate, and go on from the last checkpoint")


class LocalDDPStrategy(DDPStrategy):
    """Train on several processes, each on its part of every batch, with a reduction of gradients for every block.

    All processes begin with the weights of the first. A block's gradients are averaged over the processes as soon as
    its backward pass is done, all its tensors at once, and its optimiser steps when they are there. Nothing is wrapped:
    Lightning's own "ddp" wraps the module for one backward pass a step and keeps a copy of all gradients.

    The mean over processes is the gradient of the joint batch where a loss is a mean over samples, the parts are of
    equal size, and no block looks at the batch as a whole. So it is not with batch normalisation, whose statistics are
    those of each part (after a step all processes have the running ones of the first), and with losses that compare
    the samples of a batch.

    Note: All processes draw alike: samples at the same place in their parts get the same dropout mask.

    Example:
        >>> strategy = LocalDDPStrategy(process_group_backend="gloo")
    """

    def configure_ddp(self) -> None:
        """Give all processes the weights and buffers of the first."""
        assert self.model is not None
        broadcast([*self.model.parameters(), *self.model.buffers()])


class _Executor(LocalExecutor):
    """Average gradients over the processes, and let the first update of a batch count as the trainer's step."""

    def _update(self, step: BlockStep) -> BlockStep:
        average_gradients(self.groups[step.key])
        done = super()._update(step)
        for optimizer in self.optimizers.values():  # Lightning sets them again before every batch
            for hook in ("_on_before_step", "_on_after_step"):
                setattr(optimizer, hook, _nothing)
        return done


def _nothing() -> None:
    return


def _refuse_phases(rule: Rule) -> None:
    phases = rule.phases()
    if [phase.blocks for phase in phases] != [range(len(rule.net))] or phases[0].fraction != 1:
        raise ValueError(
            f"rule: {type(rule).__name__} trains in phases ({', '.join(phase.name for phase in phases)}), and may pass "
            "over the training set between them, for which Lightning's loop has no place; use `localprop train`"
        )


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (list, tuple)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        raise ValueError(
            f"batch: need a pair (x, y) of inputs and targets, got a {type(batch).__name__}; let the loader's "
            "collate_fn make one"
        )
    return batch[0], batch[1]


def _name(key: Key, names: Sequence[str]) -> str:
    block, group = key
    if block is None:
        return group
    return names[block] if group == "block" else f"{names[block]}.{group}"


def _error(logits: Tensor, y: Tensor) -> Tensor:
    """Return the share of wrong answers in percent."""
    return 100 * (logits.argmax(1) != y).float().mean()
