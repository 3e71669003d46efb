"""Checkpoints that survive a kill at any moment and that never execute code."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = "localprop-checkpoint"
VERSION = 1

_NAME = re.compile(r"step-(\d{8,})\.pt")
_STALE = re.compile(r"\.step-\d{8,}\.pt\.tmp-\d+")
_ZIP_MAGIC = b"PK\x03\x04"
_MAPPINGS = (dict, OrderedDict, Counter)
_SEQUENCES = (list, tuple, set, torch.Size)
_LEAVES = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.device)


class CheckpointError(ValueError):
    """Says in one line which checkpoint file is wrong, what is wrong with it, and what to do."""


def save(directory: Path, state: Mapping[str, Any], *, step: int, keep: int) -> Path:
    """Write a checkpoint atomically and delete the ones that are no longer kept.

    A process killed at any moment leaves either the previous checkpoints or the new one, always complete.
    Temporary files of killed processes are removed first: their space may be what this one needs.

    Args:
        directory: Where the checkpoints of one run lie; made if it is missing. One writer at a time.
        state: Tensors and plain values (dict, list, tuple, set, str, bytes, numbers, None), nested at will.
        step: Optimiser steps done, >= 0 and not less than that of the newest checkpoint.
        keep: Number of newest checkpoints that stay, >= 1.

    Returns:
        The path of the new checkpoint.

    Raises:
        ValueError: If an argument is out of range or `state` holds what `load` would refuse.
        CheckpointError: If the disk is full or the directory cannot be written; nothing is lost.
    """
    if step < 0:
        raise ValueError(f"step must be >= 0, got {step}; pass the number of optimiser steps done")
    if keep < 1:
        raise ValueError(f"keep must be >= 1, got {keep}; with none kept a run could not be resumed")
    if not getattr(torch.serialization, "get_crc32_options", lambda: True)():
        raise ValueError(
            "torch.serialization.set_crc32_options must be True, got False: "
            "damage to a checkpoint could not be noticed; call set_crc32_options(True)"
        )
    _refuse_unloadable(dict(state), "state")
    latest = newest(directory)
    if latest is not None and step < _step(latest):
        raise ValueError(
            f"step must be >= that of the newest checkpoint {latest}, got {step}; "
            "delete the later checkpoints to go back"
        )
    path = directory / f"step-{step:08d}.pt"
    temporary = directory / f".{path.name}.tmp-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for stale in [entry for entry in directory.iterdir() if _STALE.fullmatch(entry.name)]:
            stale.unlink(missing_ok=True)
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, "state": dict(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync(directory)
        for old in _checkpoints(directory)[:-keep]:
            old.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        reason = _os_error(error)
        if reason is None:
            raise
        raise CheckpointError(_unwritten(path, reason)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def newest(directory: Path) -> Path | None:
    """Find the checkpoint with the highest step.

    Args:
        directory: Where the checkpoints of one run lie; it need not exist.

    Raises:
        CheckpointError: If the directory cannot be read.
    """
    try:
        paths = _checkpoints(directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(
            f"cannot read the checkpoints in {directory}: {error.strerror}; "
            "make it a readable directory or choose another"
        ) from error
    return paths[-1] if paths else None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, after checking every byte of it and executing none.

    Args:
        path: A file written by `save`.

    Returns:
        The state that was saved.

    Raises:
        CheckpointError: If the file cannot be read, is damaged, foreign, or of a newer format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    except OSError as error:
        raise CheckpointError(
            f"cannot read checkpoint {path}: {error.strerror}; check that it is there and may be read"
        ) from error
    if not is_zip:
        problem = "is empty" if size == 0 else "is not a localprop checkpoint"
        raise CheckpointError(f"checkpoint {path} {problem}; {_way_out(path)}")
    if not _is_intact(path):
        raise CheckpointError(f"checkpoint {path} is truncated or damaged; {_way_out(path)}")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a hostile file can make the reader raise anything
        raise CheckpointError(
            f"checkpoint {path} is not a localprop checkpoint ({type(error).__name__} while reading it); "
            f"{_way_out(path)}"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {path} is not a localprop checkpoint; {_way_out(path)}")
    version, state = payload.get("version"), payload.get("state")
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format version {version}, newer than {VERSION}, the newest that this "
            "localprop reads; upgrade localprop"
        )
    if version != VERSION or not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path} is not a localprop checkpoint; {_way_out(path)}")
    return state


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash names, dtypes, shapes and values, whatever the device, the memory format and the order.

    Args:
        state: Tensors by name, as `state_dict()` gives them.

    Returns:
        64 hexadecimal digits. Equal digits mean bitwise equal tensors.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().resolve_conj().resolve_neg()
        header = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(json.dumps(header).encode() + b"\n")
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        data = tensor.contiguous().reshape(-1).view(torch.uint8)
        if sys.byteorder == "big":
            data = data.reshape(-1, tensor.element_size()).flip(-1).contiguous()
        digest.update(data.numpy().data)
    return digest.hexdigest()


def _step(path: Path) -> int:
    """Read the step off a checkpoint's name, -1 for any other name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _checkpoints(directory: Path) -> list[Path]:
    """List the checkpoints by ascending step."""
    return sorted((path for path in directory.iterdir() if _step(path) >= 0), key=_step)


def _sync(directory: Path) -> None:
    """Force the directory's entries to the disk, so that a renamed file survives a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_unloadable(value: object, where: str) -> None:
    """Refuse at once what `load` would refuse when it is too late.

    Types are compared exactly: numpy's float64 is a float, and cannot be loaded without executing code.
    """
    if type(value) in _MAPPINGS:
        assert isinstance(value, Mapping)
        for key, item in value.items():
            _refuse_unloadable(key, f"a key of {where}")
            _refuse_unloadable(item, f"{where}[{key!r}]")
    elif type(value) in _SEQUENCES:
        assert isinstance(value, (list, tuple, set))
        for index, item in enumerate(value):
            _refuse_unloadable(item, f"{where}[{index}]")
    elif type(value) not in _LEAVES and not isinstance(value, Tensor):
        raise ValueError(
            f"{where} must be a tensor or a plain value, got {type(value).__name__}, which cannot be loaded "
            "without executing code; convert it first"
        )


def _is_intact(path: Path) -> bool:
    """Compare every record with its CRC-32, which torch's own reader does not do."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # a damaged archive can make the reader raise anything
        return False


def _os_error(error: BaseException) -> OSError | None:
    """Find the failed system call behind an error; torch hides it behind one of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _unwritten(path: Path, reason: OSError) -> str:
    """Phrase a failed write."""
    with suppress(CheckpointError):
        last = newest(path.parent)
        good = f"the last good checkpoint is {last.name}" if last else "there is no earlier checkpoint"
        return f"cannot write checkpoint {path}: {reason.strerror}; {good}, free space and run again with --resume auto"
    return f"cannot write checkpoint {path}: {reason.strerror}; make {path.parent} a writable directory"


def _way_out(path: Path) -> str:
    """Phrase what to do about an unusable checkpoint; choosing an older one is left to the user."""
    with suppress(OSError):
        older = [other for other in _checkpoints(path.parent) if _step(other) < _step(path)]
        if older:
            return f"delete {path} to continue from {older[-1].name}"
    return f"delete {path} to start anew"
