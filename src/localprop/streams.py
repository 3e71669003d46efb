"""The standard streams of the command line: results on standard output, words to the user on standard error."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO


def open_all() -> None:
    """Lead streams that the caller has closed to nowhere, and let standard output take every letter.

    Else the next file opened takes the number of a closed stream.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 # for good
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # no result is lost for a letter that a terminal has not


def lead_nowhere(stream: TextIO) -> None:
    """Let what is still written to a stream go nowhere: its reader has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(*lines: str) -> None:
    """Tell the user something on standard error."""
    with suppress(OSError):  # with nobody to tell, the exit code has to do
        for line in lines:
            print(f"localprop: {line}", file=sys.stderr)


@contextmanager
def saying_warnings() -> Iterator[None]:
    """Tell warnings that are meant for the user in one line each, without the code that gave them."""

    def tell(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is UserWarning:
            say(f"warning: {message}")
        else:
            shown(message, category, filename, lineno, file, line)

    shown = warnings.showwarning
    warnings.showwarning = tell
    try:
        yield
    finally:
        warnings.showwarning = shown


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print columns of rows on standard output, each as wide as its widest cell."""
    cells = [[str(row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_numbers(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows of one kind as a table under a header, numbers with four digits and a dash for none."""
    header = {column: column for column in rows[0]}
    cells = [
        {
            column: "-" if value is None else f"{value:.4g}" if isinstance(value, float) else value
            for column, value in row.items()
        }
        for row in rows
    ]
    print_table([header, *cells], tuple(header))
