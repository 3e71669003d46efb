"""Kernels on patches: dictionaries drawn from the training set, and linear maps of what they name."""

from __future__ import annotations

from localprop.citations import paper
from localprop.methods.common import Specs
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import CrossEntropy, LinearPrediction
from localprop.rules import PatchDictionaries


def patch_dictionaries(
    net: LocalNetwork,
    specs: Specs,
    *,
    ridge: float = 1e-3,
    patches_per_image: int = 8,
    feature_budget: int = 2048,
) -> PatchDictionaries:
    """Train stage after stage on the codes of a dictionary of patches, each stage by a linear classifier.

    Args:
        net: A network of `--model patches`.
        specs: Its stages.
        ridge: lambda of the whitening, positive.
        patches_per_image: Windows that are drawn in each image, at least 1.
        feature_budget: Most features that the classifier of a stage before the last reads.
    """
    hidden = [LinearPrediction(spec, feature_budget=feature_budget) for spec in specs[:-1]]
    objectives = [*hidden, CrossEntropy(specs[-1])]
    return PatchDictionaries(net, objectives, ridge=ridge, patches_per_image=patches_per_image)


METHODS = (
    Method(
        "patches",
        "Patch dictionaries: whitened nearest patches, stage by stage",
        "kernel",
        2021,
        paper("thiry2021unreasonable"),
        patch_dictionaries,
        "one linear layer for each stage but the last",
        training={"lr": 0.005},
    ),
)
