"""Published training settings: which network on which data set is trained how.

All methods of the DCL paper, backprop among them, share one recipe per network and data set, and so do ours: one
protocol. A method that cannot be trained so says what differs in its row of the catalogue. Milestones are stored as
fractions of the published run, so that a shorter run keeps the schedule's form.
"""

from __future__ import annotations

from dataclasses import replace

from localprop.types import TrainingRecipe

_SOURCE = "preset of the official DCL code (Choi et al., ICLR 2024)"
_LOCAL_ERRORS = "published run of Nokland and Eidnes, ICML 2019"


def _published(
    lr: float, batch_size: int, epochs: int, milestones: tuple[int, ...], gamma: float, dropout: float
) -> TrainingRecipe:
    fractions = tuple(milestone / epochs for milestone in milestones)
    return TrainingRecipe(batch_size, epochs, lr, fractions, gamma, dropout, _SOURCE)


def _local_errors(epochs: int, milestones: tuple[int, ...], dropout: float, lr: float = 0.0005) -> TrainingRecipe:
    fractions = tuple(milestone / epochs for milestone in milestones)
    return TrainingRecipe(128, epochs, lr, fractions, 0.25, dropout, _LOCAL_ERRORS, "Adam", 0.0)


PUBLISHED: dict[tuple[str, str], TrainingRecipe] = {
    ("conv", "mnist"): _published(0.0075, 512, 150, (50, 75, 100, 125), 0.5, 0.0),
    ("conv", "cifar10"): _published(0.0075, 512, 500, (100, 200, 300, 400, 450), 0.5, 0.0),
    ("conv", "cifar100"): _published(0.0075, 512, 400, (100, 200, 250, 300, 350), 0.5, 0.0),
    ("fc", "mnist"): _published(0.0005, 512, 150, (50, 100, 125), 0.5, 0.0),
    ("fc", "cifar10"): _published(0.0002, 512, 400, (50, 150, 200, 350), 0.5, 0.0),
    ("fc", "cifar100"): _published(0.0001, 512, 200, (50, 100, 150), 0.5, 0.3),
    ("vgg8b", "mnist"): _published(0.0005, 128, 100, (50, 75, 89, 94), 0.25, 0.1),
    ("vgg8b", "fashion-mnist"): _published(0.0005, 128, 200, (100, 150, 175, 188), 0.25, 0.1),
    ("vgg8b", "cifar10"): _published(0.0005, 128, 400, (200, 300, 350, 375), 0.25, 0.05),
    ("vgg8b", "cifar100"): _published(0.0005, 128, 400, (200, 300, 350, 375), 0.25, 0.05),
    ("vgg8b", "svhn"): _published(0.0003, 128, 100, (50, 75, 89, 94), 0.25, 0.05),
    ("vgg8b", "stl10"): _published(0.0005, 128, 400, (200, 300, 350, 375), 0.25, 0.1),
    ("vgg11b", "cifar10"): _local_errors(400, (200, 300, 350, 375), 0.2),
    ("vgg11b", "cifar100"): _local_errors(400, (200, 300, 350, 375), 0.05),
    ("mlp", "mnist"): _local_errors(100, (50, 75, 89, 94), 0.1),
    ("mlp", "fashion-mnist"): _local_errors(200, (100, 150, 175, 188), 0.025),
    ("mlp", "cifar10"): _local_errors(400, (200, 300, 350, 375), 0.1),
    ("mlp", "cifar100"): _local_errors(400, (200, 300, 350, 375), 0.025),
}
"""(network, data set) -> settings."""

# The nearest published setting, for pairs that the paper does not train.
_DATA_LIKE = {
    "fashion-mini": "fashion-mnist",
    "hierarchical-digits": "mnist",
    "coloured-digits": "mnist",
    "textured-digits": "mnist",
    "cifar100-super": "cifar100",
    "svhn-extra": "svhn",
}
_NETWORK_DEFAULT = {"conv": "mnist", "fc": "mnist", "vgg8b": "cifar10", "vgg11b": "cifar10", "mlp": "mnist"}

DEFAULT = TrainingRecipe(
    128,
    100,
    0.0005,
    (0.5, 0.75, 0.89, 0.94),
    0.25,
    0.0,
    "localprop's default for networks without a published recipe",
)


def recipe_for(model: str, data: str) -> TrainingRecipe:
    """Return the settings that fit a network and a data set, whatever the method.

    Args:
        model: Name of the network.
        data: Name of the data set.
    """
    data = _DATA_LIKE.get(data, data)
    recipe = PUBLISHED.get((model, data))
    if recipe is None and model in _NETWORK_DEFAULT:
        like = PUBLISHED[model, _NETWORK_DEFAULT[model]]
        recipe = replace(
            like, source=f"{like.source}, of {model} on {_NETWORK_DEFAULT[model]}: none is published for {data}"
        )
    return recipe or DEFAULT
