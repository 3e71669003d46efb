"""The first number of a run that is not finite, and the block that it belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from localprop.types import BlockStep


def loss_problem(steps: Sequence[tuple[int, BlockStep]], names: Sequence[str]) -> str | None:
    """Say which loss is the first that is not finite; one reading of the device for all of them.

    Args:
        steps: (number of the optimiser step, what a block did in it).
        names: The names of the network's blocks.
    """
    losses = [(number, step.key, step.loss) for number, step in steps if step.loss is not None]
    if not losses:
        return None
    finite = torch.stack([loss for *_, loss in losses]).isfinite()
    if bool(finite.all()):
        return None
    number, (block, _), loss = losses[int((~finite).nonzero()[0])]
    return f"the loss of {_block_name(block, names)} is {float(loss)} at step {number}"


def parameter_problem(state: Mapping[str, Tensor], names: Sequence[str]) -> str | None:
    """Say which entry of a rule's state is the first that is not finite.

    Args:
        state: The rule's `state_dict()`.
        names: The names of the network's blocks.
    """
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            found = re.match(r"(?:net\.blocks|\w+)\.(\d+)\.", name)
            where = f" of {_block_name(int(found[1]), names)}" if found else ""
            return f"the parameter {name}{where} is not finite"
    return None


def _block_name(block: int | None, names: Sequence[str]) -> str:
    return "the network" if block is None else f"block {block} ({names[block]})"
