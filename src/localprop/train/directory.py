"""The directory of a run: whether a run may have it, and files in it that are complete or not there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from localprop.train import checkpoint
from localprop.train.config import RunConfig
from localprop.train.errors import TrainingError

FREE_SETTINGS = ("log", "log_every", "keep", "checkpoint_every", "threads", "feature_cache_mb")
"""Settings that may change between the parts of an interrupted run."""

_OWN = ("config.yaml", "metrics.jsonl", "checkpoint", "tensorboard", "wandb", "warm-up")
_STALE = re.compile(
    r"\.(config\.yaml|metrics\.jsonl|(final|cost|comparison|explain|exits)\.json|comparison\.md|.+\.html)\.tmp-\d+"
)


def check_unused(directory: Path, *, resume: bool) -> bool:
    """Tell whether nothing lies where a command wants to write; refuse what lies there unless it may go on with it.

    Args:
        directory: Where it wants to write; it need not exist.
        resume: Whether it may go on with what lies there.

    Raises:
        ValueError: It is a file, cannot be read, or holds something and `resume` is false.
    """
    with _refusals(directory):
        if directory.is_file():
            raise ValueError(f"--out {directory}: this is a file; name a directory")
        if not directory.exists() or not any(directory.iterdir()):
            return True
    if not resume:
        raise ValueError(
            f"--out {directory}: the directory is not empty; go on with --resume auto, or choose another --out"
        )
    return False


def check_run_directory(config: RunConfig, directory: Path, *, resume: bool) -> None:
    """Refuse a directory that this run must not write to.

    Args:
        config: The run's settings.
        directory: Where it wants to write; it need not exist.
        resume: Whether the run may go on with what lies there.

    Raises:
        ValueError: It is a file, holds something else, or a run that was begun with other settings.
    """
    if check_unused(directory, resume=resume):
        return
    with _refusals(directory):
        _check_same_run(config, directory)


def claim_directory(directory: Path) -> None:
    """Make the directory if it is missing, and remove the temporary files of killed processes.

    Raises:
        ValueError: It cannot be made, or nothing can be written there.
    """
    with _refusals(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=directory):  # a directory that was there before may be one that only others write to
            pass
        for stale in [entry for entry in directory.iterdir() if is_stale(entry)]:
            stale.unlink(missing_ok=True)


def is_stale(path: Path) -> bool:
    """Tell whether a file is what a process left that was killed while it wrote."""
    return _STALE.fullmatch(path.name) is not None


def write_json(path: Path, content: object) -> None:
    """Write a JSON file that is either complete or not there.

    Raises:
        TrainingError: The file cannot be written.
    """
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file that is either complete or not there.

    Raises:
        TrainingError: The file cannot be written.
    """
    try:
        replace_text(path, text)
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror}; free space and run again with --resume auto"
        ) from error


def replace_text(path: Path, text: str) -> None:
    """Write a text file that is either complete or as it was before.

    Raises:
        OSError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def kept(directory: Path) -> str:
    """Say where a failed run can go on from."""
    newest = checkpoint.newest(directory / "checkpoint")
    return f"the last good checkpoint is {newest}" if newest else "no checkpoint was written yet"


@contextmanager
def _refusals(directory: Path) -> Iterator[None]:
    """Say of a refused system call which flag chose the directory."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(
            f"--out {directory}: cannot be used as a run directory ({reason}); choose a directory that you can write to"
        ) from error


def _check_same_run(config: RunConfig, directory: Path) -> None:
    newest = checkpoint.newest(directory / "checkpoint")
    if newest is None:
        names = {entry.name for entry in directory.iterdir()}
        strangers = {name for name in names - set(_OWN) if not is_stale(Path(name))}
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
