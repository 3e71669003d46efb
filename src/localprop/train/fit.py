"""The training loop: one run from its settings to its final numbers, interrupted and resumed at will."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from localprop.bench.memory import PeakMemory
from localprop.data.store import ImageSet
from localprop.infer.evaluate import Evaluation, evaluate
from localprop.record import Recorder, RecordError, make_console, sinks_from, truncate_after
from localprop.seed import derive
from localprop.train import checkpoint
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
from localprop.train.executor import key_name
from localprop.train.provenance import commit, hardware, versions
from localprop.types import BlockStep, Key

FREE_SETTINGS = ("log", "log_every", "keep", "checkpoint_every", "threads")
"""Settings that may change between the parts of an interrupted run."""

_OWN = ("config.yaml", "metrics.jsonl", "checkpoint", "tensorboard", "wandb")
_STALE = re.compile(r"\.(config\.yaml|metrics\.jsonl|final\.json)\.tmp-\d+")


class TrainingError(RuntimeError):
    """Training cannot go on; the last good checkpoint is kept."""


class Interrupted(Exception):
    """Training was stopped by a signal, after writing a checkpoint."""


def fit(
    config: RunConfig,
    directory: Path,
    *,
    resume: bool = False,
    stream: TextIO = sys.stderr,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a network and write the run directory: config.yaml, metrics.jsonl, checkpoint/, final.json.

    Args:
        config: The run's settings.
        directory: The run directory.
        resume: Start, or go on from the newest checkpoint, or return the numbers of a finished run unchanged.
        stream: Where progress is shown.
        notes: Lines to show before training.

    Returns:
        The content of final.json.

    Raises:
        ValueError: The settings, the data or the directory do not fit.
        TrainingError: A loss or a parameter is not finite, or the disk is full.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written.
    """
    final = directory / "final.json"
    _check_directory(config, directory, resume)
    if resume and final.exists():
        finished: dict[str, Any] = json.loads(final.read_text(encoding="utf-8"))
        return finished
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with _signals(signal.default_int_handler):  # outside of the loop there is nothing to save
        training = Training(config, directory)
        directory.mkdir(parents=True, exist_ok=True)
        for stale in [entry for entry in directory.iterdir() if _STALE.fullmatch(entry.name)]:
            stale.unlink(missing_ok=True)
        training.restore()
        _write(directory / "config.yaml", config.to_yaml())
        _train(training, stream, notes)
        content = training.final()
        write_json(final, content)
    return content


def _train(training: Training, stream: TextIO, notes: Sequence[str]) -> None:
    """Run the loop, with its rows recorded and its progress shown."""
    config, directory = training.config, training.directory
    metrics = directory / "metrics.jsonl"
    truncate_after(metrics, training.step)
    sinks = sinks_from(config.log, directory, config=config.to_dict(), resumed_at=training.step or None)
    console = make_console(stream, total_steps=training.total_steps, epochs=config.epochs)
    interrupted = threading.Event()
    try:
        with Recorder(metrics, sinks) as recorder, console, _signals(lambda number, frame: interrupted.set()):
            for note in notes:
                console.note(note)
            training.run(recorder.write, console, interrupted)
    except RecordError as error:
        raise TrainingError(f"{error}; {training.kept()}") from error


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
        self._unchecked: list[tuple[int, list[BlockStep]]] = []

    def run(self, write: Callable[[Mapping[str, object]], None], console: Any, interrupted: threading.Event) -> None:
        """Train from the present step to the end."""
        config = self.config
        self.rule.train()
        self.memory.reset()
        while self.step < self.total_steps:
            started = time.perf_counter()
            steps, y = self._train_step()
            seconds = time.perf_counter() - started
            self.step_seconds.append(seconds)
            self.train_seconds += seconds
            self._unchecked.append((self.step, steps))
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

    def _train_step(self) -> tuple[list[BlockStep], Tensor]:
        epoch, index = divmod(self.step, self.steps_per_epoch)
        x, y = self.loader.batch(epoch * len(self.loader) + index)
        factor = self.schedule(self.step / self.total_steps)
        return self.executor.step(self.step, in_layout(x, self.rule), y, lr_factor=factor), y

    def _check_losses(self) -> None:
        """Stop at the first block whose loss is not finite; one reading for all steps since the last check."""
        entries = [(number, step) for number, steps in self._unchecked for step in steps if step.loss is not None]
        self._unchecked = []
        if not entries:
            return
        finite = torch.stack([step.loss for _, step in entries if step.loss is not None]).isfinite()
        if not bool(finite.all()):
            number, step = entries[int((~finite).nonzero()[0])]
            loss = float(step.loss) if step.loss is not None else float("nan")
            raise TrainingError(
                f"the loss of {self._block_name(step.key)} is {loss} at step {number}; {self.kept()}. "
                "Try a smaller --optimizer.lr, or --clip-norm 1"
            )

    def kept(self) -> str:
        """Say where a failed run can go on from."""
        newest = checkpoint.newest(self.directory / "checkpoint")
        return f"the last good checkpoint is {newest}" if newest else "no checkpoint was written yet"

    def _block_name(self, key: Key) -> str:
        return "the network" if key[0] is None else f"block {key[0]} ({self.rule.net.names[key[0]]})"

    def _owner(self, parameter: str) -> str:
        """Name a parameter and its block."""
        found = re.match(r"(?:net\.blocks|objectives)\.(\d+)\.", parameter)
        where = f" of {self._block_name((int(found[1]), ''))}" if found else ""
        return f"the parameter {parameter}{where}"

    def _record_step(
        self,
        write: Callable[[Mapping[str, object]], None],
        console: Any,
        steps: list[BlockStep],
        y: Tensor,
        seconds: float,
    ) -> None:
        epoch = self.step / self.steps_per_epoch
        loss = error = None
        for step in steps:
            if step.loss is None:
                continue
            block, _ = step.key
            last = step.logits is not None and len(step.logits)
            wrong = (step.logits.argmax(1) != y[-last:]).float().mean() if step.logits is not None else None
            error = None if wrong is None else 100 * float(wrong)
            loss = float(step.loss)
            row = {
                "kind": "block",
                "step": self.step,
                "epoch": epoch,
                "block": block,
                "name": key_name(step.key),
            }
            if block is not None:
                row["name"] = self.rule.net.names[block]
            logs = {name: float(value) for name, value in step.logs.items()}
            write({**row, "loss": loss, "error": error, **logs})
        speed = len(y) / seconds
        lr = next(iter(self.executor.optimizers.values())).param_groups[0]["lr"]
        write(
            {
                "kind": "step",
                "step": self.step,
                "epoch": epoch,
                "lr": float(lr),
                "images_per_second": speed,
                "step_seconds": seconds,
            }
        )
        console.step(self.step, epoch=epoch, loss=loss, images_per_second=speed, error=error)

    def _evaluate(self, write: Callable[[Mapping[str, object]], None], console: Any) -> None:
        # Without held-out images the test errors are followed over training; nothing is ever chosen by them.
        if self.validation is not None:
            self._evaluate_on("validation", self.validation, write, console)
        if self.validation is None or self.step == self.total_steps:
            self.evaluation = self._evaluate_on("test", self.images.test, write, console)

    def _evaluate_on(
        self, split: str, images: ImageSet, write: Callable[[Mapping[str, object]], None], console: Any
    ) -> Evaluation:
        pairs = evaluation_pairs(self.config, images, self.facts, self.rule, self.device)
        found = evaluate(self.rule, pairs)
        row = {
            "kind": "evaluation",
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "split": split,
            "error": found.error,
            "layer_errors": list(found.layer_errors),
            "ensemble_errors": dict(found.ensemble_errors),
        }
        write(row)
        console.evaluation(row)
        return found

    def _save(self) -> None:
        self._check_losses()
        state = self.rule.state_dict()
        for name, value in state.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise TrainingError(
                    f"{self._owner(name)} is not finite after step {self.step - 1}; {self.kept()}. "
                    "Try a smaller --optimizer.lr, or --clip-norm 1"
                )
        self.peak_memory_bytes = max(self.peak_memory_bytes, self.memory.peak())
        content = {
            "config": self.config.to_dict(),
            "data": asdict(self.facts),
            "step": self.step,
            "rule": state,
            "optimizers": self.executor.state_dict(),
            "random": _random_state(self.device),
            "step_seconds": self.step_seconds,
            "train_seconds": self.train_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
        }
        try:
            checkpoint.save(self.directory / "checkpoint", content, step=self.step, keep=self.config.keep)
        except checkpoint.CheckpointError as error:
            raise TrainingError(str(error)) from error

    def restore(self) -> None:
        """Go to the newest checkpoint, or to the start if there is none.

        Raises:
            ValueError: The checkpoint is damaged, or not one of this run.
        """
        newest = checkpoint.newest(self.directory / "checkpoint")
        if newest is None:
            _seed_global_generators(derive(self.config.seed, "global"))
            return
        state = checkpoint.load(newest)
        try:
            self.rule.load_state_dict(state["rule"])
            self.executor.load_state_dict(state["optimizers"])
            _restore_random_state(state["random"], self.device)
            self.step = state["step"]
            self.step_seconds = list(state["step_seconds"])
            self.train_seconds = state["train_seconds"]
            self.peak_memory_bytes = state["peak_memory_bytes"]
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"checkpoint {newest} does not fit this run ({type(error).__name__}: {reason}); "
                "it was written by another version, or for another network; choose another --out"
            ) from error

    def final(self) -> dict[str, Any]:
        """Return the content of final.json."""
        config, found = self.config, self.evaluation
        assert found is not None
        in_network = sum(parameter.numel() for parameter in self.rule.net.parameters())
        in_groups = {parameter for group in self.executor.groups.values() for parameter in group}
        trained = sum(parameter.numel() for parameter in in_groups | set(self.rule.net.parameters()))
        return {
            "method": config.method.name,
            "model": config.model.name,
            "data": config.data.name,
            "seed": config.seed,
            "epochs": config.epochs,
            "test_error": found.error,
            "layer_errors": list(found.layer_errors),
            "ensemble_error": found.ensemble_errors[config.ensemble],
            "ensemble_weights": config.ensemble,
            "ensemble_errors": dict(found.ensemble_errors),
            "test_images": found.num_images,
            "block_names": list(self.rule.net.names),
            "parameters": in_network,
            "extra_parameters": trained - in_network,
            "step_seconds": statistics.median(self.step_seconds),
            "peak_memory_bytes": self.peak_memory_bytes,
            "train_seconds": self.train_seconds,
            "weights_sha256": checkpoint.weights_sha256(self.rule.state_dict()),
            "settings": config.to_dict(),
            "hardware": hardware(self.device),
            "versions": versions(),
            "commit": commit(),
        }


def write_json(path: Path, content: object) -> None:
    """Write a file that is either complete or not there.

    Raises:
        TrainingError: The file cannot be written.
    """
    _write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror}; free space and run again with --resume auto"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _check_directory(config: RunConfig, directory: Path, resume: bool) -> None:
    if directory.is_file():
        raise ValueError(f"--out {directory}: this is a file; name a directory")
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not resume:
        raise ValueError(
            f"--out {directory}: the directory is not empty; go on with --resume auto, or choose another --out"
        )
    newest = checkpoint.newest(directory / "checkpoint")
    if newest is None:
        names = {entry.name for entry in directory.iterdir()}
        strangers = {name for name in names - set(_OWN) if not _STALE.fullmatch(name)}
        if strangers and not (directory / "final.json").exists():
            raise ValueError(
                f"--out {directory}: not a run of localprop ({sorted(strangers)[0]} lies in it); choose another --out"
            )
    try:
        if (directory / "final.json").exists():
            stored = json.loads((directory / "final.json").read_text(encoding="utf-8"))["settings"]
        elif newest is not None:
            stored = checkpoint.load(newest)["config"]
        else:
            return
        changed = _changed(config.to_dict(), dict(stored))
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"--out {directory}: its files are not those of a run of localprop ({type(error).__name__}: {error}); "
            "choose another --out"
        ) from error
    if changed:
        raise ValueError(
            f"--resume auto: {directory} was begun with other settings: {'; '.join(changed)}; "
            "use the same ones, or another --out"
        )


def _changed(wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Name the settings that differ, those of components by their dotted flag."""
    wanted, stored = _flat(wanted), _flat(stored)
    return [
        f"{name} is {wanted.get(name)}, was {stored.get(name)}"
        for name in dict.fromkeys([*stored, *wanted])
        if name not in FREE_SETTINGS and stored.get(name) != wanted.get(name)
    ]


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Spell nested settings as flags do: {"model": {"name": N, "width": W}} as model and model.width."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {name if key == "name" else f"{name}.{key}": entry for key, entry in value.items()}
        else:
            flat[name] = value
    return flat


@contextmanager
def _signals(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Answer SIGINT and SIGTERM with a handler."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _seed_global_generators(seed: int) -> None:
    """Seed the global generators. Our own draws are derived from seeds; third-party methods may use these."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _random_state(device: torch.device) -> dict[str, Any]:
    """Collect the states of the global generators."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # the global state is meant
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [str(kind), [int(key) for key in np.asarray(keys)], *rest],
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def _restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    if device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"])
