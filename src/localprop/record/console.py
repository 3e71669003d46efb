"""Progress on standard error: a bar on a terminal, plain aligned lines when piped."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EMPTY = "-"


class Console(Protocol):
    """Shows a run while it goes on."""

    def __enter__(self) -> Console:
        """Return the console itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""

    def note(self, text: str) -> None:
        """Show a line of text."""

    def step(
        self,
        step: int,
        *,
        epoch: float,
        loss: float | None,
        images_per_second: float,
        error: float | None = None,
    ) -> None:
        """Show the progress.

        Args:
            step: Optimiser steps done, >= 1.
            epoch: Passes over the training set done, so 1.0 at the end of the first.
            loss: Loss of the last block, None where there is none.
            images_per_second: Training speed.
            error: Error of the network's answer on the training batch, percent.
        """

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Show a recorded row of the kind "evaluation"."""

    def close(self) -> None:
        """Show what is still held back and leave the stream to others; closing twice is harmless."""


def make_console(stream: TextIO, *, total_steps: int, epochs: float) -> Console:
    """Choose the form that the stream can show.

    Args:
        stream: Where to show it, normally standard error.
        total_steps: Optimiser steps of the whole run, >= 0.
        epochs: Passes over the training set of the whole run.
    """
    if stream.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return TerminalConsole(stream, total_steps=total_steps, epochs=epochs)
    return PlainConsole(stream, total_steps=total_steps, epochs=epochs)


class TerminalConsole:
    """A progress bar that is redrawn in place."""

    def __init__(self, stream: TextIO, *, total_steps: int, epochs: float) -> None:
        self._epochs = epochs
        self._started = False
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[error]}"),
            TextColumn("{task.fields[speed]} images/s"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=RichConsole(file=stream),
            expand=True,
            refresh_per_second=4,
            redirect_stdout=False,  # standard output is for JSON alone
            redirect_stderr=stream is sys.stderr,
        )
        self._task = self._progress.add_task(
            "", start=False, total=total_steps, epoch=_EMPTY, loss=_EMPTY, error="", speed=_EMPTY
        )

    def __enter__(self) -> TerminalConsole:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(
        self,
        step: int,
        *,
        epoch: float,
        loss: float | None,
        images_per_second: float,
        error: float | None = None,
    ) -> None:
        """Move the bar; the first step starts it."""
        if not self._started:
            self._started = True
            # A resumed run's first steps were done by another process: they say nothing about the time left.
            self._progress.update(self._task, completed=step - 1)
            self._progress.start()
            self._progress.start_task(self._task)
        self._progress.update(
            self._task,
            completed=step,
            epoch=f"{_epoch_number(epoch)}/{self._epochs:g}",
            loss=_number(loss, ".4f"),
            speed=f"{images_per_second:.0f}",
        )

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Show the error beside the bar."""
        self._progress.update(self._task, error=f"{row['split']} error {_percent(row['error'])}")

    def close(self) -> None:
        """Draw the bar a last time and leave it standing."""
        if self._started:
            self._progress.stop()


class PlainConsole:
    """A table that grows by one line an epoch; neither carriage returns nor escape codes.

    Loss and training error are means over the steps shown since the line before. The table has the errors of
    one split, the first one evaluated; those of another get lines of their own.
    """

    def __init__(self, stream: TextIO, *, total_steps: int, epochs: float) -> None:
        self._stream = stream
        self._total_steps = total_steps
        self._epochs = epochs
        self._split: str | None = None
        self._start: tuple[int, float] | None = None
        self._last: tuple[int, float, float] | None = None
        self._losses: list[float] = []
        self._errors: list[float] = []

    def __enter__(self) -> PlainConsole:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._stream, flush=True)

    def step(
        self,
        step: int,
        *,
        epoch: float,
        loss: float | None,
        images_per_second: float,
        error: float | None = None,
    ) -> None:
        """Gather the step; the first one of an epoch prints the epoch before, if no evaluation has."""
        if self._start is None:
            self._start = (step - 1, time.monotonic())
        if self._last is not None and _epoch_number(epoch) > _epoch_number(self._last[1]):
            self._print_line(None)
        self._last = (step, epoch, images_per_second)
        if loss is not None:
            self._losses.append(loss)
        if error is not None:
            self._errors.append(error)

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """Print the line of the steps that led to this evaluation."""
        split = row["split"]
        if self._last is not None and self._split in (None, split):
            self._print_line(row)
        else:
            best = _best_layer(row.get("layer_errors", ()))
            layer = "" if best == _EMPTY else f", best layer {best}"
            self.note(f"{split} error {_percent(row['error'])} at step {row['step']}{layer}")

    def close(self) -> None:
        """Print the steps of an unfinished epoch."""
        if self._last is not None:
            self._print_line(None)

    def _print_line(self, evaluation: Mapping[str, Any] | None) -> None:
        """Print the gathered steps and forget them."""
        assert self._last is not None
        step, epoch, images_per_second = self._last
        if self._split is None:
            self._split = str(evaluation["split"]) if evaluation else "test"
            self._print_cells(
                "epoch",
                "step",
                "loss",
                "train error",
                f"{self._split} error",
                "best layer",
                "images/s",
                "time left",
            )
        self._print_cells(
            f"{epoch:.2f}",
            str(step),
            _number(_mean(self._losses), ".4f"),
            _percent(_mean(self._errors)),
            _percent(evaluation["error"]) if evaluation else _EMPTY,
            _best_layer(evaluation.get("layer_errors", ())) if evaluation else _EMPTY,
            f"{images_per_second:.0f}",
            self._time_left(step),
        )
        self._last, self._losses, self._errors = None, [], []

    def _print_cells(self, *cells: str) -> None:
        """Print one line, every column right-aligned."""
        step_width = max(6, len(str(self._total_steps)))
        widths = (len(f"{self._epochs:.2f}") + 2, step_width, 9, 12, 17, 12, 9, 10)
        line = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        self.note(line)

    def _time_left(self, step: int) -> str:
        """Extrapolate from the steps of this process, evaluations included."""
        assert self._start is not None
        first_step, first_time = self._start
        seconds_per_step = (time.monotonic() - first_time) / (step - first_step)
        return _duration(max(0, self._total_steps - step) * seconds_per_step)


def _epoch_number(epoch: float) -> int:
    """Count the epochs begun, at least 1; a rounding error begins none."""
    return max(1, math.ceil(epoch - 1e-6))


def _mean(values: list[float]) -> float | None:
    """Average, None of nothing."""
    return sum(values) / len(values) if values else None


def _number(value: float | None, form: str) -> str:
    """Format a number that may be missing."""
    return _EMPTY if value is None else format(value, form)


def _percent(value: float | None) -> str:
    """Format percent."""
    return _EMPTY if value is None else f"{value:.2f}%"


def _best_layer(errors: Any) -> str:
    """Name the block with the least error, and that error."""
    known = [(error, index) for index, error in enumerate(errors) if error is not None]
    if not known:
        return _EMPTY
    error, index = min(known)
    return f"{index} ({_percent(error)})"


def _duration(seconds: float) -> str:
    """Format a time as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
