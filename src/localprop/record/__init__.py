"""Records of a run: a file of rows, and the views that follow it live."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from localprop.errors import nearest
from localprop.record.console import Console, make_console
from localprop.record.recorder import Picture, Points, Recorder, RecordError, Sink, read, scalars, truncate_after

__all__ = [
    "Console",
    "Picture",
    "Points",
    "RecordError",
    "Recorder",
    "Sink",
    "make_console",
    "read",
    "scalars",
    "sinks_from",
    "truncate_after",
]


def sinks_from(
    names: Sequence[str],
    directory: Path,
    *,
    project: str = "localprop",
    name: str | None = None,
    config: Mapping[str, object] | None = None,
    resumed_at: int | None = None,
) -> list[Sink]:
    """Build sinks by name.

    Args:
        names: Any of "tensorboard" and "wandb", each once.
        directory: The run's directory; sinks write to `tensorboard/` and `wandb/` in it.
        project: Name of the project, where the sink has projects.
        name: Name of the run, where the sink has names.
        config: The run's settings, where the sink shows them.
        resumed_at: Step that a resumed run goes on from, or None for a new run.

    Raises:
        ValueError: If a name is unknown or given twice, or the package behind it is missing.
    """

    def tensorboard() -> Sink:
        from localprop.record.tensorboard import TensorBoardSink

        return TensorBoardSink(directory / "tensorboard", resumed_at=resumed_at)

    def wandb() -> Sink:
        from localprop.record.wandb import WandbSink

        return WandbSink(directory, project=project, name=name, config=config or {})

    builders: dict[str, Callable[[], Sink]] = {"tensorboard": tensorboard, "wandb": wandb}
    for sink in names:
        if sink not in builders:
            raise ValueError(f"log must name any of {', '.join(builders)}, got {sink!r}{nearest(sink, builders)}")
        if list(names).count(sink) > 1:
            raise ValueError(f"log must name each of its entries once, got {sink!r} twice; name it once")
    sinks: list[Sink] = []
    try:
        for sink in names:
            sinks.append(builders[sink]())
    except BaseException:
        for built in sinks:
            with suppress(Exception):  # loggers may raise anything; what is reported is why they are closed
                built.close()
        raise
    return sinks
