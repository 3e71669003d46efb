"""Live curves in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localprop.record.recorder import scalars


class TensorBoardSink:
    """Writes every number of every row as a scalar.

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
        self._writer = writer(str(directory), purge_step=purge_step)

    def write(self, row: Mapping[str, object]) -> None:
        """Draw the row's numbers at its step."""
        for name, value in scalars(row):
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Write what is still held back."""
        self._writer.close()
