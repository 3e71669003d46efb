"""What a chart of the page is: traces and axes for Plotly, words for those who do not see it, and its numbers."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localprop.report.labels import NONE

DIGITS = 4
MOST_LETTERS = 28
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")
DASHES = ("solid", "dash", "dot", "dashdot")
NUM_COLORS = 8
INK, MUTED, BELOW, ABOVE = "$ink", "$muted", "$below", "$above"
"""Colours that the page's scheme decides: `$NAME` is the style sheet's `--NAME`."""

ANSWER = "network"
HOVER = "%{y:.2f} %<extra>%{fullData.name}</extra>"

Cell = str | float | None
Trace = dict[str, Any]


@dataclass(frozen=True)
class Numbers:
    """The numbers of a chart as a table, the first column naming the rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def texts(self) -> list[list[str]]:
        """Write every cell, a dash for none."""
        return [[short_number(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        title: What it shows, as its heading.
        words: The main facts, read out instead of the picture.
        traces: Plotly's traces; colours are names, for the scheme of the page decides them.
        axes: Plotly's layout.
        numbers: All that is drawn; None where a table of the page has it already.
        height: Pixels.
        note: What to know when reading it.
    """

    title: str
    words: str
    traces: Sequence[Trace]
    axes: Mapping[str, Any]
    numbers: Numbers | None = None
    height: int = 340
    note: str = ""

    def spec(self) -> dict[str, Any]:
        """Return what the page's script draws."""
        layout = {"showlegend": len(self.traces) > 1, **self.axes, "height": self.height}
        return {"data": list(self.traces), "layout": layout}


@dataclass(frozen=True)
class Picture:
    """A picture that an analysis drew.

    Attributes:
        title: What it shows, as its heading.
        words: The main facts, read out instead of the picture.
        path: The PNG file.
        wide: Whether it needs the width of the page.
        note: What to know when reading it.
    """

    title: str
    words: str
    path: Path
    wide: bool
    note: str = ""


def series(index: int) -> str:
    """Return the colour of the n-th method."""
    return f"$series-{index % NUM_COLORS + 1}"


def depth(block: int, num_blocks: int) -> str:
    """Return the colour of a block: its place on a scale from the first to the last."""
    return f"$depth:{round(block / max(num_blocks - 1, 1), 3)}"


def veiled(color: str) -> str:
    """Return a colour to fill the spread around a line with."""
    return f"{color}/0.16"


def printable(text: str) -> str:
    """Leave out what is not seen, such as marks that turn the direction of all text behind them."""
    return " ".join("".join(letter for letter in text if letter.isprintable() or letter.isspace()).split())


def shown(text: str) -> str:
    """Make a name safe to draw: short, and without what Plotly reads as markup."""
    text = printable(text)
    text = text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
    return html.escape(text, quote=False).replace("$", "&#36;")  # between dollars it would be a formula


def rounded(value: float | None) -> float | None:
    """Keep the digits that a picture can show."""
    return None if value is None else float(f"{value:.{DIGITS}g}")


def short_number(cell: Cell) -> str:
    """Write a number with four digits, a dash for none, words as they are."""
    if cell is None:
        return NONE
    return cell if isinstance(cell, str) else f"{cell:.{DIGITS}g}"


def named_axis(names: Sequence[str], **more: Any) -> dict[str, Any]:
    """Lay out an axis with a name at 0, 1, ...; as numbers, for names that look alike must not fall together."""
    return {"tickvals": list(range(len(names))), "ticktext": [shown(name) for name in names], **more}


def named_across(names: Sequence[str], **more: Any) -> dict[str, Any]:
    """Lay out a horizontal axis of names, tilted where they would not fit."""
    return named_axis(names, autotickangles=[0, -45, -90], **more)


def band(x: Sequence[float], low: Sequence[float], high: Sequence[float], color: str, group: str) -> Trace:
    """Fill what lies between two lines."""
    return {
        "type": "scatter",
        "x": [*x, *reversed(x)],
        "y": [*map(rounded, high), *map(rounded, reversed(low))],
        "fill": "toself",
        "fillcolor": veiled(color),
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": group,
    }
