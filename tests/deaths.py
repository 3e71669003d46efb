"""Ways for a process to die or be signalled at an exact place, for children that patch their own copy of a library."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any, BinaryIO

import torch


def strike(signal_name: str = "SIGKILL") -> None:
    os.kill(os.getpid(), getattr(signal, signal_name))


def around(
    owner: Any,
    name: str,
    when: str,
    count: int = 1,
    signal_name: str = "SIGKILL",
    matches: Callable[..., bool] = lambda *args: True,
) -> None:
    """Strike "before" or "after" the call number `count` of those that match."""
    original, calls = getattr(owner, name), [0]

    def patched(*args: Any, **kwargs: Any) -> Any:
        calls[0] += matches(*args)
        due = calls[0] == count and matches(*args)
        if due and when == "before":
            strike(signal_name)
        result = original(*args, **kwargs)
        if due and when == "after":
            strike(signal_name)
        return result

    setattr(owner, name, patched)


class DyingFile:
    """Dies by SIGKILL once so many bytes have reached the file."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file, self.left = file, limit

    def write(self, data: bytes) -> int:
        part = bytes(data[: self.left])
        self.file.write(part)
        self.left -= len(part)
        if self.left == 0:
            self.file.flush()
            strike()
        return len(part)

    def flush(self) -> None:
        self.file.flush()


def after_bytes(limit: int) -> None:
    """Die inside the next `torch.save`."""
    original = torch.save
    torch.save = lambda payload, file: original(payload, DyingFile(file, limit))
