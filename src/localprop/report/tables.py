"""Write a comparison as one table: Markdown, JSON, or for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue
from pydantic_core import to_jsonable_python
from rich import box
from rich.table import Table
from rich.text import Text

from localprop.report.labels import (
    NONE,
    caption,
    human_count,
    human_estimate,
    human_ratio,
    own_recipes,
    pairs,
    protocol_label,
    seeds_label,
    shared_settings,
)
from localprop.report.rows import MeanStd, Row


@dataclass(frozen=True)
class Column:
    """One column of a comparison, or one for every block.

    Attributes:
        headers: One header, or one a block.
        values: The values of a method, one a header.
        write: Writes a value.
        meaning: What the values are.
    """

    headers: tuple[str, ...]
    values: Callable[[Row], Sequence[Any]]
    write: Callable[[Any], str]
    meaning: str

    @property
    def name(self) -> str:
        """The header, or the first and the last."""
        return self.headers[0] if len(self.headers) == 1 else f"{self.headers[0]} to {self.headers[-1]}"

    def cells(self, row: Row) -> list[str]:
        """Write the values of a method."""
        return [self.write(value) for value in self.values(row)]


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Lay out the columns of a comparison."""
    num_blocks = max(len(row.layer_errors) for row in rows)
    weights = ", ".join(dict.fromkeys(row.ensemble_weights for row in rows if row.ensemble_weights)) or NONE
    columns = [
        Column(("method",), lambda row: [row.method], str, _titles(rows)),
        Column(
            ("error %",),
            lambda row: [row.test_error],
            _percent,
            "error of the network's answer on the test set, in percent.",
        ),
        Column(
            ("all layers %",),
            lambda row: [row.ensemble_error],
            _percent,
            f"error of the weighted sum of the blocks' own predictions (weights: {weights}).",
        ),
        Column(
            ("extra parameters",),
            lambda row: [row.extra_parameters],
            human_count,
            "trained parameters (dictionaries, local classifiers) beside the network's own "
            f"{', '.join(dict.fromkeys(human_count(row.parameters) for row in rows))}.",
        ),
        Column(
            ("memory",),
            lambda row: [row.memory_ratio],
            human_ratio,
            "growth of the process's resident memory over training steps, as a multiple of backprop written "
            "by hand in plain PyTorch; it says little where the growth is under 150 MB.",
        ),
        Column(
            ("live tensors",),
            lambda row: [row.live_ratio],
            human_ratio,
            "peak bytes of tensors alive in a training step, as a multiple of backprop written by hand.",
        ),
        Column(
            ("step time",),
            lambda row: [(row.step_ratio, row.step_ratio_spread)],
            lambda ratio: human_ratio(*ratio),
            "time of a training step, as a multiple of backprop written by hand (in brackets the quartiles "
            "of the measured pairs).",
        ),
        Column(
            ("training s",),
            lambda row: [row.train_seconds],
            "{:.0f}".format,
            "seconds of all training steps of a run, with data loading and augmentation, without evaluation.",
        ),
    ]
    if num_blocks:
        layers = Column(
            tuple(f"b{index + 1}" for index in range(num_blocks)),
            lambda row: [*row.layer_errors, *[None] * (num_blocks - len(row.layer_errors))],
            _percent,
            f"error of each block's own prediction, in percent; {NONE} where a block has none.",
        )
        columns.insert(2, layers)
    measured = any(row.live_ratio is not None for row in rows)
    return [column for column in columns if measured or column.headers != ("live tensors",)]


def _percent(error: MeanStd | None) -> str:
    return human_estimate(error, 2)


def _titles(rows: Sequence[Row]) -> str:
    titles = [f"{row.method} is {row.title}" for row in rows if row.title != row.method]
    return "the training method" + (f": {'; '.join(titles)}." if titles else ".")


def _escape(text: str) -> str:
    for mark in ("\\", "|", "`", "*", "<", "["):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def markdown(rows: Sequence[Row]) -> str:
    """Write the comparison as a Markdown table with its caption and the meaning of every column."""
    columns = columns_of(rows)
    headers = [header for column in columns for header in column.headers]
    lines = [
        "| " + " | ".join(headers) + " |",
        "| :-- |" + " --: |" * (len(headers) - 1),
        *("| " + " | ".join(_escape(cell) for column in columns for cell in column.cells(row)) + " |" for row in rows),
    ]
    meanings = [f"- **{column.name}**: {_escape(column.meaning)}" for column in columns]
    settings = _escape(pairs(shared_settings(rows)))
    tail = [f"\nSettings: {settings}."] if settings else []
    if unlike := own_recipes(rows):
        tail.append(f"\nTrained by settings of their own: {_escape(unlike)}.")
    return "\n".join([_escape(caption(rows)), "", *lines, "", *meanings, *tail]) + "\n"


def to_json(rows: Sequence[Row]) -> dict[str, JsonValue]:
    """Write the comparison as plain JSON values: caption, meaning of every column, unrounded rows."""
    return {
        "caption": caption(rows),
        "own_recipes": own_recipes(rows),
        "columns": {column.name: column.meaning for column in columns_of(rows)},
        "rows": [{**to_jsonable_python(row), "num_seeds": row.num_seeds} for row in rows],
    }


def terminal(rows: Sequence[Row]) -> Table:
    """Lay the comparison out for a terminal of 100 columns; errors are rounded to one decimal."""
    table = Table(
        title=Text(f"{protocol_label(rows)}, {seeds_label(rows)}"),
        caption=Text(
            "errors in % at the last epoch; memory and time beside backprop written by hand"
            + (f"\ntrained by settings of their own: {unlike}" if (unlike := own_recipes(rows)) else "")
        ),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("method", overflow="fold")
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("each layer", overflow="fold")
    table.add_column("all layers", justify="right", no_wrap=True)
    for header in ("extra", "memory", "time"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        cells = (
            row.method,
            human_estimate(row.test_error, 1),
            _compact_layers(row),
            human_estimate(row.ensemble_error, 1),
            human_count(row.extra_parameters),
            human_ratio(row.memory_ratio),
            human_ratio(row.step_ratio),
        )
        table.add_row(*map(Text, cells))
    return table


def _compact_layers(row: Row) -> str:
    if not any(row.layer_errors):
        return NONE
    return " ".join(f"{NONE if error is None else f'{error.mean:.1f}':>4}" for error in row.layer_errors)
