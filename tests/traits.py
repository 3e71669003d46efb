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
        network_answers: The answer is that of `rule.net` as a plain module.
        graph_of_block: Block and objective learn from one graph; otherwise from less.
        steady: Forty steps on one batch lower every block's loss; where the signal is drawn anew each step, their sum.
        refused: Networks of the tests that the method cannot train, by name.
    """

    hidden_predictions: bool = True
    block_by_block: bool = True
    network_answers: bool = True
    graph_of_block: bool = True
    steady: bool = True
    refused: frozenset[str] = frozenset()


_EXCEPTIONS: dict[str, Traits] = {
    "bp": Traits(hidden_predictions=False, block_by_block=False),
    "feat": Traits(hidden_predictions=False),
    "ff": Traits(block_by_block=False, network_answers=False, steady=False),
    "forward-gradient": Traits(graph_of_block=False, steady=False),
    "pepita": Traits(hidden_predictions=False, block_by_block=False),
    "softhebb": Traits(graph_of_block=False),
    "symba": Traits(block_by_block=False, network_answers=False),
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
