"""Tables and pictures of benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from localprop.report.labels import human_ratio

Row = Mapping[str, Any]


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


_STEP: Mapping[str, Callable[[Row], str]] = {
    "method": lambda row: str(row["method"]),
    "step": lambda row: _milliseconds(row["step_seconds"]),
    "backprop step": lambda row: _milliseconds(row["backprop_step_seconds"]),
    "time": lambda row: human_ratio(row["step_ratio"], row["step_ratio_spread"]),
    "arithmetic": lambda row: human_ratio(row["floor_ratio"]),
    "time / arithmetic": lambda row: human_ratio(row["step_ratio_to_floor"]),
}
_MEMORY: Mapping[str, Callable[[Row], str]] = {
    "method": lambda row: str(row["method"]),
    "resident": lambda row: _mib(row["peak_memory_bytes"]),
    "of backprop's": lambda row: human_ratio(row["memory_ratio"]),
    "live tensors": lambda row: _mib(row["live_tensor_bytes"]),
    "of backprop's live": lambda row: human_ratio(row["live_ratio"]),
}
_DEPTH: Mapping[str, Callable[[Row], str]] = {
    "method": lambda row: str(row["method"]),
    "blocks": lambda row: str(row["blocks"]),
    "activations": lambda row: _mib(row["activation_bytes"]),
    "all": lambda row: _mib(row["total_bytes"]),
    "": lambda row: "extrapolated" if row["extrapolated"] else "",
}
COLUMNS: Mapping[str, Mapping[str, Callable[[Row], str]]] = {"step": _STEP, "memory": _MEMORY, "depth": _DEPTH}
"""What the table of each benchmark shows: header -> cell."""


def cells(what: str, rows: Sequence[Row]) -> list[dict[str, str]]:
    """Write rows of "step", "memory" or "depth" as text, by the headers of their columns."""
    return [{header: cell(row) for header, cell in COLUMNS[what].items()} for row in rows]


def bench_figure(what: str, rows: Sequence[Row], path: Path) -> None:
    """Draw a benchmark: bars beside backprop's 1, or lines over depth."""
    figure = Figure(figsize=(7.5, 1.4 + 0.36 * len(rows)) if what != "depth" else (7.5, 4.5), layout="constrained")
    ax = figure.subplots()
    if what == "depth":
        _draw_depth(ax, rows)
    else:
        _draw_ratios(ax, what, rows)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _draw_ratios(ax: Any, what: str, rows: Sequence[Row]) -> None:
    bars = {
        "step": (("step_ratio", "time"), ("floor_ratio", "arithmetic")),
        "memory": (("memory_ratio", "resident set"), ("live_ratio", "live tensors")),
    }[what]
    for number, (key, label) in enumerate(bars):
        places = [place + 0.36 * (number - 0.5) for place in range(len(rows))]
        widths = [row[key] or 0.0 for row in rows]
        ax.barh(places, widths, height=0.34, label=label, color=("#2b6cb0", "#c9d6e6")[number])
        for place, width in zip(places, widths, strict=True):
            ax.text(width, place, f" {width:.2f}", va="center", fontsize=8)
    ax.axvline(1.0, color="black", linestyle="--", linewidth=1.2)
    ax.set_yticks(range(len(rows)), [row["method"] for row in rows], parse_math=False)
    ax.invert_yaxis()
    ax.set_xlabel("multiple of backprop written by hand (dashed: 1)")
    ax.legend(frameon=False, fontsize=8)


def _draw_depth(ax: Any, rows: Sequence[Row]) -> None:
    for number, name in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == name]
        color = f"C{number}"
        measured = [row for row in own if not row["extrapolated"]]
        ax.plot(*_points(measured), color=color, marker="o", label=name)
        beyond = [*measured[-1:], *(row for row in own if row["extrapolated"])]
        if len(beyond) > 1:
            hollow = {"marker": "o", "markerfacecolor": "white", "markevery": slice(1, None)}
            ax.plot(*_points(beyond), color=color, linestyle="--", **hollow)
            ax.plot([], [], color=color, linestyle="--", label=f"{name}, extrapolated")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("residual blocks")
    ax.set_ylabel("bytes of activations in a training step (MiB)")
    ax.legend(frameon=False)


def _points(rows: Sequence[Row]) -> tuple[list[int], list[float]]:
    return [row["blocks"] for row in rows], [row["activation_bytes"] / 2**20 for row in rows]
