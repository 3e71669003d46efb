"""The pictures of the analyses: lines over depth, matrices, grids of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

FONT = 9
PANEL_INCHES = 2.6
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#CC79A7", "#E69F00")
"""Colours that differ for every eye."""

Curve = Sequence[float | None]


def depth_figure(blocks: Sequence[str], panels: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """Draw numbers over the blocks of a network, a panel a quantity; numbers that are not there leave a gap.

    Args:
        blocks: Names of the blocks, in order.
        panels: Axis label -> (name of the curve -> one number a block).
    """
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.6 * columns, 0.4 + PANEL_INCHES * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for ax in grid.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (label, curves) in zip(grid.flat, panels.items(), strict=False):
        for color, (name, values) in zip(_COLORS, curves.items(), strict=False):
            numbers = [math.nan if value is None else value for value in values]
            ax.plot(range(len(blocks)), numbers, color=color, marker="o", markersize=4, label=name)
        _name_ticks(ax, blocks, "x")
        ax.set_xlim(-0.3, len(blocks) - 0.7)
        _finish(ax, label, has_legend=len(curves) > 1)
    return figure


def series_figure(x_label: str, panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Figure:
    """Draw numbers over time, a panel a quantity, side by side.

    Args:
        x_label: What time is measured in.
        panels: Axis label -> (name of the curve -> pairs of time and number).
    """
    figure = Figure(figsize=(3.6 * len(panels), 0.4 + PANEL_INCHES), layout="constrained")
    for ax, (label, curves) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        for number, (name, points) in enumerate(curves.items()):
            ax.plot(
                *zip(*points, strict=True), color=_COLORS[number % len(_COLORS)], marker="o", markersize=4, label=name
            )
        ax.set_xlabel(x_label, fontsize=FONT)
        _finish(ax, label, has_legend=len(curves) > 1)
    return figure


def matrix_figure(
    matrix: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    limits: tuple[float, float],
) -> Figure:
    """Draw a matrix in colours, with its numbers where there is room.

    Args:
        matrix: Shape (len(rows), len(columns)); what is None stays white.
        rows: Names from above.
        columns: Names from the left.
        label: What the colours mean.
        limits: The numbers of the two ends of the colours.
    """
    side = max(3.2, min(9.0, 0.45 * max(len(rows), len(columns)) + 1.4))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    ax = figure.subplots()
    values = np.array([[math.nan if value is None else value for value in row] for row in matrix], dtype=float)
    image = ax.imshow(values, cmap="viridis" if limits[0] >= 0 else "RdBu_r", vmin=limits[0], vmax=limits[1])
    figure.colorbar(image, ax=ax, label=label)
    _name_ticks(ax, columns, "x")
    _name_ticks(ax, rows, "y")
    if values.size <= 144:
        for (row, column), value in np.ndenumerate(values):
            red, green, blue, _ = image.to_rgba(value)
            color = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
            if math.isfinite(value):
                ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=FONT - 2, color=color)
    return figure


def scatter_figure(
    x: Sequence[float],
    y: Sequence[float],
    x_label: str,
    y_label: str,
    title: str,
    colors: Sequence[Any] | None = None,
    names: Sequence[str] = (),
) -> Figure:
    """Draw points, named where there are names."""
    figure = Figure(figsize=(10.0, 8.0) if sum(map(bool, names)) > 40 else (6.0, 4.6), layout="constrained")
    ax = figure.subplots()
    ax.scatter(x, y, s=18, c=colors, cmap="tab20" if colors is not None else None, color=None if colors else _COLORS[0])
    for across, up, name in zip(x, y, names, strict=False):
        ax.annotate(name, (across, up), fontsize=FONT - 2, xytext=(3, 3), textcoords="offset points", parse_math=False)
    ax.set_xlabel(x_label, fontsize=FONT)
    ax.set_ylabel(y_label, fontsize=FONT)
    ax.set_title(title, fontsize=FONT + 1, parse_math=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=FONT)
    return figure


def image_figure(images: Sequence[Sequence[Tensor]], titles: Sequence[Sequence[str]]) -> Figure:
    """Draw a grid of images.

    Args:
        images: Rows of images, shape (C, H, W), pixels in [0, 1]; C of 1 or 3. Rows may differ in length.
        titles: A title an image; empty for none.
    """
    columns = max(len(row) for row in images)
    figure = Figure(figsize=(1.35 * columns, 1.55 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), columns, squeeze=False)
    for ax in grid.flat:
        ax.axis("off")
    for axes, row, row_titles in zip(grid, images, titles, strict=True):
        for ax, image, title in zip(axes, row, row_titles, strict=False):
            pixels = image.detach().float().cpu().clamp(0, 1).movedim(0, -1).numpy()
            ax.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
            ax.set_title(title, fontsize=FONT - 2, parse_math=False)
    return figure


def _name_ticks(ax: Any, names: Sequence[str], axis: str) -> None:
    if len(names) > 40:
        return
    set_ticks = ax.set_xticks if axis == "x" else ax.set_yticks
    small = FONT - 1 if len(names) <= 12 else FONT - 3
    set_ticks(range(len(names)), names, fontsize=small, parse_math=False)
    if axis == "x":
        ax.tick_params(axis="x", rotation=45 if sum(map(len, names)) > 24 else 0)


def _finish(ax: Axes, label: str, *, has_legend: bool) -> None:
    """Label a panel of curves, and take away what hides them."""
    ax.set_ylabel(label, fontsize=FONT)
    ax.grid(axis="y", color="0.9", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=FONT)
    if has_legend:
        ax.legend(fontsize=FONT - 1, frameon=False)
