"""Saliency of labels: at which positions a block's features are like a label's embedding.

References:
    Choi et al., "Dictionary Contrastive Learning for Efficient Local Supervision without Auxiliary Networks",
    ICLR 2024.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from localprop.analysis.figures import image_figure
from localprop.analysis.subject import Finding, Subject, block_outputs, label_weights
from localprop.functional.pooling import as_map, standard_layout
from localprop.functional.precision import at_least_single

_IMAGES = 4


def saliency_maps(h: Tensor, embeddings: Tensor) -> Tensor:
    """Compute the saliency of every label at every position: s_z(u, v) = <h_{:,u,v}, t_z>.

    Its mean over positions is the block's dot-product logit <hbar, t_z>.

    Args:
        h: Block output. Shape (N, C, H, W).
        embeddings: The label embeddings of the block's width. Shape (Z, C).

    Shape: (N, Z, H, W).

    Raises:
        ValueError: The widths differ.

    Example:
        >>> import torch
        >>> h = torch.zeros(1, 2, 2, 2)
        >>> h[0, :, 0, 1] = torch.tensor([3.0, 4.0])
        >>> saliency_maps(h, torch.tensor([[3.0, 4.0]])).tolist()
        [[[[0.0, 25.0], [0.0, 0.0]]]]
    """
    if h.dim() != 4 or embeddings.dim() != 2 or h.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"h, embeddings: need maps (N, C, H, W) and embeddings (Z, C) of one width C, got {tuple(h.shape)} and "
            f"{tuple(embeddings.shape)}; pool the embeddings to the block's width"
        )
    return torch.einsum("nchw,zc->nzhw", at_least_single(h), at_least_single(embeddings))


def top_labels(maps: Tensor, count: int = 2) -> Tensor:
    """Return the labels with the largest mean saliency of each image, best first, shape (N, Z, H, W) -> (N, count)."""
    return maps.mean((2, 3)).topk(min(count, maps.shape[1]), dim=1).indices


def to_image(saliency: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample saliency maps bilinearly to an image, and show what speaks for a label: ReLU, the largest being 1.

    Args:
        saliency: Shape (N, H, W).
        size: Height and width of the image.

    Shape: (N, *size), in [0, 1]; zero where nothing speaks for the label.
    """
    positive = F.interpolate(saliency[:, None], size, mode="bilinear", align_corners=False)[:, 0].clamp_min(0)
    largest = positive.amax((1, 2), keepdim=True)
    return positive / largest.clamp_min(torch.finfo(positive.dtype).tiny)


def saliency_of_run(subject: Subject) -> Finding:
    """Find the two most salient labels of some test images in every block with label embeddings and positions.

    One row a block and image: the labels, their mean saliency, and where that of the first is largest, in pixels from
    the upper left. Of several embeddings of a class the most like one counts, position by position.

    Raises:
        ValueError: The method has no label embeddings, or no block with them has more than one position.
    """
    dictionaries = subject.dictionaries()
    names = subject.run.facts.class_names
    height, width = subject.run.facts.image_shape[1:]
    chosen = subject.test.subset(range(min(_IMAGES, len(subject.test))))
    x, y = next(subject.batches(chosen))
    x, y = x[:_IMAGES], y[:_IMAGES]
    rows: list[dict[str, Any]] = []
    shown: dict[str, list[tuple[str, Tensor]]] = {}
    for index, h in enumerate(block_outputs(subject.rule, x)):
        objective = dictionaries.get(index)
        if objective is None:
            continue
        features = as_map(standard_layout(h, objective.spec.channel_axis)) if h.dim() > 2 else h[..., None, None]
        if features.shape[2:].numel() == 1:
            continue
        every = saliency_maps(features, label_weights(objective))
        maps = every.view(len(x), len(names), -1, *every.shape[2:]).amax(2)
        for number, labels in enumerate(top_labels(maps).tolist()):
            chosen_maps = maps[number, labels]
            pictures = to_image(chosen_maps, (height, width)).cpu()
            means = chosen_maps.mean((1, 2)).tolist()
            place = int(chosen_maps[0].argmax())
            row, column = divmod(place, maps.shape[3])
            rows.append(
                {
                    "block": index,
                    "name": subject.names[index],
                    "image": number,
                    "class": names[int(y[number])],
                    "first": names[labels[0]],
                    "first_saliency": means[0],
                    "second": names[labels[1]],
                    "second_saliency": means[1],
                    "peak_row": int((row + 0.5) * height / maps.shape[2]),
                    "peak_column": int((column + 0.5) * width / maps.shape[3]),
                }
            )
            for rank, (label, picture) in enumerate(zip(labels, pictures, strict=True)):
                shown.setdefault(f"{number} {rank}", []).append((f"{subject.names[index]}: {names[label]}", picture))
    if not rows:
        raise ValueError("no block with label embeddings has positions to tell apart: their outputs are flat")
    images = subject.rule.image(x).detach().cpu()
    return Finding(rows, tensors={"images": images, "maps": shown, "classes": [names[int(label)] for label in y]})


def saliency_figure(finding: Finding) -> Figure:
    """Draw each image, and beside it the maps of its first label; below, those of its second."""
    pictures, titles = [], []
    for key, maps in finding.tensors["maps"].items():
        number = int(key.split()[0])
        image = finding.tensors["images"][number]
        image = image if image.shape[0] in (1, 3) else image[:1]
        pictures.append([image, *(picture[None] for _, picture in maps)])
        titles.append([finding.tensors["classes"][number], *(title for title, _ in maps)])
    order = sorted(range(len(pictures)), key=lambda place: list(finding.tensors["maps"])[place])
    return image_figure([pictures[place] for place in order], [titles[place] for place in order])
