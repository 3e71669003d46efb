"""Classify image files with every block of a trained network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from localprop.data.files import SUFFIXES
from localprop.data.images import read_image
from localprop.data.loader import normalise
from localprop.infer.ensemble import ensemble_probabilities, ensemble_weights
from localprop.train.assemble import in_layout
from localprop.train.stored import StoredRun, load_run

NETWORK = "network"
"""The name of the network's answer among the layers."""

_BATCH_SIZE = 256


@dataclass(frozen=True)
class Predictions:
    """What a trained network says of images.

    Attributes:
        files: The images.
        class_names: Z names.
        probabilities: Layer -> class probabilities, shape (N, Z): every block that makes a prediction, the weighted sum
            over blocks, and last the network's answer.
    """

    files: tuple[Path, ...]
    class_names: tuple[str, ...]
    probabilities: dict[str, Tensor]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row an image and layer: image, layer, class, probability, probabilities of all classes."""
        for number, file in enumerate(self.files):
            for layer, values in self.probabilities.items():
                best = int(values[number].argmax())
                named = zip(self.class_names, values[number].tolist(), strict=True)
                yield {
                    "image": str(file),
                    "layer": layer,
                    "class": self.class_names[best],
                    "probability": round(float(values[number, best]), 4),
                    "probabilities": {name: round(value, 6) for name, value in named},
                }


def predict(directory: Path, paths: Sequence[Path], *, allow_imports: bool = False) -> Predictions:
    """Predict the class of each image, by every block that makes a prediction, and by the weighted sum over blocks.

    Images of any size and mode are converted to the shape that the run was trained on.

    Args:
        directory: A run directory.
        paths: Image files, and directories, of which all images are taken, those in directories within them too.
        allow_imports: Whether import paths in the run's config.yaml may be imported.

    Raises:
        ValueError: The run or an image cannot be read, or there are no images.
    """
    files = image_files(paths)
    run = load_run(directory, allow_imports=allow_imports)
    weights = _weights(run, directory)
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(files), _BATCH_SIZE):
        for layer, values in _probabilities(run, files[start : start + _BATCH_SIZE], weights).items():
            found.setdefault(layer, []).append(values.cpu())
    return Predictions(tuple(files), run.facts.class_names, {layer: torch.cat(parts) for layer, parts in found.items()})


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files of `paths`, with the images in a directory's place, in the order of their names.

    Raises:
        ValueError: There are none, or a directory holds none.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and _is_shown(file, path)]
        if not inside:
            raise ValueError(f"IMAGE {path}: no images in this directory; they end in {', '.join(SUFFIXES)}")
        files += sorted(inside)
    if not files:
        raise ValueError("IMAGE: name at least one image file, or a directory of images")
    return files


def _is_shown(file: Path, directory: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(directory).parts)


def _probabilities(run: StoredRun, files: Sequence[Path], weights: Sequence[float]) -> dict[str, Tensor]:
    channels, height, width = run.facts.image_shape
    pixels = torch.stack([read_image(path, channels=channels, size=(height, width)) for path in files])
    x = in_layout(normalise(pixels.to(run.device), run.facts.mean, run.facts.std), run.rule)
    with torch.no_grad():
        exits = run.rule.exits(x)
        found = {
            name: logits.softmax(1)
            for name, logits in zip(run.rule.net.names, exits, strict=True)
            if logits is not None
        }
        found[f"ensemble ({run.config.ensemble})"] = ensemble_probabilities(exits, weights)
        found[NETWORK] = run.rule.answer(exits).softmax(1)
    return found


def _weights(run: StoredRun, directory: Path) -> list[float]:
    """Return the weights of the run's weighted sum over blocks."""
    kind = run.config.ensemble
    if kind != "learned":
        return ensemble_weights(len(run.rule.net), kind)
    file = directory / "final.json"
    try:
        weights = [float(weight) for weight in json.loads(file.read_text(encoding="utf-8"))["learned_weights"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: holds no learned weights of the blocks ({type(error).__name__}); end the run first, with "
            "--resume auto"
        ) from error
    if len(weights) != len(run.rule.net) or not all(0 <= weight <= 1 for weight in weights):
        raise ValueError(f"{file}: learned_weights does not fit the network; it was changed, train the run again")
    return weights
