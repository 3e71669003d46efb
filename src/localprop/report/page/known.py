"""What the blocks of a run know, from explain.json: saliency, label embeddings, confusion, and the other analyses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localprop.report.page.chart import (
    DASHES,
    SYMBOLS,
    Chart,
    Numbers,
    Picture,
    Trace,
    named_across,
    rounded,
    series,
    short_number,
    shown,
)
from localprop.report.page.matrices import confusion_charts, embedding_charts, matrix_chart
from localprop.report.page.stored import Analysis, Explained, Scalar

Shown = Chart | Picture


@dataclass(frozen=True)
class Part:
    """One analysis on the page.

    Attributes:
        title: Its heading.
        lead: How to read it.
        shown: What is drawn.
        rows: All its rows.
    """

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
    """Lay out the analyses that a run has, in the order of the page; those that it does not know as tables alone.

    Args:
        explained: What was found.
        directory: Where the pictures lie.
    """
    known = [name for name in KINDS if name in explained.analyses]
    parts = []
    for name in (*known, *(name for name in explained.analyses if name not in KINDS)):
        analysis = explained.analyses[name]
        kind = KINDS.get(name, Kind(analysis.title, "", lambda *_: ()))
        parts.append(Part(kind.title, kind.lead, kind.draw(directory, analysis), table_of(analysis.rows)))
    return parts


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
    """Draw columns of the rows over the blocks; those without a number are left out.

    Args:
        panels: Title -> (name of the line -> column).
    """

    def draw(_: Path, analysis: Analysis) -> list[Shown]:
        charts: list[Shown] = []
        for title, lines in panels.items():
            columns = {label: [_number(row.get(column)) for row in analysis.rows] for label, column in lines.items()}
            known = {label: values for label, values in columns.items() if any(value is not None for value in values)}
            if known:
                charts.append(_lines(title, [str(row.get("name")) for row in analysis.rows], known))
        return charts

    return draw


def _lines(title: str, names: Sequence[str], columns: Mapping[str, Sequence[float | None]]) -> Chart:
    places = list(range(len(names)))
    traces = [_line(index, label, places, values) for index, (label, values) in enumerate(columns.items())]
    told = "; ".join(f"{label} {_ends(names, values)}" for label, values in columns.items())
    axes = {"xaxis": named_across(names), "yaxis": {"rangemode": "tozero"}}
    return Chart(title, f"{title}, block by block: {told}.", traces, axes, height=300)


def _line(index: int, label: str, x: Sequence[float | None], y: Sequence[float | None]) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": shown(label),
        "x": [rounded(value) for value in x],
        "y": [rounded(value) for value in y],
        "line": {"color": series(index), "width": 2, "dash": DASHES[index % len(DASHES)]},
        "marker": {"color": series(index), "size": 7, "symbol": SYMBOLS[index % len(SYMBOLS)]},
        "hovertemplate": "%{y:.4g}<extra>%{fullData.name}</extra>",
    }


def _ends(names: Sequence[str], values: Sequence[float | None]) -> str:
    known = [(name, value) for name, value in zip(names, values, strict=True) if value is not None]
    (first, begin), (last, end) = known[0], known[-1]
    return f"from {begin:.4g} in {first} to {end:.4g} in {last}"


def _number(value: Scalar) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _cka(_: Path, analysis: Analysis) -> list[Shown]:
    if analysis.matrix is None:
        return []
    names = [str(row.get("name")) for row in analysis.rows]
    beside = f" with those of a run of {analysis.against}" if analysis.against else "; each with itself is 1"
    words = f"CKA of the blocks{beside}."
    return [matrix_chart("CKA of blocks", words, analysis.matrix, names, analysis.columns or names, (0.0, 1.0))]


def _embeddings_over_training(_: Path, analysis: Analysis) -> list[Shown]:
    charts = []
    for title, column in {"Mean length": "mean_norm", "Effective rank": "effective_rank"}.items():
        lines: dict[str, list[tuple[float | None, float | None]]] = {}
        for row in analysis.rows:
            point = _number(row.get("epoch")), _number(row.get(column))
            lines.setdefault(str(row.get("name")), []).append(point)
        traces = [_line(index, name, *zip(*points, strict=True)) for index, (name, points) in enumerate(lines.items())]
        told = "; ".join(f"{name} from {begin} to {end}" for name, (begin, end) in _first_and_last(lines).items())
        axes = {"xaxis": {"title": {"text": "epoch"}}, "yaxis": {"rangemode": "tozero"}}
        charts.append(Chart(title, f"{title} of label embeddings over training: {told}.", traces, axes, height=300))
    return list(charts)


def _first_and_last(lines: Mapping[str, Sequence[tuple[float | None, float | None]]]) -> dict[str, tuple[str, str]]:
    return {name: (short_number(points[0][1]), short_number(points[-1][1])) for name, points in lines.items()}


KINDS: Mapping[str, Kind] = {
    "saliency": Kind("Saliency", "Where in test images the blocks see labels.", _saliency),
    "embeddings": Kind(
        "Label embeddings",
        "Which labels the dictionary puts near each other. A layout in two dimensions is no evidence by itself.",
        lambda _, analysis: embedding_charts(analysis),
    ),
    "embeddings-over-training": Kind(
        "Label embeddings over training",
        "How long the embeddings are, and how many directions they take up.",
        _embeddings_over_training,
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
    "memorisation": Kind(
        "Memorisation",
        "Errors on images that were trained on and on others; with random labels, on those learned by heart.",
        _over_blocks(
            {
                "Error (%)": {
                    "training": "train_error",
                    "test": "test_error",
                    "given label": "by_heart_error",
                    "true label": "true_error",
                }
            }
        ),
    ),
    "information": Kind(
        "Information",
        "Lower bounds, in nats, of what a block retains of the class and of a nuisance, such as whether the image was "
        "mirrored; the share of the pixels' variance that a linear decoder draws from it.",
        _over_blocks(
            {
                "I(h; class), nats": {"bound": "class_nats", "most": "class_most_nats"},
                "I(h; nuisance), nats": {"bound": "nuisance_nats", "most": "nuisance_most_nats"},
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
