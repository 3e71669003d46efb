"""Train one run from its settings to its final numbers, interrupted and resumed at will."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from localprop.functional.precision import subnormals_as_zero
from localprop.record import Recorder, RecordError, make_console, sinks_from, truncate_after
from localprop.train.config import RunConfig
from localprop.train.directory import check_run_directory, claim_directory, kept, write_json, write_text
from localprop.train.errors import Interrupted, TrainingError
from localprop.train.interrupt import answering_signals
from localprop.train.mistakes import check
from localprop.train.summary import summary
from localprop.train.training import Training
from localprop.train.weights import WARM_UP, warm_up_of

__all__ = ["Interrupted", "TrainingError", "fit"]


def fit(
    config: RunConfig,
    directory: Path,
    *,
    resume: bool = False,
    stream: TextIO = sys.stderr,
    notes: Sequence[str] = (),
    allow_imports: bool = False,
) -> dict[str, Any]:
    """Train a network and write the run directory: config.yaml, metrics.jsonl, checkpoint/, final.json.

    A warm-up by backprop is a run of its own in `warm-up` in that directory, from whose weights this one starts.

    Args:
        config: The run's settings.
        directory: The run directory.
        resume: Start, or go on from the newest checkpoint, or return the numbers of a finished run unchanged.
        stream: Where progress is shown.
        notes: Lines to show before training.
        allow_imports: Whether import paths in the settings of a run that gives its weights may be imported.

    Returns:
        The content of final.json.

    Raises:
        ValueError: The settings, the data or the directory do not fit.
        TrainingError: A loss or a parameter is not finite, or the disk is full.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written.
    """
    final = directory / "final.json"
    check_run_directory(config, directory, resume=resume)
    if resume and final.exists():
        finished: dict[str, Any] = json.loads(final.read_text(encoding="utf-8"))
        return finished
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    # Outside of the loop a signal finds nothing to save.
    with subnormals_as_zero(), answering_signals(signal.default_int_handler):
        if config.warmup_epochs is not None:
            # A mistake in the method's settings must not wait for the warm-up to end.
            check([config], allow_imports=allow_imports)
            claim_directory(directory)
            fit(
                warm_up_of(config),
                directory / WARM_UP,
                resume=True,
                stream=stream,
                notes=["warm-up by backprop"],
                allow_imports=allow_imports,
            )
        try:
            training = Training(config, directory, allow_imports=allow_imports)
        except ValueError:
            check([config], allow_imports=allow_imports)  # says all that is wrong, not only what was met first
            raise
        claim_directory(directory)
        training.restore()
        notes = [*notes, f"weights: {training.started_from}"] if training.started_from is not None else notes
        write_text(directory / "config.yaml", config.to_yaml())
        _train(training, stream, notes)
        content = summary(training)
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
        with Recorder(metrics, sinks) as recorder, console, answering_signals(lambda *_: interrupted.set()):
            for note in notes:
                console.note(note)
            training.run(recorder, console, interrupted)
    except RecordError as error:
        raise TrainingError(f"{error}; {kept(directory)}") from error
