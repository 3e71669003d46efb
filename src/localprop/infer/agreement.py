"""How the exits of a network agree, sample by sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from localprop.infer.evaluate import percent


def stays_right(predicted: Tensor, y: Tensor) -> list[float | None]:
    """Return, of the samples that an exit has right, the percentage that all later exits have right too.

    What is not is unlearned on the way up, and lost to a network that answers at its end.

    Args:
        predicted: Class indices, exit by exit, the first first. Shape (E, N).
        y: Shape (N,).

    Returns:
        One number an exit; None for one that has nothing right, 100 for the last.

    References: Schwartz et al., "The Right Tool for the Job: Matching Model and Instance Complexities", ACL 2020.
    """
    right = predicted == y
    rows: list[float | None] = []
    for number, own in enumerate(right):
        kept = own & right[number:].all(0)
        rows.append(percent(int(kept.sum()), int(own.sum())) if own.any() else None)
    return rows


def agreements(predicted: Tensor, y: Tensor) -> list[dict[str, Any]]:
    """Group samples by how many exits say what the last one says.

    Args:
        predicted: As for `stays_right`.
        y: Shape (N,).

    Returns:
        One row a number of exits that occurs, from 1 (the last alone): exits, share (percent of all samples), and error
        of the last exit on them (percent).
    """
    answer = predicted[-1]
    agreeing = (predicted == answer).sum(0)
    rows = []
    for exits in torch.bincount(agreeing).nonzero().flatten().tolist():
        members = agreeing == exits
        count = int(members.sum())
        wrong = int((answer[members] != y[members]).sum())
        rows.append({"exits": exits, "share": percent(count, len(y)), "error": percent(wrong, count)})
    return rows
