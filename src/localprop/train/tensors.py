"""Train a rule on tensors held in memory: every phase of its method, by a recipe; no files, no console."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from localprop.rules import Rule
from localprop.seed import derive, seeded
from localprop.train.assemble import in_layout, optimizer_factory
from localprop.train.errors import TrainingError
from localprop.train.executor import LocalExecutor
from localprop.train.finite import parameter_problem
from localprop.train.phases import Borders, inputs_of, plan, step_in, takes_steps
from localprop.train.schedule import multistep
from localprop.types import TrainingRecipe


def train_tensors(
    rule: Rule, x: Tensor, y: Tensor, *, recipe: TrainingRecipe, epochs: int, batch_size: int, seed: int = 0
) -> None:
    """Train a rule, and leave it in evaluation mode.

    Every epoch visits every sample once, in an order drawn from (seed, epoch), in batches of nearly equal size: none
    holds a single sample, which batch normalisation cannot train on. The global random state is left as it was.

    Args:
        rule: The rule; it is trained where it lies.
        x: Inputs, on the rule's device. Shape (N, ...).
        y: Targets. Shape (N,), int64; or (N, T), floating, for methods that take real-valued ones.
        recipe: Optimiser, learning rate and schedule; its numbers of epochs and samples a batch are not read.
        epochs: Passes over the samples, 1 or more.
        batch_size: Samples a step, 1 or more.
        seed: Seed of the order and of dropout.

    Raises:
        ValueError: A setting out of its range, or data that the network cannot train on.
        TrainingError: A parameter is not finite afterwards.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    if len(x) != len(y):
        raise ValueError(f"x, y: need equally many samples, got {len(x)} and {len(y)}")
    if len(x) == 0:
        raise ValueError("x: there are no samples to train on")
    rule.seed = derive(seed, "blocks")
    x = in_layout(x, rule)
    batches = max(1, min(-(-len(x) // batch_size), len(x) // 2))
    phases = rule.phases()
    total_steps = epochs * batches if takes_steps(phases) else 0
    borders = Borders(
        rule,
        plan(phases, num_blocks=len(rule.net), total_steps=total_steps),
        lambda: zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True),
    )
    schedule = multistep(milestones=recipe.milestones, gamma=recipe.gamma)
    settings = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, **recipe.optimizer_settings}
    executor = LocalExecutor(rule, optimizer_factory(recipe.optimizer, settings))
    rule.train()
    with seeded(derive(seed, "global"), x.device):
        borders.after(0)
        steps = zip(range(total_steps), _shuffled(x, y, batches, seed), strict=False)
        for number, (batch_x, batch_y) in steps:
            borders.before(number)
            stretch = borders.at(number)
            inputs = inputs_of(stretch.phase, rule, batch_x)
            factor = schedule(stretch.progress(number))
            step_in(stretch.phase, executor, number, inputs, batch_y, lr_factor=factor)
            borders.after(number + 1)
    rule.eval()
    if problem := parameter_problem(rule.state_dict(), rule.net.names):
        raise TrainingError(f"{problem} after training; scale the inputs, or lower the learning rate of {recipe.lr}")


def _shuffled(x: Tensor, y: Tensor, batches: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches epoch after epoch, without end."""
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
        for chosen in torch.randperm(len(x), generator=generator).to(x.device).tensor_split(batches):
            yield x[chosen], y[chosen]
        epoch += 1
