"""The columns of the catalogue are true: what a method trains, reads, sends and when."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import localprop
from localprop.train.executor import LocalExecutor
from tests.isolation.test_isolation import batch, build, entrance, optimizers_of, stepped
from tests.traits import accepting, traits

METHODS = [name for name in accepting("isolation") if not traits(name).own_network]


def method_of(name: str) -> localprop.Method:
    return localprop.methods.get(name)


def gradients(rule: localprop.Rule, block: int) -> list[Tensor]:
    """Return the gradients of a block's own parameters in one step without an update."""
    found: list[Tensor] = []
    own = set(rule.net.blocks[block].parameters())
    rule.begin(0)
    for step in rule.steps(*batch()):
        for parameter in rule.parameter_groups()[step.key]:
            if parameter in own and parameter.grad is not None:
                found.append(parameter.grad.clone())
            parameter.grad = None
    return found


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def awake(name: str) -> localprop.Rule:
    """Build a rule none of whose parameters is zero: heads that start at zero send nothing back."""
    rule, generator = build(name), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return rule


def shaken(rule: localprop.Rule, block: int) -> None:
    """Change a block's parameters."""
    with torch.no_grad():
        for parameter in rule.net.blocks[block].parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("name", METHODS)
def test_auxiliary_parameters_are_none_if_and_only_if_nothing_is_trained_beside_the_network(name: str):
    rule = build(name)
    own = set(rule.net.parameters())
    stepped_on = {p for group in rule.parameter_groups().values() for p in group}
    beside = {*stepped_on, *rule.solved_parameters()} - own
    assert bool(beside) == (method_of(name).auxiliary_parameters != "none")


@pytest.mark.parametrize("name", METHODS)
def test_hidden_blocks_need_labels_if_and_only_if_they_learn_something_else_from_others(name: str):
    found = []
    for y in (batch()[1], torch.tensor([2, 0, 1, 1, 0, 0])):  # other pairs, and other groups, share a class
        rule = awake(name)
        executor = LocalExecutor(rule, lambda group: torch.optim.SGD(group, lr=0.1))
        for number in range(4):  # predictors of gradients hand on what labels say by one block a step
            executor.step(number, batch()[0], y)
        found.append([p.detach() for p in rule.net.blocks[1].parameters()])
    assert same(*found) == (not method_of(name).needs_labels)


@pytest.mark.parametrize("name", METHODS)
def test_the_error_is_global_if_and_only_if_the_last_block_changes_what_the_first_learns(name: str):
    plain, changed = awake(name), awake(name)
    shaken(changed, len(changed.net) - 1)
    assert same(gradients(plain, 0), gradients(changed, 0)) == (not method_of(name).global_error)


@pytest.mark.parametrize("name", [name for name in METHODS if method_of(name).messages == "none"])
def test_without_messages_no_later_block_changes_what_a_block_learns(name: str):
    plain, changed = awake(name), awake(name)
    for later in range(2, len(changed.net)):
        shaken(changed, later)
    assert same(gradients(plain, 1), gradients(changed, 1))


@pytest.mark.parametrize("name", METHODS)
def test_blocks_are_updated_in_the_forward_pass_if_and_only_if_they_are_yielded_before_the_next_block_runs(name: str):
    rule = build(name)
    run: list[int] = []
    for index, block in enumerate(rule.net.blocks):
        entrance(block).register_forward_pre_hook(lambda module, args, i=index: run.append(i))
    early = []
    for step in stepped(rule, optimizers_of(rule)):
        if step.key == (0, "block"):
            early.append(max(run) == 0)
    first_is_early = bool(early) and early[0]
    trains_first = (0, "block") in rule.parameter_groups()
    assert first_is_early == (method_of(name).updates_in_forward and trains_first)


@pytest.mark.parametrize("name", [name for name in METHODS if traits(name).takes_steps])
def test_passes_count_the_rows_that_a_block_runs_on_in_a_step(name: str):
    rule = build(name)
    rows = [0] * len(rule.net)

    def count(module: nn.Module, args: tuple[Tensor, ...], i: int) -> None:
        rows[i] += len(args[0])

    for index, block in enumerate(rule.net.blocks):
        entrance(block).register_forward_pre_hook(lambda module, args, i=index: count(module, args, i))
    list(stepped(rule, optimizers_of(rule)))
    assert rows[1] == method_of(name).passes * len(batch()[0])
