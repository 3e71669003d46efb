"""Predictions of all blocks on images: a table of one row an image, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from localprop.infer.predict import NETWORK, Predictions
from localprop.report.pictures import save_picture

MOST_IMAGES = 16
"""Images in a picture; more would be too small to see."""
MOST_CLASSES, BEST_CLASSES = 20, 10
"""Up to so many classes all are shown beside an image; of more, those that some layer finds most probable."""


def prediction_cells(found: Predictions) -> Sequence[Mapping[str, str]]:
    """Return one row an image: the network's answer with its probability, and what every layer says."""
    rows = []
    for number, file in enumerate(found.files):
        said = {
            layer: found.class_names[int(values[number].argmax())]
            for layer, values in found.probabilities.items()
            if layer != NETWORK
        }
        answer = found.probabilities[NETWORK][number]
        best = int(answer.argmax())
        rows.append(
            {"image": str(file), "answer": found.class_names[best], "probability": f"{float(answer[best]):.4f}", **said}
        )
    return rows


def predictions_figure(found: Predictions, path: Path) -> None:
    """Draw each image beside the probabilities that every layer gives every class, for the first `MOST_IMAGES`."""
    shown = found.files[:MOST_IMAGES]
    layers = list(found.probabilities)
    num_columns = 1 if len(shown) == 1 else 2
    num_rows = -(-len(shown) // num_columns)
    height = 0.9 + 0.19 * len(layers)
    figure = Figure(figsize=(6.2 * num_columns, height * num_rows + 0.4), layout="constrained")
    axes = figure.subplots(num_rows, 2 * num_columns, squeeze=False, width_ratios=[1, 2.6] * num_columns)
    for ax in axes.flat:
        ax.set_axis_off()
    for number, file in enumerate(shown):
        row, column = divmod(number, num_columns)
        picture, chart = axes[row][2 * column], axes[row][2 * column + 1]
        with Image.open(file) as image:
            picture.imshow(image.convert("RGB"))
        picture.set_title(_short(file.name), fontsize=8, parse_math=False)
        chart.set_axis_on()
        probabilities = torch.stack([found.probabilities[layer][number] for layer in layers])
        classes = _shown_classes(probabilities)
        names = [_short(found.class_names[index]) for index in classes]
        values = probabilities[:, classes].tolist()
        chart.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        chart.set_yticks(range(len(layers)), layers, fontsize=7, parse_math=False)
        chart.set_xticks(
            range(len(names)), names, fontsize=7, rotation=45, ha="right", rotation_mode="anchor", parse_math=False
        )
        for index, line in enumerate(values):
            best = max(range(len(line)), key=line.__getitem__)
            colour = "black" if line[best] > 0.6 else "white"
            chart.text(best, index, f"{100 * line[best]:.0f}", ha="center", va="center", fontsize=6, color=colour)
        answer = found.class_names[int(found.probabilities[NETWORK][number].argmax())]
        chart.set_title(_short(answer), fontsize=9, parse_math=False)
    rest = len(found.files) - len(shown)
    title = "probability of each class (%, its largest) by layer"
    figure.suptitle(title + (f"; {rest} more images are not shown" if rest else ""), fontsize=9)
    save_picture(figure, path, dpi=130)


def _shown_classes(probabilities: Tensor) -> list[int]:
    if probabilities.shape[1] <= MOST_CLASSES:
        return list(range(probabilities.shape[1]))
    return sorted(int(index) for index in probabilities.amax(0).topk(BEST_CLASSES).indices)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:22]}…"
