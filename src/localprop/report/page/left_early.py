"""Early exits of a run: one stop of the slider a threshold that was measured, and what is drawn beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localprop.report.labels import NONE, human_ratio
from localprop.report.page.chart import ABOVE, INK, MUTED, Chart, Numbers, named_across, rounded, series, shown
from localprop.report.page.stored import Exits, Threshold


@dataclass(frozen=True)
class Stop:
    """One place of the slider: a threshold in words, and its numbers as they are shown.

    Attributes:
        words: All of it, read out.
        tiles: Label -> number, and what to say beside it.
        place: Where it lies in the chart: arithmetic and error.
        shares: Percent of the images that leave at every block.
    """

    words: str
    tiles: dict[str, tuple[str, str]]
    place: tuple[float, float]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Slider:
    """The thresholds of a run, from the least arithmetic to the whole network.

    Attributes:
        stops: The places of the slider.
        start: The place it begins at: what was chosen on held-out images.
        trade_off: Error over arithmetic.
        leaving: Where images leave.
        note: What to know when reading it.
    """

    stops: tuple[Stop, ...]
    start: int
    trade_off: Chart
    leaving: Chart
    note: str


def slider(exits: Exits, block_names: Sequence[str]) -> Slider:
    """Lay out the slider of a run.

    Args:
        exits: What was measured.
        block_names: The names of all blocks, those without a prediction too.
    """
    measured = {row.threshold: row for row in (*exits.sweep, exits.chosen)}
    rows = sorted(measured.values(), key=lambda row: (row.flops_ratio, row.threshold or 0.0))
    rows = [*(row for row in rows if row.threshold is not None), exits.whole]
    start = next(place for place, row in enumerate(rows) if row.threshold == exits.chosen.threshold)
    return Slider(
        tuple(_stop(row, exits) for row in rows),
        start,
        _trade_off(exits, rows),
        _leaving(exits, block_names, rows),
        f"Errors on {exits.test_images} test images. The slider starts at the threshold that was chosen on "
        f"{exits.validation_images} held-out images: least arithmetic with at most {exits.max_error_increase:g} points "
        f"more error there. Throughput: median (quartiles) of {exits.rounds} rounds, batches of {exits.batch_size}, "
        f"{exits.device}, threads: {exits.threads}.",
    )


def _stop(row: Threshold, exits: Exits) -> Stop:
    threshold = "none" if row.threshold is None else f"{row.threshold:.4f}"
    is_chosen = row.threshold == exits.chosen.threshold
    low, high = row.throughput_ratio_spread
    tiles = {
        "threshold": (threshold, "chosen on held-out images" if is_chosen else f"least {exits.by} to leave with"),
        "test error": (f"{row.test_error:.2f}\u00a0%", f"held-out images: {row.validation_error:.2f} %"),
        "arithmetic": (human_ratio(row.flops_ratio), "of the whole network's"),
        "throughput": (human_ratio(row.throughput_ratio), f"of the whole network's ({low:.2f} to {high:.2f})"),
    }
    place = "whole network" if row.threshold is None else f"{exits.by} {threshold}"
    words = (
        f"{place}{', chosen' if is_chosen else ''}: test error {row.test_error:.2f} percent, arithmetic "
        f"{human_ratio(row.flops_ratio)}, throughput {human_ratio(row.throughput_ratio)}"
    )
    shares = tuple(round(100 * share, 2) for share in row.shares)
    return Stop(words, tiles, (rounded(row.flops_ratio) or 0.0, rounded(row.test_error) or 0.0), shares)


def _trade_off(exits: Exits, rows: Sequence[Threshold]) -> Chart:
    early = [row for row in rows if row.threshold is not None]
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "a block by itself",
            "x": [rounded(block.flops_ratio) for block in exits.blocks],
            "y": [rounded(block.error) for block in exits.blocks],
            "text": [shown(block.block) for block in exits.blocks],
            "marker": {"color": MUTED, "symbol": "square", "size": 8},
            "hovertemplate": "%{text}: %{y:.2f} %<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "early exits",
            "x": [rounded(row.flops_ratio) for row in early],
            "y": [rounded(row.test_error) for row in early],
            "line": {"color": series(0), "width": 2},
            "marker": {"color": series(0), "size": 7},
            "hovertemplate": "%{y:.2f} % at %{x:.2f}x<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "whole network",
            "x": [rounded(exits.whole.flops_ratio)],
            "y": [rounded(exits.whole.test_error)],
            "marker": {"color": INK, "symbol": "star", "size": 13},
            "hovertemplate": "%{y:.2f} %<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "name": "at the slider",
            "x": [rounded(exits.chosen.flops_ratio)],
            "y": [rounded(exits.chosen.test_error)],
            "marker": {"color": ABOVE, "symbol": "diamond-open", "size": 17, "line": {"width": 3}},
            "hoverinfo": "skip",
        },
    ]
    axes = {
        "xaxis": {"title": {"text": "arithmetic, multiple of the whole network's"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "test error (%)"}, "rangemode": "tozero"},
    }
    columns = (exits.by, "held-out error %", "test error %", "arithmetic", "throughput", "images / s")
    cells = [
        (
            "whole network" if row.threshold is None else f"{row.threshold:.4f}",
            f"{row.validation_error:.2f}",
            f"{row.test_error:.2f}",
            human_ratio(row.flops_ratio),
            human_ratio(row.throughput_ratio, row.throughput_ratio_spread),
            f"{row.images_per_second:.0f}",
        )
        for row in rows
    ]
    words = (
        f"Test error over arithmetic of early exits by {exits.by}. The whole network: {exits.whole.test_error:.2f} "
        f"percent. Chosen: {exits.chosen.test_error:.2f} percent at {human_ratio(exits.chosen.flops_ratio)} of the "
        "arithmetic."
    )
    return Chart("Error over arithmetic", words, traces, axes, Numbers(columns, cells))


def _leaving(exits: Exits, block_names: Sequence[str], rows: Sequence[Threshold]) -> Chart:
    percents = [round(100 * share, 2) for share in exits.chosen.shares]
    bars = {
        "type": "bar",
        "x": list(range(len(block_names))),
        "y": percents,
        "marker": {"color": series(0)},
        "hovertemplate": "%{y:.1f} %<extra></extra>",
    }
    axes = {
        "xaxis": named_across(block_names),
        "yaxis": {"title": {"text": "images that leave (%)"}, "range": [0, 100]},
    }
    cells = [
        (NONE if row.threshold is None else f"{row.threshold:.4f}", *(f"{100 * share:.1f}" for share in row.shares))
        for row in rows
    ]
    told = "; ".join(f"{name} {percent:.1f}" for name, percent in zip(block_names, percents, strict=True))
    words = f"Where test images leave at the chosen threshold, percent: {told}."
    return Chart("Where images leave", words, [bars], axes, Numbers((exits.by, *block_names), cells))
