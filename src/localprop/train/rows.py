"""What a run records: steps and evaluations as rows of plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from localprop.functional.dictionary import effective_rank
from localprop.infer.evaluate import Evaluation
from localprop.objectives.dictionary import DictionaryContrast, LabelDictionary
from localprop.rules import Rule
from localprop.train.executor import key_name
from localprop.types import BlockStep

SHARED = "shared"


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


def dictionary_rows(rule: Rule, *, place: Mapping[str, object]) -> list[dict[str, Any]]:
    """Return one row for each dictionary of label embeddings: their mean length, and how many directions they take up.

    Args:
        rule: The rule; most have no dictionary.
        place: The columns that say when: step and epoch.
    """
    rows: list[dict[str, Any]] = []
    for name, dictionary in dictionaries(rule).items():
        embeddings = dictionary.embeddings.detach()
        block = None if name == SHARED else rule.net.names.index(name)
        rows.append(
            {
                "kind": "dictionary",
                **place,
                "block": block,
                "name": name,
                "mean_norm": float(embeddings.double().norm(dim=1).mean()),
                "effective_rank": effective_rank(embeddings),
            }
        )
    return rows


def dictionaries(rule: Rule) -> dict[str, LabelDictionary]:
    """Return the dictionaries of a rule: "shared" for one of several blocks, and else by the name of its block."""
    owners: dict[LabelDictionary, list[str]] = {}
    for module in rule.modules():
        if isinstance(module, DictionaryContrast):
            owners.setdefault(module.dictionary, []).append(module.spec.name)
    return {names[0] if len(names) == 1 else SHARED: dictionary for dictionary, names in owners.items()}
