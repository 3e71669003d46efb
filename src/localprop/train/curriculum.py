"""How hard each training image is, by the loss of a trained run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from localprop.data.curriculum import order_of
from localprop.data.store import ImageData
from localprop.train.assemble import evaluation_pairs
from localprop.train.config import RunConfig
from localprop.train.stored import load_run


def curriculum_order(config: RunConfig, images: ImageData, *, allow_imports: bool = False) -> Tensor:
    """Return the numbers of the training images in the order of the run's curriculum.

    The difficulty of an image is the cross-entropy of the network's answer that the run named by `config.curriculum`
    gives it, without augmentation.

    Args:
        config: The settings of the run that is to be trained.
        images: Its data.
        allow_imports: Whether import paths in the settings of the run that judges may be imported.

    Raises:
        ValueError: That run cannot be read, or reads other images or classes.
    """
    assert config.curriculum is not None
    try:
        run = load_run(Path(config.curriculum), allow_imports=allow_imports)
    except ValueError as error:
        raise ValueError(f"--curriculum {error}") from error
    if (run.facts.class_names, run.facts.image_shape) != (images.class_names, images.image_shape):
        raise ValueError(
            f"--curriculum {config.curriculum}: was trained on images of shape {run.facts.image_shape} and classes "
            f"{run.facts.class_names}, these have {images.image_shape} and {images.class_names}; train one on this data"
        )
    everything = replace(run.config, limit_batches=None)
    losses = []
    with torch.no_grad():
        for x, y in evaluation_pairs(everything, images.train, run.facts, run.rule, run.device):
            losses.append(F.cross_entropy(run.rule.predict(x).float(), y, reduction="none").cpu())
    return order_of(torch.cat(losses), images.train.labels.cpu(), hardest_first=config.curriculum_order == "hard")
