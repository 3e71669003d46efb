"""Classify image files with every block of a trained network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from localprop.data.images import read_image
from localprop.data.loader import normalise
from localprop.infer.ensemble import ensemble_probabilities
from localprop.train.assemble import in_layout
from localprop.train.stored import load_run


def predict(directory: Path, images: Sequence[Path], *, allow_imports: bool = False) -> list[dict[str, Any]]:
    """Predict the class of each image, by every block that makes a prediction, and by the weighted sum over blocks.

    Images of any size and mode are converted to the shape that the run was trained on.

    Args:
        directory: A run directory.
        images: Image files.
        allow_imports: Whether import paths in the run's config.yaml may be imported.

    Returns:
        One row an image and predictor: image, layer ("network" is the network's answer), class, probability, and
        probabilities (all classes, in the order of the labels).

    Raises:
        ValueError: The run or an image cannot be read, or there are no images.
    """
    if not images:
        raise ValueError("IMAGE: name at least one image file")
    run = load_run(directory, allow_imports=allow_imports)
    channels, height, width = run.facts.image_shape
    pixels = torch.stack([read_image(path, channels=channels, size=(height, width)) for path in images])
    x = in_layout(normalise(pixels.to(run.device), run.facts.mean, run.facts.std), run.rule)
    with torch.no_grad():
        exits = run.rule.exits(x)
        named = {name: logits for name, logits in zip(run.rule.net.names, exits, strict=True) if logits is not None}
        probabilities = {name: logits.softmax(1) for name, logits in named.items()}
        probabilities[f"ensemble ({run.config.ensemble})"] = ensemble_probabilities(exits, run.config.ensemble)
        probabilities["network"] = run.rule.predict(x).softmax(1)
    rows = []
    for number, path in enumerate(images):
        for layer, values in probabilities.items():
            best = int(values[number].argmax())
            rows.append(
                {
                    "image": str(path),
                    "layer": layer,
                    "class": run.facts.class_names[best],
                    "probability": round(float(values[number, best]), 4),
                    "probabilities": {
                        name: round(float(value), 6)
                        for name, value in zip(run.facts.class_names, values[number], strict=True)
                    },
                }
            )
    return rows
