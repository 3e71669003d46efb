"""What a run records: steps and evaluations as rows of plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from localprop.infer.evaluate import Evaluation
from localprop.train.executor import key_name
from localprop.types import BlockStep


def block_rows(
    steps: Sequence[BlockStep], y: Tensor, *, place: Mapping[str, object], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row for each group that has a loss or logs: these, and the error on the batch in percent.

    A row's kind is its group, "block" for one of the whole network. Of a group with several updates, the last counts.

    Args:
        steps: What the groups did in one optimiser step.
        y: The batch's targets.
        place: The columns that say when: step and epoch.
        names: The names of the network's blocks.
    """
    rows = []
    for step in {step.key: step for step in steps}.values():
        if step.loss is None and not step.logs:
            continue
        block, group = step.key
        rows.append(
            {
                "kind": "block" if block is None else group,
                **place,
                "block": block,
                "name": key_name(step.key) if block is None else names[block],
                "loss": None if step.loss is None else float(step.loss),
                "error": None if step.logits is None else 100 * float((step.logits.argmax(1) != y).float().mean()),
                **{name: float(value) for name, value in step.logs.items()},
            }
        )
    return rows


def evaluation_row(found: Evaluation, split: str, *, place: Mapping[str, object]) -> dict[str, Any]:
    """Return the row of an evaluation.

    Args:
        found: The errors.
        split: The images they were measured on.
        place: The columns that say when: step and epoch.
    """
    return {
        "kind": "evaluation",
        **place,
        "split": split,
        "error": found.error,
        "layer_errors": list(found.layer_errors),
        "ensemble_errors": dict(found.ensemble_errors),
    }
