"""Local gradients beside backprop's: how far a block's own update goes the network's way.

References:
    Laskin et al., "Parallel Training of Deep Networks with Local Updates", 2020, arXiv:2012.03837.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from localprop.analysis.figures import depth_figure
from localprop.analysis.subject import Finding, Subject, check_chain
from localprop.rules import Backprop, Rule

_BATCHES = 4


def gradient_cosine(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> float | None:
    """Return the cosine of two gradients of the same parameters, taken as one long vector each.

    Args:
        first: One tensor a parameter; None is zero.
        second: The same.

    Returns:
        A number in [-1, 1], or None if one of the gradients is zero.

    Raises:
        ValueError: The shapes differ.
    """
    if len(first) != len(second):
        raise ValueError(f"first, second: need gradients of the same parameters, got {len(first)} and {len(second)}")
    product = own = other = 0.0
    for a, b in zip(first, second, strict=True):
        if a is not None and b is not None:
            if a.shape != b.shape:
                raise ValueError(f"first, second: shapes must agree, got {tuple(a.shape)} and {tuple(b.shape)}")
            product += float((a.double() * b.double()).sum())
        own += 0.0 if a is None else float(a.double().square().sum())
        other += 0.0 if b is None else float(b.double().square().sum())
    return None if own == 0 or other == 0 else product / math.sqrt(own * other)


def compare_gradients(rule: Rule, x: Tensor, y: Tensor) -> list[tuple[float | None, float | None]]:
    """Compare the gradients that a rule gives each block with those of backprop, on one batch.

    Both run on a copy of the rule, in training mode and with the same dropout masks; nothing is updated, neither the
    weights between blocks nor a dictionary that blocks share.

    Args:
        rule: The rule.
        x: Inputs. Shape (N, ...).
        y: Classes. Shape (N,).

    Returns:
        Of each block the cosine, and the norm of the local gradient over that of backprop's; None where one of the
        two is zero.

    Raises:
        ValueError: The batch does not fit.
    """
    rule = copy.deepcopy(rule).train()
    backprop = Backprop(rule.net, rule.specs)
    backprop.seed, backprop.autocast_dtype = rule.seed, rule.autocast_dtype
    local = _gradients(rule, x, y)
    true = _gradients(backprop, x, y)
    found: list[tuple[float | None, float | None]] = []
    for own, other in zip(local, true, strict=True):
        sizes = [sum(float(g.double().square().sum()) for g in grads if g is not None) for grads in (own, other)]
        ratio = math.sqrt(sizes[0] / sizes[1]) if sizes[1] > 0 and sizes[0] > 0 else None
        found.append((gradient_cosine(own, other), ratio))
    return found


def gradients_of_run(subject: Subject) -> Finding:
    """Compare local and backprop gradients of every block on batches of training images, one row a block.

    Raises:
        ValueError: The method is backprop, trains by closed forms, or its blocks are no chain.
    """
    rule = subject.rule
    name = subject.run.config.method.name
    if type(rule) is Backprop:
        raise ValueError(f"the gradients of {name} are backprop's own")
    if not rule.parameter_groups():
        raise ValueError(f"{name} trains by closed forms: there are no gradients to compare")
    check_chain(rule, name)
    batches = []
    for x, y in subject.batches(subject.train):
        if len(x) > 1:  # batch normalisation trains on two samples at least
            batches.append(compare_gradients(rule, x, y))
        if len(batches) == _BATCHES:
            break
    if not batches:
        raise ValueError("needs a batch of at least two training images")
    rows: list[dict[str, Any]] = []
    for index, block in enumerate(subject.names):
        cosines = [batch[index][0] for batch in batches]
        ratios = [batch[index][1] for batch in batches]
        mean, std = _mean_and_std(cosines)
        row = {"block": index, "name": block, "cosine": mean, "cosine_std": std, "norm_ratio": _mean_and_std(ratios)[0]}
        rows.append({**row, "batches": len(batches)})
    return Finding(rows)


def gradients_figure(finding: Finding) -> Figure:
    """Draw the cosines over depth."""
    curves = {"cosine": [row["cosine"] for row in finding.rows]}
    return depth_figure([row["name"] for row in finding.rows], {"cosine with backprop's gradient": curves})


def _gradients(rule: Rule, x: Tensor, y: Tensor) -> list[list[Tensor | None]]:
    """Return the gradients of each block's parameters that a rule gives on a batch."""
    found: list[list[Tensor | None]] = [[None for _ in block.parameters()] for block in rule.net.blocks]
    groups = {key: set(parameters) for key, parameters in rule.parameter_groups().items()}
    rule.begin(0)
    with torch.enable_grad():
        for step in rule.steps(x, y):
            stepped = groups.get(step.key, set())
            for gradients, block in zip(found, rule.net.blocks, strict=True):
                for place, parameter in enumerate(block.parameters()):
                    if parameter.grad is not None and parameter in stepped:
                        before = gradients[place]
                        gradients[place] = parameter.grad.clone() if before is None else before + parameter.grad
            for parameter in stepped:
                parameter.grad = None
    rule.clear_gradients()
    return found


def _mean_and_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    known = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    if not len(known):
        return None, None
    return float(known.mean()), float(known.std()) if len(known) > 1 else None
