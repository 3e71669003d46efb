"""Live curves, pictures and points in Weights & Biases."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from localprop.record.recorder import Picture, Points, scalars

_logger = logging.getLogger(__name__)


class WandbSink:
    """Logs every number of every row, pictures as images, and points as tables, which its 2D projector reads.

    WANDB_MODE decides between online and offline. Where neither it nor WANDB_API_KEY is set, the run is kept
    offline, which needs no login, and a warning says so.

    Args:
        directory: Where the files go, under `wandb/`.
        project: Name of the project.
        name: Name of the run, or None for one that wandb makes up.
        config: The run's settings, shown beside the curves.

    Raises:
        ValueError: If the wandb package is missing or the run cannot be started.
    """

    def __init__(self, directory: Path, *, project: str, name: str | None, config: Mapping[str, object]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                "log 'wandb' needs a package that is not installed: pip install \"localprop[wandb]\""
            ) from error
        offline = not os.environ.get("WANDB_MODE") and not os.environ.get("WANDB_API_KEY")
        directory.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                dir=str(directory),
                project=project,
                name=name,
                config=dict(config),
                mode="offline" if offline else None,
                settings=wandb.Settings(console="off"),  # otherwise it takes over standard output
            )
        except wandb.Error as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"log 'wandb' could not start a run: {reason}; set WANDB_MODE=offline or log in with wandb login"
            ) from error
        if offline:
            _logger.warning(
                "wandb: neither WANDB_MODE nor WANDB_API_KEY is set, so the run stays offline under %s; "
                "upload it later with wandb sync",
                directory / "wandb",
            )

    def write(self, row: Mapping[str, object]) -> None:
        """Log the row's numbers at its step; rows of one step are gathered."""
        step = row["step"]
        assert isinstance(step, int)
        self._run.log(dict(scalars(row)), step=step)

    def show(self, exhibit: Picture | Points, step: int) -> None:
        """Log a picture, or points as a table of label and coordinates; tables hold no pictures."""
        import wandb

        if isinstance(exhibit, Picture):
            self._run.log({exhibit.name: wandb.Image(exhibit.pixels)}, step=step)
            return
        axes = [f"x{axis}" for axis in range(exhibit.vectors.shape[1])]
        rows = [[label, *vector.tolist()] for label, vector in zip(exhibit.labels, exhibit.vectors, strict=True)]
        self._run.log({exhibit.name: wandb.Table(columns=["label", *axes], data=rows)}, step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
