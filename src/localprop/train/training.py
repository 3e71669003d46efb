"""One run under way: its loop over steps, its checkpoints and its evaluations."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from localprop.bench.memory import PeakMemory
from localprop.data.augment import Augmentation
from localprop.data.curriculum import Curriculum
from localprop.data.store import ImageSet
from localprop.infer.ensemble import learn_weights
from localprop.infer.evaluate import Evaluation, evaluate
from localprop.network import in_mode
from localprop.record import Console, Recorder
from localprop.seed import derive
from localprop.train import checkpoint, random_state
from localprop.train.assemble import (
    DataFacts,
    build_executor,
    build_loader,
    build_rule,
    evaluation_pairs,
    load_data,
    num_steps,
    resolve_device,
    steps_per_epoch,
)
from localprop.train.components import find
from localprop.train.config import RunConfig
from localprop.train.curriculum import curriculum_order
from localprop.train.directory import kept
from localprop.train.errors import Interrupted, TrainingError
from localprop.train.exhibits import exhibits
from localprop.train.features import Inputs
from localprop.train.finite import loss_problem, parameter_problem
from localprop.train.phases import Borders, Stretch, plan, step_in
from localprop.train.rows import block_rows, dictionary_rows, evaluation_row
from localprop.train.stopwatch import Stopwatch
from localprop.train.weights import starting_network
from localprop.types import BlockStep

Write = Callable[[Mapping[str, object]], None]
"""Takes a row of metrics."""


class Training:
    """One run under way: its parts, its place, and what it measured.

    Args:
        config: The run's settings.
        directory: The run directory.
        allow_imports: Whether import paths in the settings of a run that gives its weights may be imported.
    """

    def __init__(self, config: RunConfig, directory: Path, *, allow_imports: bool = False) -> None:
        self.config = config
        self.directory = directory
        self.device = resolve_device(config.device)
        loaded = load_data(config)
        self.images, self.validation = loaded.data, loaded.validation
        self.facts = DataFacts.of(self.images)
        stored = directory / "checkpoint"
        begins = not stored.is_dir() or checkpoint.newest(stored) is None
        model, self.started_from = starting_network(config, self.facts, directory, begins, allow_imports)
        self.rule = build_rule(config, self.facts, self.device, model)
        self.loader = build_loader(config, self.images, self.rule, self.device)
        if config.curriculum is not None and begins:  # a run that goes on has its order in the checkpoint
            self._follow(curriculum_order(config, self.images, allow_imports=allow_imports))
        self.schedule = find("schedule", config.schedule.name).builder(**config.schedule.settings)
        self.steps_per_epoch = steps_per_epoch(config, self.loader)
        phases = self.rule.phases()
        self.total_steps = num_steps(config, phases, self.loader)
        stretches = plan(phases, num_blocks=len(self.rule.net), total_steps=self.total_steps)
        self.borders = Borders(self.rule, stretches, lambda: self._pairs(self.images.train, config))
        if config.feature_cache_mb is not None and self.images.augmentation != Augmentation():
            raise ValueError(
                f"--feature-cache-mb {config.feature_cache_mb}: features of augmented images differ each time; "
                "switch the augmentation off (--data.flip false --data.crop-padding 0), or leave this setting out"
            )
        self.inputs = Inputs(self.rule, self.loader, cache_mb=config.feature_cache_mb, directory=directory)
        self.memory = PeakMemory(self.device)  # before the optimisers, whose state counts
        self.executor = build_executor(config, self.rule)
        self.step = 0
        self.watch = Stopwatch(self.device)
        self.peak_memory_bytes = 0
        self.evaluation: Evaluation | None = None
        self.learned_weights: list[float] | None = None
        self._restored = False
        self._stretch: Stretch | None = None
        self._unchecked: list[tuple[int, BlockStep]] = []

    def run(self, recorder: Recorder, console: Console, interrupted: threading.Event) -> None:
        """Train from the present step to the end.

        Args:
            recorder: Takes the rows of metrics.
            console: Shows the progress.
            interrupted: Set from outside to stop after the step under way.

        Raises:
            TrainingError: A loss or a parameter is not finite, or the disk is full.
            Interrupted: The event was set; a checkpoint was written.
        """
        config = self.config
        self.rule.train()
        self.memory.reset()
        if not self._restored:
            with self.watch.between():
                self.borders.after(0)
            if self.total_steps == 0:
                self._evaluate(recorder, console)
                self._save()
        while self.step < self.total_steps:
            if self.borders.at(self.step) is not self._stretch:
                with self.watch.between():
                    self._enter(console)
            with self.watch.step():
                steps, y = self._train_step()
            self._unchecked += [(self.step, step) for step in steps]
            self.step += 1
            with self.watch.between():
                self.borders.after(self.step)
            at_epoch = self.step % self.steps_per_epoch == 0
            if at_epoch or self.step % config.log_every == 0:
                self._check_losses()
                self._record_step(recorder.write, console, steps, y)
            if at_epoch:
                self._evaluate(recorder, console)
            due = at_epoch if config.checkpoint_every is None else self.step % config.checkpoint_every == 0
            if due or interrupted.is_set() or self.step == self.total_steps:
                self._save()
            if interrupted.is_set() and self.step < self.total_steps:
                raise Interrupted(
                    f"interrupted at step {self.step} of {self.total_steps}; "
                    "run the same command with --resume auto to go on"
                )
        if self.evaluation is None:  # resumed at the end: the rows are written, the numbers are wanted
            self._evaluate_test(lambda row: None, console)
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
        self._restored = True
        try:
            self.rule.load_state_dict(state["rule"])
            self.executor.load_state_dict(state["optimizers"])
            random_state.restore(state["random"], self.device)
            if self.config.curriculum is not None:
                self._follow(state["curriculum"])
            self.step = operator.index(state["step"])
            if not 0 <= self.step <= self.total_steps:
                raise ValueError(f"it stands at step {self.step} of {self.total_steps}")
            self.watch.step_seconds = list(state["step_seconds"])
            self.watch.train_seconds = state["train_seconds"]
            self.peak_memory_bytes = state["peak_memory_bytes"]
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"checkpoint {newest} does not fit this run ({type(error).__name__}: {reason}); "
                "it was written by another version, or for another network; choose another --out"
            ) from error

    def _follow(self, order: Tensor) -> None:
        """Draw the training images by a curriculum."""
        if len(order) != self.loader.num_images:
            raise ValueError(f"its curriculum is of {len(order)} images, there are {self.loader.num_images}")
        num_batches = self.config.epochs * len(self.loader)
        self.loader.curriculum = Curriculum(order, self.config.pacing, num_batches)

    def _train_step(self) -> tuple[list[BlockStep], Tensor]:
        assert self._stretch is not None
        epoch, index = divmod(self.step, self.steps_per_epoch)
        x, y = self.inputs.batch(epoch * len(self.loader) + index)
        factor = self.schedule(self._stretch.progress(self.step))
        return step_in(self._stretch.phase, self.executor, self.step, x, y, lr_factor=factor), y

    def _enter(self, console: Console) -> None:
        """Turn to the phase of the present step."""
        self.borders.before(self.step)
        self._stretch = self.borders.at(self.step)
        phase, everything = self._stretch.phase, replace(self.config, limit_batches=None)
        try:
            source = self.inputs.enter(phase, self._pairs(self.images.train, everything))
        except OSError as error:
            raise TrainingError(
                f"cannot keep features in {self.directory}: {error.strerror}; {kept(self.directory)}. "
                "Free space, or leave --feature-cache-mb out"
            ) from error
        if len(self.borders.stretches) > 1:
            console.note(f"phase {phase.name}: {self._stretch.stop - self.step} steps {source}")

    def _place(self) -> dict[str, object]:
        place: dict[str, object] = {"step": self.step, "epoch": self.step / self.steps_per_epoch}
        if len(self.borders.stretches) > 1 and self._stretch is not None:
            place["phase"] = self._stretch.phase.name
        return place

    def _pairs(self, images: ImageSet, config: RunConfig) -> Iterator[tuple[Tensor, Tensor]]:
        return evaluation_pairs(config, images, self.facts, self.rule, self.device)

    def _record_step(self, write: Write, console: Console, steps: Sequence[BlockStep], y: Tensor) -> None:
        rows = block_rows(steps, y, place=self._place(), names=self.rule.net.names)
        for row in rows:
            write(row)
        seconds = self.watch.step_seconds[-1]
        speed = len(y) / seconds
        lr = next(iter(self.executor.optimizers.values())).param_groups[0]["lr"]
        measured = {"lr": float(lr), "images_per_second": speed, "step_seconds": seconds}
        write({"kind": "step", **self._place(), **measured})
        told = [row for row in rows if row["loss"] is not None]
        predicting = [row for row in told if row["error"] is not None]
        last = next(reversed(predicting or told), {"loss": None, "error": None})
        epoch = self.step / self.steps_per_epoch
        console.step(self.step, epoch=epoch, loss=last["loss"], images_per_second=speed, error=last["error"])

    def _evaluate(self, recorder: Recorder, console: Console) -> None:
        write = recorder.write
        # Without held-out images the test errors are followed over training; nothing is ever chosen by them.
        if self.validation is not None:
            self._evaluate_on("validation", self.validation, write, console)
        if self.validation is None or self.step == self.total_steps:
            self._evaluate_test(write, console)
        for row in dictionary_rows(self.rule, place=self._place()):
            write(row)
        if recorder.shows:
            unseen = self.images.test if self.validation is None else self.validation
            with in_mode(self.rule, training=False):
                for exhibit in exhibits(self.rule, unseen, self.facts, self.device):
                    recorder.show(exhibit, self.step)

    def _evaluate_test(self, write: Write, console: Console) -> None:
        if self.validation is not None:
            with in_mode(self.rule, training=False):
                self.learned_weights = learn_weights(self.rule, self._pairs(self.validation, self.config))
        self.evaluation = self._evaluate_on("test", self.images.test, write, console)

    def _evaluate_on(self, split: str, images: ImageSet, write: Write, console: Console) -> Evaluation:
        learned = self.learned_weights if split == "test" else None
        found = evaluate(self.rule, self._pairs(images, self.config), learned)
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
            "step_seconds": self.watch.step_seconds,
            "train_seconds": self.watch.train_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }
        if self.loader.curriculum is not None:
            content["curriculum"] = self.loader.curriculum.order
        try:
            checkpoint.save(self.directory / "checkpoint", content, step=self.step, keep=self.config.keep)
        except checkpoint.CheckpointError as error:
            raise TrainingError(str(error)) from error

    def _check_losses(self) -> None:
        """Stop if a loss since the last check is not finite."""
        self.watch.settle()
        unchecked, self._unchecked = self._unchecked, []
        if problem := loss_problem(unchecked, self.rule.net.names):
            raise self._diverged(problem)

    def _diverged(self, problem: str) -> TrainingError:
        return TrainingError(f"{problem}; {kept(self.directory)}. Try a smaller --optimizer.lr, or --clip-norm 1")
