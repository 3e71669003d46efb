"""One picture of a comparison: error of each layer over training, memory and time beside backprop."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from localprop.report.curves import Curves, needs_log_scale, read_curves
from localprop.report.labels import human_ratio, protocol_label, seeds_label
from localprop.report.pictures import SUFFIXES, save_picture
from localprop.report.rows import MeanStd, Row

WIDTH_INCHES = 10.0
PANEL_INCHES = 2.3
BAR_INCHES = 0.25
FONT = 9
TITLE_CHARACTERS, PANEL_CHARACTERS = 95, 20
HEADROOM, LOG_HEADROOM = 1.2, 1.6
PANELS_PER_LINE = 5
DOTS_PER_INCH = 200
BELOW, LEVEL, ABOVE = "#0072B2", "#8C8C8C", "#D55E00"
"""Cheaper than backprop, no measured difference, dearer; blue and vermillion differ for every eye."""


def comparison_figure(directory: Path, rows: Sequence[Row], path: Path) -> None:
    """Draw a comparison as one picture, readable at a width of 1000 pixels.

    Args:
        directory: The comparison's directory; curves are read from `METHOD/seed-K/metrics.jsonl`.
        rows: Its rows, in the order of the panels and bars.
        path: File to write, `.png` or `.svg`.

    Raises:
        ValueError: If there are no rows, the suffix is another, or a run's metrics cannot be used.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"path must end in {' or '.join(SUFFIXES)}, got {path.name!r}; rename it")
    if not rows:
        raise ValueError("rows must hold at least one method, got none; compare at least one")
    curves = [read_curves([directory / row.method / f"seed-{seed}" for seed in row.seeds], row) for row in rows]
    lines = math.ceil(len(rows) / PANELS_PER_LINE)
    heights = (0.9 + PANEL_INCHES * lines, 0.8 + BAR_INCHES * len(rows))
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), dpi=DOTS_PER_INCH, layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    repeated = "mean ± std over " if any(row.num_seeds > 1 for row in rows) else ""
    title = f"{protocol_label(rows)}, {repeated}{seeds_label(rows)}"
    upper.suptitle(
        textwrap.fill(title, TITLE_CHARACTERS),
        fontsize=12,
        fontweight="bold",
        parse_math=False,
    )
    _draw_panels(upper, rows, curves, lines)
    _draw_costs(lower, rows)
    save_picture(figure, path, dpi=DOTS_PER_INCH)


def _draw_panels(figure: SubFigure, rows: Sequence[Row], curves: Sequence[Curves], lines: int) -> None:
    num_blocks = max(len(curve.layers) for curve in curves)
    colors = _depth_colors(num_blocks)
    columns = math.ceil(len(rows) / lines)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for ax in grid.flat[len(rows) :]:
        ax.set_visible(False)
    for ax, row, curve in zip(grid.flat, rows, curves, strict=False):
        _draw_panel(ax, row, curve, colors)
    first = grid[0, 0]
    if needs_log_scale(curves):
        first.set_yscale("log")
        first.set_ylim(top=LOG_HEADROOM * first.get_ylim()[1])
        first.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        first.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        first.yaxis.set_minor_locator(NullLocator())
    else:
        first.set_ylim(0, HEADROOM * first.get_ylim()[1])
    first.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for ax in grid[:, 0]:
        ax.set_ylabel("test error (%)", fontsize=FONT)
    for index, ax in enumerate(grid.flat[: len(rows)]):
        if index + columns >= len(rows):
            ax.set_xlabel("epoch", fontsize=FONT)
            ax.tick_params(labelbottom=True)
    if num_blocks:
        steps = ScalarMappable(
            BoundaryNorm([index + 0.5 for index in range(num_blocks + 1)], num_blocks), ListedColormap(colors)
        )
        bar = figure.colorbar(steps, ax=grid, pad=0.01, aspect=25 * lines, spacing="uniform")
        bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=min(num_blocks, 10), integer=True))
        bar.ax.tick_params(length=0, labelsize=FONT)
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.invert_yaxis()
        bar.set_label("block, by its own prediction", fontsize=FONT)


def _depth_colors(num_blocks: int) -> list[tuple[float, ...]]:
    """Take equally spaced colours of viridis, without its ends that vanish beside black and white."""
    last = max(num_blocks - 1, 1)
    return [colormaps["viridis"](0.12 + 0.76 * (1 - index / last)) for index in range(num_blocks)]


def _draw_panel(ax: Axes, row: Row, curve: Curves, colors: Sequence[tuple[float, ...]]) -> None:
    for layer, color in zip(curve.layers, colors, strict=False):
        if layer is not None:
            _draw_line(ax, curve.epochs, layer, color=color, width=1.6)
    answer = _draw_line(ax, curve.epochs, curve.network, color="black", width=2.0)
    ax.set_title(textwrap.fill(row.method, PANEL_CHARACTERS), fontsize=FONT + 1, fontweight="bold", parse_math=False)
    ax.legend(
        [answer],
        [f"network: {curve.network[-1].mean:.1f} %"],
        title=None if any(curve.layers[:-1]) else "no local predictions",
        title_fontsize=FONT,
        fontsize=FONT,
        loc="upper right",
        frameon=False,
        handlelength=1.2,
        borderaxespad=0.1,
    )
    _clean(ax)
    ax.grid(axis="y", color="0.9", linewidth=0.8)


def _draw_line(
    ax: Axes, epochs: Sequence[float], points: Sequence[MeanStd], color: str | tuple[float, ...], width: float
) -> Line2D:
    means = [point.mean for point in points]
    (line,) = ax.plot(epochs, means, color=color, linewidth=width, marker="o", markersize=1.8 * width)
    if points[0].std is not None:
        stds = [point.std or 0.0 for point in points]
        low = [mean - std for mean, std in zip(means, stds, strict=True)]
        high = [mean + std for mean, std in zip(means, stds, strict=True)]
        ax.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)
    return line


def _draw_costs(figure: SubFigure, rows: Sequence[Row]) -> None:
    memory, time = figure.subplots(1, 2, sharey=True)
    unknown = [None] * len(rows)
    spreads = [row.step_ratio_spread for row in rows]
    _draw_bars(memory, "memory of a training step", [row.memory_ratio for row in rows], unknown)
    _draw_bars(time, "time of a training step", [row.step_ratio for row in rows], spreads)
    memory.set_yticks(range(len(rows)), [row.method for row in rows], fontsize=FONT, parse_math=False)
    memory.set_ylim(len(rows) - 0.5, -0.5)


def _draw_bars(
    ax: Axes, title: str, ratios: Sequence[float | None], spreads: Sequence[tuple[float, float] | None]
) -> None:
    for place, (ratio, spread) in enumerate(zip(ratios, spreads, strict=True)):
        if ratio is None:
            ax.text(0.02, place, "not measured", va="center", fontsize=FONT, color="0.4")
            continue
        low, high = spread or (ratio, ratio)
        ax.barh(place, ratio, height=0.62, color=BELOW if high < 1 else ABOVE if low > 1 else LEVEL)
        if spread is not None:
            ax.plot(spread, (place, place), color="black", linewidth=1.4)
        ax.text(1.01, place, human_ratio(ratio), transform=ax.get_yaxis_transform(), va="center", fontsize=FONT)
    ax.axvline(1.0, color="black", linestyle="--", linewidth=1.2, zorder=2.5)
    widest = max([1.0, *(r for r in ratios if r is not None), *(s[1] for s in spreads if s is not None)])
    ax.set_xlim(0, 1.06 * widest)
    ax.set_title(title, fontsize=FONT + 1, fontweight="bold")
    ax.set_xlabel("multiple of backprop written by hand (dashed: 1)", fontsize=FONT)
    _clean(ax)
    ax.tick_params(axis="y", length=0)


def _clean(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=FONT)
