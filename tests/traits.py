"""What the shared tests may expect of each method: the exceptions of the catalogue, in one table."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest

from localprop.methods import CATALOGUE
from localprop.types import Key

THOROUGH = {"bp", "dcl", "dcl-s", "pred"}
"""Methods that `make test` runs on every network of the tests; the others run there on the FAST ones alone."""
FAST = {"fc-1x28", "conv-1x28", "patches-1x28"}
COSTLY, FASTEST = {"pff", "dni-unlocked"}, {"fc-1x28"}
"""Methods of many passes a step, or of many steps to learn: `make test` runs them on these networks alone."""


@dataclass(frozen=True)
class Traits:
    """What holds of a method.

    Attributes:
        hidden_predictions: Hidden blocks make predictions.
        silent_blocks: How many of the first blocks make none even then.
        block_by_block: Each block is one group (block, "block"), yielded in order with its own gradients alone, by an
            objective that sees nothing but the block.
        network_answers: The answer is that of `rule.net` as a plain module.
        last_block_answers: The answer is that of the last block alone.
        all_trained: Every parameter is trained; else the method keeps some still, or lets them follow others.
        takes_steps: Something is trained by steps; else `finish` does it all.
        model: The only network of the catalogue of models that the method trains; other methods need not.
        own_network: The rule's network is one of the method's own, with other blocks and without dropout.
        needs_image: Hidden blocks need the image, so that no stretch of them can be trained from features alone.
        loss_floor: Least value of a hidden block's loss on batches of 16 images and 4 classes.
        graph_of_block: Block and objective learn from one graph; otherwise from less.
        learning_steps: Steps on one batch after which losses must be lower.
        last_loss: What these steps leave of the last block's loss, at most.
        steady: These steps lower every block's loss; of a method of random estimates, their sum.
        repeats: Some groups are updated several times a batch; each for the first time after those before it.
        without_loss: Groups that get their gradients without a loss, by name; the last block always has one.
        moving_targets: Groups whose loss is a distance to what training moves, by name: it need not fall.
        refused: Networks of the tests that the method cannot train, by name; "isolation" and "flat" are those of the
            tests of isolation and of hostile batches.
    """

    hidden_predictions: bool = True
    silent_blocks: int = 0
    block_by_block: bool = True
    network_answers: bool = True
    last_block_answers: bool = True
    all_trained: bool = True
    takes_steps: bool = True
    model: str | None = None
    own_network: bool = False
    needs_image: bool = False
    loss_floor: float = 0.0
    graph_of_block: bool = True
    learning_steps: int = 40
    last_loss: float = 0.9
    steady: bool = True
    repeats: bool = False
    without_loss: frozenset[str] = frozenset({"shared"})
    moving_targets: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()


_GLOBAL_ERROR = Traits(hidden_predictions=False, block_by_block=False, without_loss=frozenset({"block"}))
"""The error of the last block reaches the others, which have no loss and make no prediction."""

_PREDICTED = Traits(
    hidden_predictions=False,
    block_by_block=False,
    without_loss=frozenset({"block"}),
    moving_targets=frozenset({"synthesiser", "input"}),
)
"""Blocks learn from predicted gradients, and predictors from what they predict."""

_FIXED_SIZE = frozenset(
    {"fc-1x28", "fc-3x32", "vgg8b-1x28", "vgg8b-3x32", "sequential-1x28", "sequential-3x32", "isolation", "flat"}
) | {"vit-1x28", "mixer-3x32"}
"""Networks that take images of one size alone, and so no patches of them."""

_MODULES = frozenset({"resnet32-3x32", "vit-1x28", "mixer-3x32"})
"""Networks whose blocks have several layers."""

_CASCADE = Traits(network_answers=False, last_block_answers=False)
"""All blocks answer together."""

_EXCEPTIONS: dict[str, Traits] = {
    "bp": Traits(hidden_predictions=False, block_by_block=False),
    "feat": Traits(hidden_predictions=False),
    "frozen": Traits(all_trained=False),
    "last-block": Traits(block_by_block=False, own_network=True),
    "dgl-image": Traits(needs_image=True),
    "dgl-shift": Traits(needs_image=True),
    "dgl-rotation": Traits(block_by_block=False),
    "dgl-mixed": Traits(block_by_block=False),
    "overlap": Traits(silent_blocks=1, block_by_block=False),
    "hpff": Traits(block_by_block=False),
    "man": Traits(all_trained=False),
    "contrast": Traits(hidden_predictions=False, loss_floor=math.log(3)),  # three positives, told from the rest
    "contrec": Traits(hidden_predictions=False, needs_image=True),
    "infopro-softmax": Traits(needs_image=True),
    "infopro-contrast": Traits(hidden_predictions=False, needs_image=True),
    "sim": Traits(hidden_predictions=False),
    "sim-bpf": Traits(hidden_predictions=False),
    "ff": Traits(block_by_block=False, network_answers=False, steady=False),
    "forward-gradient": Traits(graph_of_block=False, steady=False),
    "pepita": Traits(hidden_predictions=False, block_by_block=False, refused=_MODULES),
    "softhebb": Traits(graph_of_block=False),
    "symba": Traits(block_by_block=False, network_answers=False),
    "pff": Traits(
        block_by_block=False, network_answers=False, repeats=True, moving_targets=frozenset({"block", "generator"})
    ),
    "simclr-local": Traits(block_by_block=False),
    **dict.fromkeys(("infomax", "cpc"), Traits(block_by_block=False, network_answers=False, refused=_FIXED_SIZE)),
    "drtp": Traits(hidden_predictions=False),
    **dict.fromkeys(("fa", "usf", "brsf", "frsf", "dfa", "sdfa"), _GLOBAL_ERROR),
    **dict.fromkeys(("dni", "cdni"), _PREDICTED),
    # The last block, too, learns on inputs that are predicted: where many blocks are before it these move for long.
    "dni-unlocked": replace(_PREDICTED, learning_steps=120, last_loss=0.95),
    "local-critic": Traits(block_by_block=False, moving_targets=frozenset({"critic"})),
    **dict.fromkeys(
        ("tp", "dtp", "direct-dtp"),
        Traits(
            hidden_predictions=False,
            block_by_block=False,
            repeats=True,
            moving_targets=frozenset({"block", "feedback"}),
        ),
    ),
    **dict.fromkeys(("cafo-ce", "cafo-sparsemax"), replace(_CASCADE, all_trained=False)),
    "cafo-mse": replace(
        _CASCADE, block_by_block=False, all_trained=False, takes_steps=False, refused=frozenset({"resnet32-3x32"})
    ),
    "cafo-dfa": _CASCADE,
    "clusters": Traits(refused=frozenset({"fc-1x28", "fc-3x32", "flat"})),
    "patches": Traits(block_by_block=False, model="patches", refused=frozenset({"isolation", "flat"})),
}


def traits(method: str) -> Traits:
    return _EXCEPTIONS.get(method, Traits())


def is_last(key: Key, num_blocks: int) -> bool:
    """Whether a group holds the block that gives the network's answer."""
    return key in ((num_blocks - 1, "block"), (None, "network"))


def accepting(network: str, *, steps: bool = False) -> list[str]:
    """Return the methods that can train a network of the tests; with `steps`, those that do it by steps."""
    return [
        name for name in CATALOGUE if network not in traits(name).refused and (traits(name).takes_steps or not steps)
    ]


def suits(method: str, network: str) -> bool:
    """Whether the tests train a network, named "model-...", by a method: one's own network is its method's alone."""
    model, own = network.partition("-")[0], {traits(name).model for name in CATALOGUE}
    return (
        (traits(method).model == model)
        if model in own or traits(method).model
        else network not in traits(method).refused
    )


def block_by_block() -> list[str]:
    return [name for name in CATALOGUE if traits(name).block_by_block]


def cases(networks: list[str], *, steps: bool = False) -> list[object]:
    """Return every method on every network that it can train, as pytest parameters (method, network name).

    With `steps`, only methods that train by steps.
    """

    def is_quick(method: str, network: str) -> bool:
        return method in THOROUGH or network in (FASTEST if method in COSTLY else FAST)

    return [
        pytest.param(
            method,
            network,
            id=f"{method}-{network}",
            marks=[] if is_quick(method, network) else [pytest.mark.slow],
        )
        for method in CATALOGUE
        for network in networks
        if suits(method, network) and (traits(method).takes_steps or not steps)
    ]
