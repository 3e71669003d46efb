"""What the shared tests may expect of each method: the exceptions of the catalogue, in one table."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from localprop.methods import CATALOGUE
from localprop.types import Key

THOROUGH = {"bp", "dcl", "dcl-s", "pred"}
"""Methods that `make test` runs on every network of the tests; the others run there on the FAST ones alone."""
FAST = {"fc-1x28", "conv-1x28"}


@dataclass(frozen=True)
class Traits:
    """What holds of a method.

    Attributes:
        hidden_predictions: Hidden blocks make predictions.
        block_by_block: Each block is one group (block, "block"), yielded in order with its own gradients alone, by an
            objective that sees nothing but the block.
        network_answers: The answer is that of `rule.net` as a plain module.
        refused: Networks of the tests that the method cannot train, by name.
        repeats: Some groups are updated several times a batch, one after the other.
        without_loss: Groups that get their gradients without a loss, by name; the last block always has one.
        moving_targets: Groups whose loss is a distance to what training moves, by name: it need not fall.
    """

    hidden_predictions: bool = True
    block_by_block: bool = True
    network_answers: bool = True
    refused: frozenset[str] = frozenset()
    repeats: bool = False
    without_loss: frozenset[str] = frozenset({"shared"})
    moving_targets: frozenset[str] = frozenset()


_EXCEPTIONS: dict[str, Traits] = {
    "bp": Traits(hidden_predictions=False, block_by_block=False),
    "feat": Traits(hidden_predictions=False),
    **dict.fromkeys(
        ("dni", "cdni", "dni-unlocked"),
        Traits(
            hidden_predictions=False,
            block_by_block=False,
            without_loss=frozenset({"block"}),
            moving_targets=frozenset({"synthesiser", "input"}),
        ),
    ),
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
}


def traits(method: str) -> Traits:
    return _EXCEPTIONS.get(method, Traits())


def is_last(key: Key, num_blocks: int) -> bool:
    """Whether a group holds the block that gives the network's answer."""
    return key in ((num_blocks - 1, "block"), (None, "network"))


def block_by_block() -> list[str]:
    return [name for name in CATALOGUE if traits(name).block_by_block]


def cases(networks: list[str]) -> list[object]:
    """Return every method on every network that it can train, as pytest parameters (method, network name)."""
    return [
        pytest.param(
            method,
            network,
            id=f"{method}-{network}",
            marks=[] if method in THOROUGH or network in FAST else [pytest.mark.slow],
        )
        for method in CATALOGUE
        for network in networks
        if network not in traits(method).refused
    ]
