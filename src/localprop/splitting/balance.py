"""Measure what pieces of a network cost, and share them out evenly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from localprop.network import in_mode, still_statistics
from localprop.splitting import Balance


def costs(pieces: Sequence[fx.GraphModule], balance: Balance, example: Tensor | None) -> list[int]:
    """Measure each piece of a network.

    Args:
        pieces: In order; each gets the detached output of the one before.
        balance: "memory" is the bytes that autograd keeps of a forward pass in training, parameters not counted;
            "flops" the operations of a forward pass; "parameters" needs no example.
        example: Inputs, shape (N, ...); bytes and operations grow with N, their shares do not.
    """
    if balance == "parameters":
        return [sum(parameter.numel() for parameter in piece.parameters()) for piece in pieces]
    assert example is not None
    h, found = example, []
    with torch.random.fork_rng(devices=[] if h.is_cpu else [h.device]):
        for piece in pieces:
            with in_mode(piece, training=True), still_statistics(piece):
                cost, h = _measured(piece, h.detach(), balance)
            found.append(cost)
    return found


def _measured(piece: fx.GraphModule, x: Tensor, balance: Balance) -> tuple[int, Tensor]:
    if balance == "flops":
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            h = piece(x)
        return counter.get_total_flops(), h
    own = {parameter.untyped_storage().data_ptr() for parameter in piece.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place not in own:  # views of one tensor are kept once
            kept[place] = max(kept.get(place, 0), min(tensor.nbytes, storage.nbytes()))
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        h = piece(x)
    return sum(kept.values()), h


def share_out(costs: Sequence[int], parts: int) -> list[int]:
    """Cut a row of costs into contiguous parts whose largest sum is as small as possible, by dynamic programming.

    best(k, n) = min_m max(best(k - 1, m), c_m + .. + c_{n-1}): the largest sum of k parts of the first n. Of two ways
    with the same largest sum, the one with the smaller sum of squares is taken.

    Args:
        costs: One or more.
        parts: How many, at most as many as there are costs; each part gets at least one.

    Returns:
        Where each part but the last ends: the number of costs before the cut.
    """
    total = [0]
    for cost in costs:
        total.append(total[-1] + cost)
    best = {(1, n): (total[n], total[n] ** 2, 0) for n in range(1, len(costs) + 1)}
    for k in range(2, parts + 1):
        for n in range(k, len(costs) + 1):
            ways = []
            for m in range(k - 1, n):
                last = total[n] - total[m]
                ways.append((max(best[k - 1, m][0], last), best[k - 1, m][1] + last**2, m))
            best[k, n] = min(ways)
    cuts, n = [], len(costs)
    for k in range(parts, 1, -1):
        n = best[k, n][2]
        cuts.append(n)
    return cuts[::-1]
