"""Errors over training: mean and spread over the seeds of a method, evaluation by evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localprop.report.rows import MeanStd, Row, mean_std, mean_std_or_none
from localprop.report.runs import read_evaluations


@dataclass(frozen=True)
class Curves:
    """Errors of one method at every evaluation, over its seeds, percent."""

    epochs: tuple[float, ...]
    network: tuple[MeanStd, ...]
    layers: tuple[tuple[MeanStd, ...] | None, ...]

    @property
    def lines(self) -> list[tuple[MeanStd, ...]]:
        """The network's answer and every block that has a prediction."""
        return [self.network, *(layer for layer in self.layers if layer is not None)]


def read_curves(directories: Sequence[Path], row: Row, split: str = "test") -> Curves:
    """Read the evaluations of every seed of one method and take their means.

    Args:
        directories: The run directories, one a seed of the row, in that order.
        row: The method.
        split: The images that were evaluated: "test", or "validation" where the runs held some out.

    Raises:
        ValueError: If the seeds were not evaluated at the same epochs.
    """
    runs = [read_evaluations(directory, split) for directory in directories]
    epochs = tuple(evaluation.epoch for evaluation in runs[0])
    for seed, run in zip(row.seeds, runs, strict=True):
        if tuple(evaluation.epoch for evaluation in run) != epochs:
            raise ValueError(
                f"{row.method}: every seed must be evaluated at the same epochs, got "
                f"{[evaluation.epoch for evaluation in run]} for seed {seed} and {list(epochs)} for seed "
                f"{row.seeds[0]}; repeat the runs with one setting"
            )
        if any(len(evaluation.layer_errors) != len(row.layer_errors) for evaluation in run):
            raise ValueError(
                f"{row.method}: every evaluation of seed {seed} must have {len(row.layer_errors)} "
                "layer_errors, as final.json has; repeat this run"
            )
    moments = list(zip(*runs, strict=True))
    layers = []
    for index in range(len(row.layer_errors)):
        errors = [mean_std_or_none([e.layer_errors[index] for e in moment]) for moment in moments]
        present = tuple(error for error in errors if error is not None)
        layers.append(present if len(present) == len(moments) else None)
    return Curves(epochs, tuple(mean_std([e.error for e in moment]) for moment in moments), tuple(layers))


def needs_log_scale(curves: Sequence[Curves]) -> bool:
    """Whether the errors, all above zero, span more than a decade."""
    errors = [point.mean for curve in curves for line in curve.lines for point in line]
    return min(errors) > 0 and max(errors) / min(errors) > 10
