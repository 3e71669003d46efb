"""One run under way: its loop over steps, its checkpoints and its evaluations."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from localprop.bench.memory import PeakMemory
from localprop.data.store import ImageSet
from localprop.infer.evaluate import Evaluation, evaluate
from localprop.record import Console
from localprop.seed import derive
from localprop.train import checkpoint, random_state
from localprop.train.assemble import (
    DataFacts,
    build_executor,
    build_loader,
    build_rule,
    evaluation_pairs,
    in_layout,
    load_data,
    resolve_device,
)
from localprop.train.components import find
from localprop.train.config import RunConfig
from localprop.train.directory import kept
from localprop.train.errors import Interrupted, TrainingError
from localprop.train.finite import loss_problem, parameter_problem
from localprop.train.rows import block_rows, evaluation_row
from localprop.types import BlockStep

Write = Callable[[Mapping[str, object]], None]
"""Takes a row of metrics."""


class Training:
    """One run under way: its parts, its place, and what it measured.

    Args:
        config: The run's settings.
        directory: The run directory.
    """

    def __init__(self, config: RunConfig, directory: Path) -> None:
        self.config = config
        self.directory = directory
        self.device = resolve_device(config.device)
        loaded = load_data(config)
        self.images, self.validation = loaded.data, loaded.validation
        self.facts = DataFacts.of(self.images)
        self.rule = build_rule(config, self.facts, self.device)
        self.loader = build_loader(config, self.images, self.rule, self.device)
        self.schedule = find("schedule", config.schedule.name).builder(**config.schedule.settings)
        limit = config.limit_batches
        self.steps_per_epoch = len(self.loader) if limit is None else min(limit, len(self.loader))
        self.total_steps = config.epochs * self.steps_per_epoch
        self.memory = PeakMemory(self.device)  # before the optimisers, whose state counts
        self.executor = build_executor(config, self.rule)
        self.step = 0
        self.step_seconds: list[float] = []
        self.train_seconds = 0.0
        self.peak_memory_bytes = 0
        self.evaluation: Evaluation | None = None
        self._unchecked: list[tuple[int, BlockStep]] = []

    def run(self, write: Write, console: Console, interrupted: threading.Event) -> None:
        """Train from the present step to the end.

        Args:
            write: Takes the rows of metrics.
            console: Shows the progress.
            interrupted: Set from outside to stop after the step under way.

        Raises:
            TrainingError: A loss or a parameter is not finite, or the disk is full.
            Interrupted: The event was set; a checkpoint was written.
        """
        config = self.config
        self.rule.train()
        self.memory.reset()
        while self.step < self.total_steps:
            started = time.perf_counter()
            steps, y = self._train_step()
            seconds = time.perf_counter() - started
            self.step_seconds.append(seconds)
            self.train_seconds += seconds
            self._unchecked += [(self.step, step) for step in steps]
            self.step += 1
            at_epoch = self.step % self.steps_per_epoch == 0
            if at_epoch or self.step % config.log_every == 0:
                self._check_losses()
                self._record_step(write, console, steps, y, seconds)
            if at_epoch:
                self._evaluate(write, console)
            due = at_epoch if config.checkpoint_every is None else self.step % config.checkpoint_every == 0
            if due or interrupted.is_set() or self.step == self.total_steps:
                self._save()
            if interrupted.is_set() and self.step < self.total_steps:
                raise Interrupted(
                    f"interrupted at step {self.step} of {self.total_steps}; "
                    "run the same command with --resume auto to go on"
                )
        if self.evaluation is None:  # resumed at the end: the rows are written, the numbers are wanted
            self.evaluation = self._evaluate_on("test", self.images.test, lambda row: None, console)
        self.peak_memory_bytes = max(self.peak_memory_bytes, self.memory.peak())

    def restore(self) -> None:
        """Go to the newest checkpoint, or to the start if there is none.

        Raises:
            ValueError: The checkpoint is damaged, or not one of this run.
        """
        newest = checkpoint.newest(self.directory / "checkpoint")
        if newest is None:
            random_state.seed_generators(derive(self.config.seed, "global"))
            return
        state = checkpoint.load(newest)
        try:
            self.rule.load_state_dict(state["rule"])
            self.executor.load_state_dict(state["optimizers"])
            random_state.restore(state["random"], self.device)
            self.step = operator.index(state["step"])
            if not 0 <= self.step <= self.total_steps:
                raise ValueError(f"it stands at step {self.step} of {self.total_steps}")
            self.step_seconds = list(state["step_seconds"])
            self.train_seconds = state["train_seconds"]
            self.peak_memory_bytes = state["peak_memory_bytes"]
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"checkpoint {newest} does not fit this run ({type(error).__name__}: {reason}); "
                "it was written by another version, or for another network; choose another --out"
            ) from error

    def _train_step(self) -> tuple[list[BlockStep], Tensor]:
        epoch, index = divmod(self.step, self.steps_per_epoch)
        x, y = self.loader.batch(epoch * len(self.loader) + index)
        factor = self.schedule(self.step / self.total_steps)
        return self.executor.step(self.step, in_layout(x, self.rule), y, lr_factor=factor), y

    def _place(self) -> dict[str, float]:
        return {"step": self.step, "epoch": self.step / self.steps_per_epoch}

    def _record_step(
        self, write: Write, console: Console, steps: Sequence[BlockStep], y: Tensor, seconds: float
    ) -> None:
        rows = block_rows(steps, y, place=self._place(), names=self.rule.net.names)
        for row in rows:
            write(row)
        speed = len(y) / seconds
        lr = next(iter(self.executor.optimizers.values())).param_groups[0]["lr"]
        measured = {"lr": float(lr), "images_per_second": speed, "step_seconds": seconds}
        write({"kind": "step", **self._place(), **measured})
        last = rows[-1] if rows else {"loss": None, "error": None}
        epoch = self.step / self.steps_per_epoch
        console.step(self.step, epoch=epoch, loss=last["loss"], images_per_second=speed, error=last["error"])

    def _evaluate(self, write: Write, console: Console) -> None:
        # Without held-out images the test errors are followed over training; nothing is ever chosen by them.
        if self.validation is not None:
            self._evaluate_on("validation", self.validation, write, console)
        if self.validation is None or self.step == self.total_steps:
            self.evaluation = self._evaluate_on("test", self.images.test, write, console)

    def _evaluate_on(self, split: str, images: ImageSet, write: Write, console: Console) -> Evaluation:
        found = evaluate(self.rule, evaluation_pairs(self.config, images, self.facts, self.rule, self.device))
        row = evaluation_row(found, split, place=self._place())
        write(row)
        console.evaluation(row)
        return found

    def _save(self) -> None:
        self._check_losses()
        state = self.rule.state_dict()
        if problem := parameter_problem(state, self.rule.net.names):
            raise self._diverged(f"{problem} after step {self.step - 1}")
        self.peak_memory_bytes = max(self.peak_memory_bytes, self.memory.peak())
        content = {
            "config": self.config.to_dict(),
            "data": asdict(self.facts),
            "step": self.step,
            "rule": state,
            "optimizers": self.executor.state_dict(),
            "random": random_state.capture(self.device),
            "step_seconds": self.step_seconds,
            "train_seconds": self.train_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }
        try:
            checkpoint.save(self.directory / "checkpoint", content, step=self.step, keep=self.config.keep)
        except checkpoint.CheckpointError as error:
            raise TrainingError(str(error)) from error

    def _check_losses(self) -> None:
        """Stop if a loss since the last check is not finite."""
        unchecked, self._unchecked = self._unchecked, []
        if problem := loss_problem(unchecked, self.rule.net.names):
            raise self._diverged(problem)

    def _diverged(self, problem: str) -> TrainingError:
        return TrainingError(f"{problem}; {kept(self.directory)}. Try a smaller --optimizer.lr, or --clip-norm 1")
