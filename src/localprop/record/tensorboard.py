"""Live curves, pictures and points in TensorBoard."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localprop.record.recorder import Picture, Points, scalars


class TensorBoardSink:
    """Writes every number of every row as a scalar, pictures as images, points for the embedding projector.

    Args:
        directory: Where the event files go.
        resumed_at: Step that a resumed run goes on from; what was drawn after it is hidden.

    Raises:
        ValueError: If the tensorboard package is missing.
    """

    def __init__(self, directory: Path, *, resumed_at: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "log 'tensorboard' needs a package that is not installed: pip install \"localprop[tensorboard]\""
            ) from error
        purge_step = None if resumed_at is None else resumed_at + 1
        writer: Any = SummaryWriter  # torch leaves it untyped
        self._directory = directory
        self._writer = writer(str(directory), purge_step=purge_step)

    def write(self, row: Mapping[str, object]) -> None:
        """Draw the row's numbers at its step."""
        for name, value in scalars(row):
            self._writer.add_scalar(name, value, row["step"])

    def show(self, exhibit: Picture | Points, step: int) -> None:
        """Show a picture, or points in the projector."""
        if isinstance(exhibit, Picture):
            self._writer.add_image(exhibit.name, exhibit.pixels, step)
            return
        tag = re.sub(r"\W+", "-", exhibit.name)  # it becomes a directory
        labels = [re.sub(r"\s+", " ", label) for label in exhibit.labels]  # the projector's file has a line a point
        # A resumed run shows a step again, of which the writer would complain on standard output.
        shutil.rmtree(self._directory / f"{step:05d}" / tag, ignore_errors=True)
        self._writer.add_embedding(exhibit.vectors, labels, exhibit.images, step, tag)

    def close(self) -> None:
        """Write what is still held back."""
        self._writer.close()
