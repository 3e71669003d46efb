"""First-layer filters, as images."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from localprop.analysis.checks import check_features
from localprop.analysis.figures import image_figure
from localprop.analysis.subject import Finding, Subject
from localprop.functional.filters import filter_images, first_layer

_SHOWN = 64
_DEAD = 0.01


def filters_of_run(subject: Subject) -> Finding:
    """Describe the filters of the first layer, one row: their sizes, their likeness, and how many are dead.

    `mean_cosine` is that of the absolute cosine over pairs of filters, 1 for filters that are all alike; `dead` counts
    filters shorter than a hundredth of the longest.

    Raises:
        ValueError: The first layer's filters are no images.
    """
    name, weight = first_layer(subject.rule.net.blocks[0], subject.run.facts.image_shape)
    weight = weight.float().cpu()
    flat = weight.flatten(1)
    check_features("filters", flat, fewest=1)
    norms = flat.norm(dim=1)
    unit = torch.nn.functional.normalize(flat, dim=1)
    first, second = torch.triu_indices(len(unit), len(unit), 1)
    row = {
        "layer": f"{subject.names[0]}.{name}".rstrip("."),
        "filters": len(weight),
        "size": " x ".join(map(str, weight.shape[1:])),
        "mean_norm": float(norms.mean()),
        "std_norm": float(norms.std(correction=0)),
        "mean_cosine": float((unit @ unit.T)[first, second].abs().mean()) if len(unit) > 1 else None,
        "dead": int((norms < _DEAD * norms.max()).sum()),
    }
    return Finding([row], {"norms": norms.tolist()}, {"weight": weight})


def filters_figure(finding: Finding) -> Figure:
    """Draw the longest 64 filters, longest first; averaged over channels unless these are one or three."""
    weight = finding.tensors["weight"]
    chosen = weight[torch.tensor(finding.details["norms"]).argsort(descending=True, stable=True)[:_SHOWN]]
    images = filter_images(chosen if chosen.shape[1] in (1, 3) else chosen.mean(1, keepdim=True))
    columns = min(8, len(images))
    rows = [list(images[start : start + columns]) for start in range(0, len(images), columns)]
    return image_figure(rows, [[""] * len(row) for row in rows])
