"""What the blocks of a run know, from explain.json: saliency, label embeddings, confusion, and the other analyses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localprop.report.labels import NONE
from localprop.report.page.chart import DASHES, SYMBOLS, Chart, Numbers, Picture, Trace, named_across, series
from localprop.report.page.matrices import confusion_charts, embedding_charts, matrix_chart
from localprop.report.page.stored import Analysis, Explained, Scalar

Shown = Chart | Picture


@dataclass(frozen=True)
class Part:
    """One analysis on the page.

    Attributes:
        name: Its name on the command line.
        title: Its heading.
        lead: How to read it.
        shown: What is drawn.
        rows: All its rows.
    """

    name: str
    title: str
    lead: str
    shown: Sequence[Shown]
    rows: Numbers


@dataclass(frozen=True)
class Kind:
    """How an analysis is shown."""

    title: str
    lead: str
    draw: Callable[[Path, Analysis], Sequence[Shown]]


def parts_of(explained: Explained, directory: Path) -> list[Part]:
    """Lay out the analyses that a run has, in the order of the page.

    Args:
        explained: What was found.
        directory: Where the pictures lie.
    """
    return [
        Part(name, kind.title, kind.lead, kind.draw(directory, analysis), table_of(analysis.rows))
        for name, kind in KINDS.items()
        if (analysis := explained.analyses.get(name)) is not None
    ]


def table_of(rows: Sequence[Mapping[str, Scalar]]) -> Numbers:
    """Lay rows of one kind out as a table."""
    columns = list(rows[0])
    return Numbers(
        [column.replace("_", " ") for column in columns], [[row.get(name) for name in columns] for row in rows]
    )


def _saliency(directory: Path, analysis: Analysis) -> list[Shown]:
    seen = dict.fromkeys((row.get("image"), row.get("class")) for row in analysis.rows)
    last = [row for row in analysis.rows if row.get("block") == analysis.rows[-1].get("block")]
    told = "; ".join(f"{row.get('class')} is seen as {row.get('first')}" for row in last)
    words = (
        f"{len(seen)} test images, and beside each, block by block, where features speak for its two most salient "
        "labels. "
        f"In the last block: {told}."
    )
    note = "Above the label with the largest mean saliency, below the second. Bright: speaks for the label."
    return [Picture("Gallery", words, directory / "saliency.png", True, note)]


def _filters(directory: Path, analysis: Analysis) -> list[Shown]:
    row = analysis.rows[0]
    told = f"{row.get('filters')} filters of {row.get('layer')}, size {row.get('size')}, longest first"
    words = f"{told}; dead: {row.get('dead')}."
    return [Picture("Filters", words, directory / "filters.png", False)]


def _over_blocks(panels: Mapping[str, Mapping[str, str]]) -> Callable[[Path, Analysis], list[Shown]]:
    """Draw columns of the rows over the blocks.

    Args:
        panels: Title -> (name of the line -> column).
    """

    def draw(_: Path, analysis: Analysis) -> list[Shown]:
        return [_lines(title, analysis, lines) for title, lines in panels.items()]

    return draw


def _lines(title: str, analysis: Analysis, lines: Mapping[str, str]) -> Chart:
    names = [str(row.get("name")) for row in analysis.rows]
    columns = {label: [_number(row.get(column)) for row in analysis.rows] for label, column in lines.items()}
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": label,
            "x": list(range(len(names))),
            "y": values,
            "line": {"color": series(index), "width": 2, "dash": DASHES[index % len(DASHES)]},
            "marker": {"color": series(index), "size": 7, "symbol": SYMBOLS[index % len(SYMBOLS)]},
            "hovertemplate": "%{y:.4g}<extra>%{fullData.name}</extra>",
        }
        for index, (label, values) in enumerate(columns.items())
    ]
    told = "; ".join(f"{label} {_ends(names, values)}" for label, values in columns.items())
    axes = {"xaxis": named_across(names), "yaxis": {"rangemode": "tozero"}}
    return Chart(title, f"{title}, block by block: {told}.", traces, axes, height=300)


def _ends(names: Sequence[str], values: Sequence[float | None]) -> str:
    known = [(name, value) for name, value in zip(names, values, strict=True) if value is not None]
    if not known:
        return f"{NONE} in every block"
    (first, begin), (last, end) = known[0], known[-1]
    return f"from {begin:.4g} in {first} to {end:.4g} in {last}"


def _number(value: Scalar) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _cka(_: Path, analysis: Analysis) -> list[Shown]:
    if analysis.matrix is None:
        return []
    names = [str(row.get("name")) for row in analysis.rows]
    words = "CKA of every two blocks; each with itself is 1."
    return [matrix_chart("CKA of blocks", words, analysis.matrix, "block", names, (0.0, 1.0))]


KINDS: Mapping[str, Kind] = {
    "saliency": Kind("Saliency", "Where in test images the blocks see labels.", _saliency),
    "embeddings": Kind(
        "Label embeddings",
        "Which labels the dictionary puts near each other. A layout in two dimensions is no evidence by itself.",
        lambda _, analysis: embedding_charts(analysis),
    ),
    "confusion": Kind(
        "Confusion",
        "How often two classes are mixed up on test images, and whether those that are have embeddings alike.",
        lambda _, analysis: confusion_charts(analysis),
    ),
    "probes": Kind(
        "Probes",
        "What a linear classifier reads in each block, beside the block's own prediction.",
        _over_blocks(
            {"Error (%)": {"probe, test": "test_error", "probe, training": "train_error", "own, test": "own_error"}}
        ),
    ),
    "collapse": Kind(
        "Neural collapse",
        "0 is full collapse: features of a class are one point, the classes a simplex.",
        _over_blocks(
            {
                "NC1, spread within / between classes": {"NC1": "nc1"},
                "NC2, how unequal class means are": {"norms": "nc2_equinorm", "angles": "nc2_equiangular"},
                "NC3, class means beside the classifier": {"NC3": "nc3"},
                "NC4, not the nearest class mean": {"training": "nc4_train", "test": "nc4_test"},
            }
        ),
    ),
    "cka": Kind("Likeness of blocks", "1 for blocks that differ by a rotation and a factor.", _cka),
    "information": Kind(
        "Information",
        "Lower bounds, in nats, of what a block retains of the class and of whether the image was mirrored; the share "
        "of the pixels' variance that a linear decoder draws from it.",
        _over_blocks(
            {
                "I(h; class), nats": {"bound": "class_nats", "most": "class_most_nats"},
                "I(h; mirrored), nats": {"bound": "mirrored_nats", "most": "mirrored_most_nats"},
                "Image, share of variance": {"share": "image_share"},
            }
        ),
    ),
    "gradients": Kind(
        "Gradients",
        "The cosine of a block's own gradient with backprop's.",
        _over_blocks({"Cosine with backprop's gradient": {"cosine": "cosine"}}),
    ),
    "super-labels": Kind(
        "Super-classes",
        "Errors in groups of classes; the gap to the first line is mistakes within a group.",
        _over_blocks({"Error (%)": {"class": "naive", "super-class of the class": "super", "by mean score": "mean"}}),
    ),
    "filters": Kind("Filters", "What the first layer looks for.", _filters),
}
