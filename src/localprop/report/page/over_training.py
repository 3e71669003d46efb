"""The error of each layer over training, a chart a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from localprop.report.curves import Curves, needs_log_scale, read_curves
from localprop.report.labels import human_estimate
from localprop.report.page.chart import (
    ANSWER,
    HOVER,
    INK,
    SYMBOLS,
    Cell,
    Chart,
    Numbers,
    Trace,
    band,
    depth,
    rounded,
    shown,
)
from localprop.report.page.gather import Entry, Group
from localprop.report.rows import MeanStd

MOST_POINTS, LEAST_POINTS = 60, 10
MOST_NUMBERS = 1200
LOG_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
MOST_LINES = 12
"""Of more, a legend and the spreads would hide the chart."""


def training_charts(group: Group) -> dict[str, Chart]:
    """Draw the error of each layer over training, a chart a method.

    Raises:
        ValueError: The evaluations of a run are missing, not valid, or not those of its other seeds.
    """
    read = {entry.label: read_curves(entry.runs, entry.row, entry.split) for entry in group.entries}
    lines = [line for curves in read.values() for line in curves.lines]
    top = max(point.mean + (point.std or 0) for line in lines for point in line)
    logarithmic = {"type": "log", "tickvals": LOG_TICKS}
    scale = logarithmic if needs_log_scale(list(read.values())) else {"range": [0, max(1.0, 1.05 * top)]}
    axis = {"title": {"text": "error (%)"}, **scale}
    return {entry.label: _training_chart(entry, read[entry.label], axis) for entry in group.entries}


def _training_chart(entry: Entry, curves: Curves, axis: Mapping[str, Any]) -> Chart:
    kept = _thinned(len(curves.epochs), len(curves.lines))
    epochs = [rounded(curves.epochs[place]) or 0.0 for place in kept]
    blocks = list(zip(entry.block_names, curves.layers, strict=True))
    lines = {index: (name, [layer[place] for place in kept]) for index, (name, layer) in enumerate(blocks) if layer}
    answer = [curves.network[place] for place in kept]
    crowded = len(lines) > MOST_LINES
    traces: list[Trace] = []
    for index, (name, points) in lines.items():
        label, color = f"{index + 1} {shown(name)}", depth(index, len(blocks))
        spread = [] if crowded else _spread(epochs, points, color, label)
        traces += [*spread, _line(epochs, points, color, label, 2, SYMBOLS[index % len(SYMBOLS)])]
    traces += [*_spread(epochs, answer, INK, ANSWER), _line(epochs, answer, INK, ANSWER, 3, SYMBOLS[0])]
    columns = ["epoch", *(name for name, _ in lines.values()), ANSWER]
    errors = [*(points for _, points in lines.values()), answer]
    cells: list[list[Cell]] = [
        [epoch, *(human_estimate(points[row], 2) for points in errors)] for row, epoch in enumerate(epochs)
    ]
    return Chart(
        f"Layers of {entry.label} over training",
        _words(entry, curves),
        traces,
        {
            "xaxis": {"title": {"text": "epoch"}, "rangemode": "tozero"},
            "yaxis": axis,
            **({"showlegend": False} if crowded else {}),
        },
        Numbers(columns, cells),
        380,
        _note(entry, curves, len(kept), crowded=crowded),
    )


def _thinned(count: int, num_lines: int) -> list[int]:
    """Choose evaluations, evenly spaced, the first and the last among them: fewer of them for many lines."""
    most = min(MOST_POINTS, max(LEAST_POINTS, MOST_NUMBERS // num_lines))
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def _line(epochs: Sequence[float], points: Sequence[MeanStd], color: str, label: str, width: int, symbol: str) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label,
        "legendgroup": label,
        "x": epochs,
        "y": [rounded(point.mean) for point in points],
        "line": {"color": color, "width": width},
        "marker": {"size": 6, "color": color, "symbol": symbol},
        "hovertemplate": HOVER,
    }


def _spread(epochs: Sequence[float], points: Sequence[MeanStd], color: str, label: str) -> list[Trace]:
    stds = [point.std for point in points if point.std is not None]
    if len(stds) < len(points):
        return []
    low = [max(point.mean - std, 0.01 * point.mean) for point, std in zip(points, stds, strict=True)]  # 0 has no log
    high = [point.mean + std for point, std in zip(points, stds, strict=True)]
    return [band(epochs, low, high, color, label)]


def _images(entry: Entry) -> str:
    return "held-out images" if entry.split == "validation" else "test images"


def _words(entry: Entry, curves: Curves) -> str:
    first, last = (human_estimate(curves.network[place], 1) for place in (0, -1))
    words = (
        f"Error of each layer of {entry.label} on {_images(entry)} over {curves.epochs[-1]:g} epochs. The network's "
        f"answer goes from {first} to {last} percent."
    )
    ends = [(layer[-1].mean, name) for name, layer in zip(entry.block_names, curves.layers, strict=True) if layer]
    return words + (f" At the end block {min(ends)[1]} is lowest, {min(ends)[0]:.1f} percent." if ends else "")


def _note(entry: Entry, curves: Curves, num_kept: int, *, crowded: bool) -> str:
    spread = ", mean ± standard deviation over seeds" if entry.row.num_seeds > 1 else ""
    note = f"Errors on {_images(entry)}{spread}."
    if not any(curves.layers[:-1]):
        note += " Hidden blocks of this method make no prediction."
    if num_kept < len(curves.epochs):
        note += f" Shown are {num_kept} of {len(curves.epochs)} evaluations, evenly spaced; the last is among them."
    if crowded:
        note += " Colours run from the first block to the last; the strong line is the network's answer."
    return note
