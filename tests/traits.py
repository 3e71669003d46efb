"""What the shared tests may expect of each method: the exceptions of the catalogue, in one table."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from localprop.methods import CATALOGUE

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
        hidden_losses: Hidden blocks have a loss of their own.
        network_answers: The answer is that of `rule.net` as a plain module.
        refused: Networks of the tests that the method cannot train, by name.
    """

    hidden_predictions: bool = True
    block_by_block: bool = True
    hidden_losses: bool = True
    network_answers: bool = True
    refused: frozenset[str] = frozenset()


_GLOBAL_ERROR = Traits(hidden_predictions=False, block_by_block=False, hidden_losses=False)
"""The error of the last block reaches the others, which have no loss and make no prediction."""

_EXCEPTIONS: dict[str, Traits] = {
    "bp": Traits(hidden_predictions=False, block_by_block=False),
    "feat": Traits(hidden_predictions=False),
    "drtp": Traits(hidden_predictions=False),
    **dict.fromkeys(("fa", "usf", "brsf", "frsf", "dfa", "sdfa"), _GLOBAL_ERROR),
}


def traits(method: str) -> Traits:
    return _EXCEPTIONS.get(method, Traits())


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
