"""What the shared tests may expect of each method: the exceptions of the catalogue, in one table."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from localprop.methods import CATALOGUE

THOROUGH = {"bp", "dcl", "dcl-s", "pred"}
"""Methods that `make test` runs on every network of the tests; the others run there on the FAST ones alone."""
FAST = {"fc-1x28", "conv-1x28", "patches-1x28"}


@dataclass(frozen=True)
class Traits:
    """What holds of a method.

    Attributes:
        hidden_predictions: Hidden blocks make predictions.
        block_by_block: Each block is one group (block, "block"), yielded in order with its own gradients alone, by an
            objective that sees nothing but the block.
        network_answers: The answer is that of `rule.net` as a plain module.
        last_block_answers: The answer is that of the last block alone.
        all_trained: Every parameter is trained; else the method keeps some still, or lets them follow others.
        hidden_trained: Hidden blocks are trained, and not only read.
        takes_steps: Something is trained by steps; else `finish` does it all.
        model: The only network of the catalogue of models that the method trains; other methods need not.
        refused: Networks of the tests that the method cannot train, by name; "isolation" and "flat" are those of the
            tests of isolation and of hostile batches.
    """

    hidden_predictions: bool = True
    block_by_block: bool = True
    network_answers: bool = True
    last_block_answers: bool = True
    all_trained: bool = True
    hidden_trained: bool = True
    takes_steps: bool = True
    model: str | None = None
    refused: frozenset[str] = frozenset()


_CASCADE = Traits(network_answers=False, last_block_answers=False)
"""All blocks answer together."""

_EXCEPTIONS: dict[str, Traits] = {
    "bp": Traits(hidden_predictions=False, block_by_block=False),
    "feat": Traits(hidden_predictions=False),
    **dict.fromkeys(("cafo-ce", "cafo-sparsemax"), replace(_CASCADE, all_trained=False, hidden_trained=False)),
    "cafo-mse": replace(_CASCADE, block_by_block=False, all_trained=False, hidden_trained=False, takes_steps=False),
    "cafo-dfa": _CASCADE,
    "patches": Traits(block_by_block=False, model="patches", refused=frozenset({"isolation", "flat"})),
}


def traits(method: str) -> Traits:
    return _EXCEPTIONS.get(method, Traits())


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
    return [
        pytest.param(
            method,
            network,
            id=f"{method}-{network}",
            marks=[] if method in THOROUGH or network in FAST else [pytest.mark.slow],
        )
        for method in CATALOGUE
        for network in networks
        if suits(method, network) and (traits(method).takes_steps or not steps)
    ]
