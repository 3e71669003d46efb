"""What live loggers show beside curves: the first layer's filters as a picture, and points to look around in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.utils import make_grid

from localprop.data.loader import evaluation_batches
from localprop.data.store import ImageSet, in_size
from localprop.functional.filters import filter_images, first_layer
from localprop.functional.pooling import averaged_output
from localprop.record.recorder import Picture, Points
from localprop.rules import Rule
from localprop.train.assemble import DataFacts, in_layout
from localprop.train.rows import dictionaries

_POINTS = 256
_FILTERS = 64


def exhibits(rule: Rule, images: ImageSet, facts: DataFacts, device: torch.device) -> Iterator[Picture | Points]:
    """Yield what can be shown of a rule in evaluation mode.

    The filters of the first layer, where it reads pixels; the label embeddings of every dictionary; and the last hidden
    block's averaged features of 256 images, with the images, where the method's blocks are a chain.

    Args:
        rule: The rule.
        images: Images that it was not trained on.
        facts: Of its data.
        device: Where it lies.
    """
    try:
        _, weight = first_layer(rule.net.blocks[0], facts.image_shape)
    except ValueError:  # its filters are no pictures
        pass
    else:
        shown = filter_images(weight[:_FILTERS].float().cpu())
        shown = shown if shown.shape[1] in (1, 3) else shown.mean(1, keepdim=True)
        yield Picture("filters of the first layer", make_grid(shown, padding=1, pad_value=0.5))
    for name, dictionary in dictionaries(rule).items():
        labels = [label for label in facts.class_names for _ in range(dictionary.embeddings_per_class)]
        yield Points(f"label embeddings, {name}", dictionary.embeddings.detach().float().cpu(), labels, None)
    if rule.is_chain and len(rule.net) > 1:
        some = images.subset(range(min(_POINTS, len(images))))
        names = [facts.class_names[int(label)] for label in some.labels]
        pixels = in_size(some.images, some.side).float() / 255
        yield Points(f"features of {rule.net.names[-2]}", _features(rule, some, facts, device), names, pixels)


def _features(rule: Rule, images: ImageSet, facts: DataFacts, device: torch.device) -> Tensor:
    [(x, _)] = evaluation_batches(images, _POINTS, facts.mean, facts.std, device)
    h = rule.features(in_layout(x, rule), len(rule.net) - 1)
    return averaged_output(h, rule.specs[-2].channel_axis).float().cpu()
