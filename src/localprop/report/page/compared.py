"""The charts of a comparison: errors of each layer at its end, time and memory beside backprop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from localprop.report.labels import human_estimate, human_ratio
from localprop.report.page.chart import (
    ABOVE,
    ANSWER,
    BELOW,
    DASHES,
    HOVER,
    INK,
    MUTED,
    SYMBOLS,
    Cell,
    Chart,
    Numbers,
    Trace,
    named_across,
    named_axis,
    rounded,
    series,
    shown,
)
from localprop.report.page.gather import BACKPROP, Group
from localprop.report.rows import MeanStd, Row

BAR_PIXELS, BAR_FRAME_PIXELS = 34, 96


def end_chart(group: Group) -> Chart:
    """Draw the error of each layer and of the network's answer at the end of training, a line a method."""
    places = group.num_blocks
    deepest = max(group.entries, key=lambda entry: len(entry.row.layer_errors))
    alike = all(entry.block_names == deepest.block_names[: len(entry.block_names)] for entry in group.entries)
    names = [*(deepest.block_names if alike else [f"b{index + 1}" for index in range(places)]), ANSWER]
    traces: list[Trace] = []
    cells: list[list[Cell]] = []
    for index, entry in enumerate(group.entries):
        row = entry.row
        errors = [*row.layer_errors, *[None] * (places - len(row.layer_errors)), row.test_error]
        color = INK if entry.method == BACKPROP else series(index)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": shown(entry.label),
                "x": list(range(len(errors))),
                "y": [None if error is None else rounded(error.mean) for error in errors],
                "line": {"color": color, "width": 2, "dash": DASHES[index % len(DASHES)]},
                "marker": {"size": 8, "color": color, "symbol": SYMBOLS[index % len(SYMBOLS)]},
                "hovertemplate": HOVER,
                **_error_bars(errors, color),
            }
        )
        cells.append([entry.label, *(human_estimate(error, 2) for error in errors)])
    answers = "; ".join(f"{entry.label} {human_estimate(entry.row.test_error, 1)}" for entry in group.entries)
    words = f"Test error of each layer after training, by method. The networks' answers in percent: {answers}."
    axes = {"xaxis": named_across(names), "yaxis": {"title": {"text": "test error (%)"}, "rangemode": "tozero"}}
    note = "At each block its own prediction, where it makes one; at the right the network's answer."
    return Chart("Layers after training", words, traces, axes, Numbers(["method", *names], cells), 380, note)


def _error_bars(errors: Sequence[MeanStd | None], color: str) -> Trace:
    stds = [None if error is None or error.std is None else rounded(error.std) for error in errors]
    if not any(stds):
        return {}
    return {"error_y": {"type": "data", "array": stds, "color": color, "thickness": 1.2, "width": 3}}


def cost_charts(group: Group) -> list[Chart]:
    """Draw time and memory of a training step beside hand-written backprop, a chart a quantity that was measured."""
    quantities: list[tuple[str, str, Callable[[Row], float | None], Callable[[Row], tuple[float, float] | None]]] = [
        (
            "Time of a training step",
            "Lines: quartiles of the measured pairs.",
            lambda row: row.step_ratio,
            lambda row: row.step_ratio_spread,
        ),
        (
            "Memory of a training step",
            "Growth of the process's resident memory; it says little where the growth is under 150 MB. Measured once.",
            lambda row: row.memory_ratio,
            lambda _: None,
        ),
        (
            "Live tensors of a training step",
            "Peak bytes of tensors alive. Counted, not sampled: it has no spread.",
            lambda row: row.live_ratio,
            lambda _: None,
        ),
    ]
    return [
        _cost_chart(group, title, note, ratio, spread)
        for title, note, ratio, spread in quantities
        if any(ratio(row) is not None for row in group.rows)
    ]


def _cost_chart(
    group: Group,
    title: str,
    note: str,
    ratio: Callable[[Row], float | None],
    spread: Callable[[Row], tuple[float, float] | None],
) -> Chart:
    measured = [(entry.label, ratio(entry.row), spread(entry.row)) for entry in group.entries]
    known = [(label, value, ends or (value, value)) for label, value, ends in measured if value is not None]
    colors = [BELOW if round(ends[1], 2) < 1 else ABOVE if round(ends[0], 2) > 1 else MUTED for _, _, ends in known]
    bars: Trace = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(known))),
        "x": [rounded(value) for _, value, _ in known],
        "marker": {"color": colors},
        "hovertemplate": "%{x:.2f}x<extra></extra>",
    }
    labels: Trace = {
        "type": "scatter",
        "mode": "text",
        "y": list(range(len(known))),
        "x": [max(1.0, rounded(ends[1]) or 0.0) for _, _, ends in known],
        "text": [f" {human_ratio(value)}" for _, value, _ in known],
        "textposition": "middle right",
        "cliponaxis": False,
        "hoverinfo": "skip",
    }
    if any(ends is not None for _, _, ends in measured):
        bars["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [rounded(ends[1] - value) for _, value, ends in known],
            "arrayminus": [rounded(value - ends[0]) for _, value, ends in known],
            "color": INK,
            "thickness": 1.4,
            "width": 4,
        }
    widest = max(1.0, *(ends[1] for _, _, ends in known))
    missing = [label for label, value, _ in measured if value is None]
    told = "; ".join(f"{label} {human_ratio(value)}" for label, value, _ in known)
    axes = {
        "xaxis": {"range": [0, 1.25 * widest], "title": {"text": "multiple of backprop written by hand"}},
        "yaxis": named_axis([label for label, _, _ in known], autorange="reversed", showgrid=False),
        "shapes": [{"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "line": _ONE}],
        "showlegend": False,
    }
    return Chart(
        title,
        f"{title} as a multiple of backprop written by hand: {told}.",
        [bars, labels],
        axes,
        Numbers(["method", "multiple"], [[label, human_ratio(value, ends)] for label, value, ends in measured]),
        BAR_FRAME_PIXELS + BAR_PIXELS * len(known),
        note + (f" Not measured: {', '.join(missing)}." if missing else ""),
    )


_ONE = {"color": INK, "width": 1.5, "dash": "dash"}
