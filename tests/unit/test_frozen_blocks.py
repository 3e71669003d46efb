"""Blocks that are not trained stay as they are, by every method, to the last bit of their batch statistics."""

from __future__ import annotations

import pytest
import torch

import localprop
from localprop.methods import CATALOGUE
from localprop.train.executor import LocalExecutor
from localprop.train.phases import Borders, inputs_of, plan, step_in, takes_steps
from localprop.types import Normalisation
from tests.traits import traits
from tests.unit.test_conformance import CLASSES, NETWORKS, adamw, batch_for

AT_ONCE = {("bp", 1), ("dcl", 0), ("pred", 1), ("clusters", 0), ("cafo-mse", 0), ("cafo-mse", 2), ("patches", 1)}
"""The usual ones, and those that the statistics, the closed form or the dictionary of a block could escape."""
CASES = [
    pytest.param(method, frozen, marks=[] if (method, frozen) in AT_ONCE else [pytest.mark.slow])
    for method in CATALOGUE
    for frozen in (0, 1, 2)
    if not (traits(method).model == "patches" and frozen == 2)
]


@pytest.mark.parametrize(("method", "frozen"), CASES)
def test_a_frozen_block_stays_as_it_is(method: str, frozen: int):
    network = NETWORKS["patches-1x28" if traits(method).model == "patches" else "conv-1x28"]
    torch.manual_seed(0)
    net = localprop.split(network.build(network.shape, CLASSES, dropout=0.1))
    net.freeze([frozen])
    x, y = batch_for(network, 16)
    if (method, frozen) == ("cafo-mse", 2):
        with pytest.raises(ValueError, match=r"^freeze: block 'classifier' is solved for"):
            localprop.methods.build(method, net, num_classes=CLASSES, example=x[:2])
        return
    rule = localprop.methods.build(method, net, num_classes=CLASSES, example=x[:2])
    rule.normalisation = Normalisation((0.5,), (0.25,))
    rule.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    executor, phases = LocalExecutor(rule, adamw), rule.phases()
    stretches = plan(phases, num_blocks=len(rule.net), total_steps=12 if takes_steps(phases) else 0)
    borders = Borders(rule, stretches, lambda: [(x, y)])
    borders.after(0)
    for number in range(stretches[-1].stop):
        borders.before(number)
        phase = borders.at(number).phase
        step_in(phase, executor, number, inputs_of(phase, rule, x), y)
        borders.after(number + 1)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert not {name for name in moved if name.startswith(f"blocks.{frozen}.")}
    assert moved or traits(method).own_network
    assert not net.blocks[frozen].training
    assert all(block.training for index, block in enumerate(net.blocks) if index != frozen)
    assert all(torch.isfinite(logits).all() for logits in rule.eval().exits(x) if logits is not None)
