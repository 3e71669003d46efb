"""The phases of a run: which steps each takes, what its steps are given, and what is done at its borders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from localprop.rules.base import Rule
from localprop.train.executor import LocalExecutor
from localprop.types import BlockStep, Phase

Pairs = Iterable[tuple[Tensor, Tensor]]
"""Batches of inputs and labels."""


@dataclass(frozen=True)
class Stretch:
    """A phase and the steps that it takes, `start` <= step < `stop`."""

    phase: Phase
    start: int
    stop: int

    def progress(self, step: int) -> float:
        """Return the share of the phase's steps that is done before `step`, in [0, 1)."""
        return (step - self.start) / (self.stop - self.start)


def takes_steps(phases: Sequence[Phase]) -> bool:
    """Tell whether any phase takes optimiser steps; a method of closed forms alone takes none."""
    return any(phase.fraction for phase in phases)


def plan(phases: Sequence[Phase], *, num_blocks: int, total_steps: int) -> tuple[Stretch, ...]:
    """Share the steps of a run out among the phases, by their fractions.

    Phase k ends at round(total_steps (f_1 + ... + f_k)).

    Args:
        phases: In order.
        num_blocks: Blocks of the network.
        total_steps: Steps of the run, 0 if no phase takes any.

    Raises:
        ValueError: The fractions do not sum to 1 (or are not all 0), a phase names blocks that are not there, or the
            run has too few steps for each phase to get one.
    """
    total = math.fsum(phase.fraction for phase in phases)
    if any(phase.fraction < 0 for phase in phases) or (takes_steps(phases) and not math.isclose(total, 1)):
        raise ValueError(
            f"phases: the fractions must be 0 or more and sum to 1, or all be 0, got {[p.fraction for p in phases]}"
        )
    stretches: list[Stretch] = []
    done = 0.0
    for phase in phases:
        if not set(phase.blocks) <= set(range(num_blocks)):
            raise ValueError(
                f"phases: {phase.name!r} trains {phase.blocks}, the network has blocks 0 .. {num_blocks - 1}"
            )
        start = stretches[-1].stop if stretches else 0
        done += phase.fraction
        stop = total_steps if math.isclose(done, 1) else round(total_steps * done)
        stretches.append(Stretch(phase, start, stop if phase.fraction else start))
        if phase.fraction and stop == start:
            raise ValueError(
                f"epochs: a run of {total_steps} steps is too short for phase {phase.name!r} of {len(phases)} to get "
                "one of them; raise --epochs or lower --batch-size"
            )
    return tuple(stretches)


def step_in(
    phase: Phase, executor: LocalExecutor, number: int, x: Tensor, y: Tensor, *, lr_factor: float = 1.0
) -> list[BlockStep]:
    """Do one optimiser step of a phase.

    Args:
        phase: The phase.
        executor: Steps the optimisers.
        number: The step's number.
        x: What the phase's blocks are given, from `inputs_of`. Shape (N, ...).
        y: Targets. Shape (N,).
        lr_factor: Factor of every learning rate.
    """
    everything = phase.blocks == range(len(executor.rule.net))
    return executor.step(number, x, y, blocks=None if everything else phase.blocks, lr_factor=lr_factor)


def reads_features(phase: Phase) -> bool:
    """Tell whether the steps of a phase are given the outputs of blocks before."""
    return phase.source == "features" and phase.blocks.start > 0


def inputs_of(phase: Phase, rule: Rule, x: Tensor) -> Tensor:
    """Return what the steps of a phase are given: the network's inputs, or the features of the blocks before."""
    return rule.features(x, phase.blocks.start) if reads_features(phase) else x


class Borders:
    """Does what a rule asks for before and after its phases.

    Whatever is done depends on the rule's state alone, so that a run which was killed in it does it again. A checkpoint
    of step n holds all that was done up to that border, but not what prepares the phase that begins there.

    Args:
        rule: The rule.
        stretches: Its phases, from `plan`.
        training_set: Makes a pass over the training set: in order, without augmentation.
    """

    def __init__(self, rule: Rule, stretches: Sequence[Stretch], training_set: Callable[[], Pairs]) -> None:
        self.rule = rule
        self.stretches = tuple(stretches)
        self._training_set = training_set

    def at(self, step: int) -> Stretch:
        """Return the phase that step number `step` belongs to."""
        return next(stretch for stretch in self.stretches if stretch.start <= step < stretch.stop)

    def before(self, step: int) -> None:
        """Prepare the phase whose first step is number `step`, if there is one."""
        stretch = self.at(step)
        if stretch.start == step:
            self._call(self.rule.prepare, stretch.phase)

    def after(self, step: int) -> None:
        """Finish the phase that ends with `step` steps done, and go through those that follow and take no steps."""
        for stretch in self.stretches:
            if stretch.stop == step and stretch.start < stretch.stop:
                self._call(self.rule.finish, stretch.phase)
            elif stretch.start == stretch.stop == step:
                self._call(self.rule.prepare, stretch.phase)
                self._call(self.rule.finish, stretch.phase)

    def batches(self, phase: Phase) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the training set as the steps of a phase are given it."""
        for x, y in self._training_set():
            yield inputs_of(phase, self.rule, x), y

    def _call(self, hook: Callable[[Phase, Pairs], None], phase: Phase) -> None:
        training = self.rule.training
        self.rule.eval()
        try:
            with torch.no_grad():
                hook(phase, self.batches(phase))
        finally:
            self.rule.train(training)
