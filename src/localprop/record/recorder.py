"""The rows of a run, one JSON object a line: the truth from which everything else is made."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

_PLACES = ("kind", "step", "epoch", "block", "name", "split")


class RecordError(ValueError):
    """Says in one line which record file is wrong, what is wrong with it, and what to do."""


class Picture(NamedTuple):
    """A picture for live loggers.

    Attributes:
        name: What it shows.
        pixels: In [0, 1]. Shape (C, H, W), C of 1 or 3.
    """

    name: str
    pixels: Tensor


class Points(NamedTuple):
    """Points in a space of many dimensions, for live loggers that let one look around in it.

    Attributes:
        name: What they are.
        vectors: Shape (N, D), float32.
        labels: A word a point.
        images: A picture a point, in [0, 1], or None. Shape (N, C, H, W).
    """

    name: str
    vectors: Tensor
    labels: Sequence[str]
    images: Tensor | None


class Sink(Protocol):
    """Takes every recorded row to somewhere else."""

    def write(self, row: Mapping[str, object]) -> None:
        """Take one row."""

    def show(self, exhibit: Picture | Points, step: int) -> None:
        """Take a picture or points, after so many optimiser steps."""

    def close(self) -> None:
        """Send what is still held back."""


class Recorder:
    """Appends rows to a file, each written at once: a kill tears at most the last line.

    Args:
        path: The file; made, with its directory, if it is missing.
        sinks: Where rows go besides.

    Raises:
        RecordError: If the file cannot be written or ends in a torn line (`truncate_after` removes it).
    """

    def __init__(self, path: Path, sinks: Sequence[Sink] = ()) -> None:
        self._path = path
        self._sinks = tuple(sinks)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = _ends_torn(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _failed("write", path, error) from error
        if torn:
            self._file.close()
            raise RecordError(f"{path} ends in a torn line; truncate it after the last good step first")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, row: Mapping[str, object]) -> None:
        """Append a row and hand it to the sinks.

        Args:
            row: Its "kind", its "step" (optimiser steps done), and plain values; the keys keep their order.

        Raises:
            ValueError: If the row lacks its kind or step, or holds a value that JSON cannot.
            RecordError: If the file cannot be written; the rows before stay whole.
        """
        if not isinstance(row.get("kind"), str) or not isinstance(row.get("step"), int):
            raise ValueError(f"a row must have a 'kind' (str) and a 'step' (int), got {dict(row)!r}")
        _refuse_unwritable(row, "row")
        line = json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(start)
            raise _failed("write", self._path, error) from error
        for sink in self._sinks:
            sink.write(row)

    @property
    def shows(self) -> bool:
        """Whether anybody looks at what `show` is given."""
        return bool(self._sinks)

    def show(self, exhibit: Picture | Points, step: int) -> None:
        """Hand a picture or points to the sinks; they are no part of the record."""
        for sink in self._sinks:
            sink.show(exhibit, step)

    def close(self) -> None:
        """Close the file and the sinks; closing twice is harmless."""
        sinks, self._sinks = self._sinks, ()
        self._file.close()
        for sink in sinks:
            sink.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Read all rows; a torn last line, left by a kill, is ignored.

    Args:
        path: A file written by `Recorder`.

    Raises:
        RecordError: If the file cannot be read, or a line that is not the last is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _failed("read", path, error) from error
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        row = _parse(line)
        if row is None:
            raise RecordError(f"{path}, line {number}: expected one JSON object, got {_excerpt(line)}; delete the line")
        rows.append(row)
    return rows


def truncate_after(path: Path, step: int) -> None:
    """Drop the rows of steps that a resumed run will do again, and a torn last line, atomically.

    Args:
        path: A file written by `Recorder`; a missing one stays missing.
        step: Rows with a "step" up to this stay, >= 0.

    Raises:
        RecordError: If the file is damaged before its last line or cannot be written.
    """
    if not path.exists():
        return
    kept = [row for row in read(path) if row["step"] <= step]
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            for row in kept:
                file.write(json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _failed("write", path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def scalars(row: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """Name a row's numbers as curves: "block/3/loss", "evaluation/test/error", "evaluation/test/layer/3".

    Args:
        row: A recorded row. None, text, and the numbers that say where the row belongs give no curve.
    """
    # A group of the whole network has no block: its name tells it from others.
    owner = "name" if "block" in row and row["block"] is None else "block"
    place = [str(row[key]) for key in ("kind", owner, "split") if key in row]
    for key, value in row.items():
        if key in _PLACES:
            continue
        group = [*place, key.removesuffix("_errors")]
        if isinstance(value, Mapping):
            members = [([*group, str(name)], item) for name, item in value.items()]
        elif isinstance(value, (list, tuple)):
            members = [([*group, str(index)], item) for index, item in enumerate(value)]
        else:
            members = [([*place, key], value)]
        for path, item in members:
            if isinstance(item, (int, float)) and not isinstance(item, bool):
                yield "/".join(path), float(item)


def _refuse_unwritable(value: object, where: str) -> None:
    """Refuse what JSON cannot hold, naming where it stands."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where} must have text as keys, got {key!r}")
            _refuse_unwritable(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_unwritable(item, f"{where}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} must be finite, got {value}; stop the run or record None")
    elif value is not None and not isinstance(value, (str, int)):
        raise ValueError(
            f"{where} must be a number, text, None, a list or a mapping, got {type(value).__name__}; convert it"
        )


def _parse(line: bytes) -> dict[str, Any] | None:
    """Parse one line, None if it is no row."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _ends_torn(path: Path) -> bool:
    """Whether the last line lacks its end."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _excerpt(line: bytes) -> str:
    """Show the beginning of a line."""
    text = line.decode(errors="replace")
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _failed(verb: str, path: Path, error: OSError) -> RecordError:
    """Phrase a failed system call."""
    return RecordError(f"cannot {verb} {path}: {error.strerror}; check free space and permissions")
