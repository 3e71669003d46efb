"""Charts of classes against classes, of blocks against blocks, and the map of label embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from localprop.report.page.chart import (
    INK,
    NUM_COLORS,
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
from localprop.report.page.stored import Analysis, Matrix, Pair

MOST_CLASSES = 120
MOST_NAMED = 40
MOST_PAIRS, MOST_DRAWN_PAIRS = 20, 1000
_UPWARD = [[0, "$card"], [1, "$high"]]
_BOTH_WAYS = [[0, "$low"], [0.5, "$card"], [1, "$high"]]
"""Colours of numbers, on which the page's ink can be read everywhere."""


def matrix_chart(
    title: str,
    words: str,
    matrix: Matrix,
    names: Sequence[str],
    across: Sequence[str],
    limits: tuple[float, float],
    numbers: Numbers | None = None,
    note: str = "",
) -> Chart:
    """Draw a matrix in colours.

    Args:
        title: What it shows.
        words: The main facts.
        matrix: Shape (len(names), len(across)); what is None stays empty.
        names: Of the rows.
        across: Of the columns.
        limits: The numbers of the two ends of the colours; about zero they diverge.
        numbers: Its table; None where the page has it already.
        note: What to know when reading it.
    """
    values = [[rounded(value) for value in row] for row in matrix]
    trace: Trace = {
        "type": "heatmap",
        "z": values,
        "zmin": limits[0],
        "zmax": limits[1],
        "colorscale": _UPWARD if limits[0] >= 0 else _BOTH_WAYS,
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"thickness": 12, "outlinewidth": 0},
        "hovertemplate": "%{y} / %{x}: %{z:.3g}<extra></extra>",
    }
    if len(across) <= 12:
        trace |= {"texttemplate": "%{z:.2f}", "textfont": {"color": INK}}
    ticks = {"showgrid": False, "showticklabels": max(len(names), len(across)) <= MOST_NAMED}
    axes = {"xaxis": named_across(across, **ticks), "yaxis": named_axis(names, **ticks, autorange="reversed")}
    return Chart(title, words, [trace], axes, numbers, 420, note)


def _nearest(row: Sequence[float | None], place: int, names: Sequence[str]) -> tuple[str, float] | None:
    others = [
        (value, name)
        for other, (value, name) in enumerate(zip(row, names, strict=True))
        if other != place and value is not None
    ]
    if not others:
        return None
    value, name = max(others)
    return name, value


def _told(nearest: tuple[str, float] | None) -> str | None:
    return None if nearest is None else f"{nearest[0]} ({nearest[1]:.3f})"


def embedding_charts(analysis: Analysis) -> list[Chart]:
    """Draw the map of a dictionary's embeddings, and their cosines where the classes are few enough."""
    classes, layout = analysis.classes, analysis.t_sne or analysis.principal_components
    if not layout:
        return []
    name, cosines = next(iter(analysis.cosines.items()), ("", ()))
    charts = [_map(analysis, layout, cosines)]
    if cosines and len(classes) <= MOST_CLASSES:
        words = f"Cosines of the embeddings of {len(classes)} classes, dictionary {name}."
        numbers, note = None, "The nearest of each class is among the numbers of the map."
        if len(classes) <= MOST_NAMED:
            cells = [[label, *map(rounded, row)] for label, row in zip(classes, cosines, strict=True)]
            numbers, note = Numbers(["class", *classes], cells), ""
        charts.append(
            matrix_chart("Cosines of label embeddings", words, cosines, classes, classes, (-1.0, 1.0), numbers, note)
        )
    return charts


def _map(analysis: Analysis, layout: Sequence[tuple[float, float]], cosines: Matrix) -> Chart:
    classes, groups = analysis.classes, analysis.super_of or (0,) * len(analysis.classes)
    is_t_sne = bool(analysis.t_sne)
    how = "t-SNE" if is_t_sne else "principal components"
    trace: Trace = {
        "type": "scatter",
        "mode": "markers+text" if len(classes) <= MOST_NAMED else "markers",
        "x": [rounded(x) for x, _ in layout],
        "y": [rounded(y) for _, y in layout],
        "text": [shown(name) for name in classes],
        "textposition": _sides(layout),
        "marker": {
            "size": 10,
            "color": [series(group) for group in groups],
            "symbol": [SYMBOLS[group // NUM_COLORS % len(SYMBOLS)] for group in groups],
        },
        "cliponaxis": False,
        "hovertemplate": "%{text}<extra></extra>",
    }
    hidden = {"showticklabels": False}
    titles = (
        ["", ""]
        if is_t_sne
        else [
            f"component {n + 1} ({100 * share:.0f} % of the variance)"
            for n, share in enumerate(analysis.explained_variance[:2])
        ]
    )
    axes = {
        "xaxis": {**hidden, "title": {"text": titles[0]}},
        "yaxis": {**hidden, "title": {"text": titles[1]}},
    }
    near = [_nearest(row, place, classes) for place, row in enumerate(cosines)] or [None] * len(classes)
    closest = max(
        ((found[1], name, found[0]) for name, found in zip(classes, near, strict=True) if found), default=None
    )
    words = f"Map of {len(classes)} label embeddings by {how}."
    if closest:
        words += f" The two most alike are {closest[1]} and {closest[2]}, cosine {closest[0]:.2f}."
    cells: list[list[Cell]] = [
        [name, x, y, _told(found)] for name, (x, y), found in zip(classes, layout, near, strict=True)
    ]
    note = "Colours and shapes are super-classes. " if analysis.super_of else ""
    if len(classes) > MOST_CLASSES:
        note += f"Cosines and confusion are drawn of at most {MOST_CLASSES} classes; explain.json has them all."
    return Chart(
        "Map of label embeddings",
        words,
        [trace],
        axes,
        Numbers(["class", "x", "y", "nearest by cosine"], cells),
        420,
        note,
    )


def _sides(layout: Sequence[tuple[float, float]]) -> list[str]:
    """Put each name on the other side than that of the nearest point before it, so that few cover each other."""
    sides: list[str] = []
    for place, (x, y) in enumerate(layout):
        distances = [
            (math.hypot(x - other[0], y - other[1]), side) for other, side in zip(layout[:place], sides, strict=True)
        ]
        _, nearest = min(distances, default=(0.0, "bottom center"))
        sides.append("top center" if nearest == "bottom center" else "bottom center")
    return sides


def confusion_charts(analysis: Analysis) -> list[Chart]:
    """Draw how often classes are mixed up in the last block with embeddings, and that against their cosines."""
    block = str(analysis.rows[-1].get("name"))
    pairs = analysis.pairs.get(block, ())
    known = sorted((pair for pair in pairs if pair.confusion_percent is not None), key=_rate, reverse=True)
    if not known:
        return []
    top = [[*pair.classes, pair.confusion_percent, pair.cosine] for pair in known[:MOST_PAIRS]]
    numbers = Numbers(["class", "mixed up with", "confusion %", "cosine"], top)
    worst = known[0]
    words = f"Most mixed up in {block}: {worst.classes[0]} and {worst.classes[1]}, {_rate(worst):.1f} percent."
    charts = [_against_cosine(known, numbers, words)]
    classes = _classes(pairs)
    if classes and len(classes) <= MOST_CLASSES:
        matrix: list[list[float | None]] = [[None] * len(classes) for _ in classes]
        places = ((i, j) for i in range(len(classes)) for j in range(i + 1, len(classes)))
        for (i, j), pair in zip(places, pairs, strict=True):
            matrix[i][j] = matrix[j][i] = pair.confusion_percent
        top_rate = max(_rate(worst), 1.0)
        square = tuple(tuple(row) for row in matrix)
        note = "Percent of the images of both classes that are taken for the other one."
        charts.insert(
            0, matrix_chart(f"Confusion in {block}", words, square, classes, classes, (0.0, top_rate), numbers, note)
        )
    return charts


def _rate(pair: Pair) -> float:
    return pair.confusion_percent or 0.0


def _classes(pairs: Sequence[Pair]) -> list[str]:
    """Recover the classes of pairs that stand in the order (0, 1), (0, 2), ..., (1, 2), ...; none if they do not."""
    count = (1 + math.isqrt(1 + 8 * len(pairs))) // 2
    if count * (count - 1) // 2 != len(pairs):
        return []
    classes = [pairs[0].classes[0], *(pair.classes[1] for pair in pairs[: count - 1])]
    order = [(classes[i], classes[j]) for i in range(count) for j in range(i + 1, count)]
    return classes if order == [pair.classes for pair in pairs] else []


def _against_cosine(most_first: Sequence[Pair], numbers: Numbers, words: str) -> Chart:
    pairs = most_first[:MOST_DRAWN_PAIRS]
    left = len(most_first) - len(pairs)
    note = f"The {len(pairs)} pairs most mixed up; {left} others are not drawn." if left else ""
    trace: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": [rounded(pair.cosine) for pair in pairs],
        "y": [rounded(pair.confusion_percent) for pair in pairs],
        "text": [" / ".join(map(shown, pair.classes)) for pair in pairs],
        "marker": {"color": series(0), "size": 7},
        "hovertemplate": "%{text}: %{y:.1f} %<extra></extra>",
    }
    axes = {
        "xaxis": {"title": {"text": "cosine of the two embeddings"}},
        "yaxis": {"title": {"text": "confusion (%)"}, "rangemode": "tozero"},
    }
    words = f"Confusion over the cosine of embeddings. {words}"
    return Chart("Confusion against likeness", words, [trace], axes, numbers, 340, note)
