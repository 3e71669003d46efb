"""Table and picture of early exits."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from localprop.report.labels import NONE, human_count, human_ratio
from localprop.report.pictures import save_picture

Row = Mapping[str, Any]


def print_exits(found: Row) -> None:
    """Print what `localprop.train.exits.exits_run` found, on standard output."""
    console = Console(width=None if sys.stdout.isatty() else 100)
    for table in (_blocks_table(found), _agreements_table(found), _sweep_table(found)):
        console.print(table)


def _table(title: str, caption: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=Text(title), caption=Text(caption), box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for number, header in enumerate(headers):
        is_last = number == len(headers) - 1  # one share a block: the only cells that grow with the network
        table.add_column(header, justify="right" if number else "left", no_wrap=not is_last, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _blocks_table(found: Row) -> Table:
    return _table(
        f"exits of {found['method']}, {found['test_images']} test images",
        f"error, agreement with the network's answer, share of what it has right that all later blocks have right too\n"
        f"(stays right) and expected calibration error (ECE) in %; "
        f"temperatures fitted on {found['validation_images']} held-out images, {NONE} where there is no best one",
        ("block", "error", "agreement", "stays right", "T", "ECE", "ECE at T", "flops", "of the whole"),
        [
            (
                row["block"],
                f"{row['error']:.2f}",
                f"{row['agreement']:.2f}",
                NONE if row["stays_right"] is None else f"{row['stays_right']:.2f}",
                NONE if row["temperature"] is None else f"{row['temperature']:.3g}",
                f"{row['calibration_error']:.2f}",
                f"{row['calibrated_error']:.2f}",
                human_count(row["flops"]),
                human_ratio(row["flops_ratio"]),
            )
            for row in found["blocks"]
        ],
    )


def _agreements_table(found: Row) -> Table:
    return _table(
        "how many exits say what the network says",
        "share of the test images, and the network's error on them, in %",
        ("exits", "share", "error"),
        [(str(row["exits"]), f"{row['share']:.2f}", f"{row['error']:.2f}") for row in found["agreements"]],
    )


def _sweep_table(found: Row) -> Table:
    whole, chosen = found["whole"], found["chosen"]
    rows = [("whole", whole), ("chosen", chosen), *(("", row) for row in found["sweep"])]
    return _table(
        f"leaving at the first block with {found['by']} of at least the threshold",
        f"errors in %; chosen: least arithmetic with at most {found['max_error_increase']:g} points more error on the "
        f"held-out images\nthroughput beside the whole network's, {whole['images_per_second']:.0f} images/s: median "
        f"(quartiles) of {found['rounds']} rounds,\nbatches of {found['batch_size']}, "
        f"{1e3 * whole['batch_seconds']:.1f} ms each, {found['device']}, threads: {found['threads']}",
        ("", "threshold", "held-out", "test", "flops", "throughput", "left at each block, %"),
        [
            (
                name,
                NONE if row["threshold"] is None else f"{row['threshold']:.4f}",
                f"{row['validation_error']:.2f}",
                f"{row['test_error']:.2f}",
                human_ratio(row["flops_ratio"]),
                human_ratio(row["throughput_ratio"], row["throughput_ratio_spread"]),
                " ".join(f"{100 * share:.0f}" for share in row["shares"]),
            )
            for name, row in rows
        ],
    )


def exits_figure(found: Row, path: Path) -> None:
    """Draw error over arithmetic: the thresholds as a line, each block's own error as a point."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    ax = figure.subplots()
    points = sorted([*found["sweep"], found["chosen"]], key=lambda row: float(row["flops_ratio"]))
    ax.plot(*_places(points, "test_error"), color="#0072B2", marker="o", markersize=4, label="early exits")
    ax.plot(*_places(found["blocks"], "error"), color="#8C8C8C", marker="s", linestyle="", label="a block by itself")
    labelled = -1.0
    for row in found["blocks"]:
        if row["flops_ratio"] < labelled + 0.05:  # no room beside the one before
            continue
        labelled = row["flops_ratio"]
        ax.annotate(
            row["block"],
            (row["flops_ratio"], row["error"]),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=8,
            color="0.35",
            parse_math=False,
        )
    ax.plot(
        *_places([found["whole"]], "test_error"), color="black", marker="*", markersize=12, linestyle="", label="whole"
    )
    ax.plot(
        *_places([found["chosen"]], "test_error"),
        color="#D55E00",
        marker="D",
        linestyle="",
        label=f"chosen, {found['chosen']['throughput_ratio']:.2f}x throughput",
    )
    errors = [row["error"] for row in found["blocks"]] + [row["test_error"] for row in points]
    if min(errors) > 0 and max(errors) / min(errors) > 10:
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, 1.15 * max(errors))
    ax.set_xlim(left=0)
    ax.set_xlabel("floating point operations of an image, as a multiple of the whole network's")
    ax.set_ylabel("test error (%)")
    ax.set_title(f"{found['method']}, exits by {found['by']}", parse_math=False)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    save_picture(figure, path)


def _places(rows: Sequence[Row], error: str) -> tuple[list[float], list[float]]:
    return [row["flops_ratio"] for row in rows], [row[error] for row in rows]
