"""What is analysed: a trained run, images that it was and was not trained on, and its features of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from localprop.data.store import ImageData, ImageSet
from localprop.functional.pooling import averaged_output, pool_to_budget, standard_layout
from localprop.objectives.dictionary import DictionaryContrast
from localprop.rules import Rule
from localprop.seed import derive
from localprop.train.assemble import evaluation_pairs
from localprop.train.evaluate import load_data_of
from localprop.train.stored import StoredRun, load_run

POOLED_FEATURES = 1024


@dataclass(frozen=True)
class Finding:
    """What an analysis found.

    Attributes:
        rows: Plain numbers and names, alike in their columns.
        details: What is too large for a table, such as matrices; plain lists.
        tensors: What only the picture needs.
    """

    rows: list[dict[str, Any]]
    details: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BlockFeatures:
    """What every block makes of the same images.

    Attributes:
        averaged: One vector a sample, averaged over positions; flat outputs as they are. Shapes (N, C_l).
        pooled: Maps averaged to at most 1024 numbers and flattened; flat outputs as they are. Shapes (N, P_l).
        logits: Each block's own prediction, shape (N, Z), or None if it makes none.
        answers: The classes that the network answers with. Shape (N,).
        target: Shape (N,).
    """

    averaged: tuple[Tensor, ...]
    pooled: tuple[Tensor, ...]
    logits: tuple[Tensor | None, ...]
    answers: Tensor
    target: Tensor


class Subject:
    """A trained run, some of the images it was trained on, and some of its test images.

    Args:
        run: The run.
        data: Its data.
        images: Most images of each split. Fewer are taken where the run limited its batches.
        against: Another run on this data, to compare it with.

    Attributes:
        train: Training images, drawn at random by the run's seed, in random order.
        test: Test images, likewise.
    """

    def __init__(self, run: StoredRun, data: ImageData, *, images: int, against: Subject | None = None) -> None:
        self.run, self.data, self.against = run, data, against
        limit = run.config.limit_batches
        self._most = images if limit is None else min(images, limit * run.config.batch_size)
        self.train = self._drawn(data.train, "train")
        self.test = self._drawn(data.test, "test")

    @property
    def rule(self) -> Rule:
        """The trained rule, in evaluation mode."""
        return self.run.rule

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the blocks."""
        return self.rule.net.names

    @cached_property
    def train_features(self) -> BlockFeatures:
        """Features of the training images."""
        return self.features(self.train)

    @cached_property
    def test_features(self) -> BlockFeatures:
        """Features of the test images."""
        return self.features(self.test)

    def features(self, images: ImageSet) -> BlockFeatures:
        """Return the features of images.

        Raises:
            ValueError: The method's blocks are no chain.
        """
        check_chain(self.rule, self.run.config.method.name)
        return block_features(self.rule, self.batches(images))

    def batches(self, images: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images as the network takes them, and their labels."""
        return evaluation_pairs(self.run.config, images, self.run.facts, self.rule, self.run.device)

    def dictionaries(self) -> dict[int, DictionaryContrast]:
        """Return block -> the objective that compares it with label embeddings.

        Raises:
            ValueError: No block has one.
        """
        found = {part.spec.index: part for part in self.rule.modules() if isinstance(part, DictionaryContrast)}
        if not found:
            raise ValueError(
                f"{self.run.config.method.name} has no label embeddings; dictionary methods have, such as dcl"
            )
        return found

    def _drawn(self, images: ImageSet, split: str) -> ImageSet:
        generator = torch.Generator().manual_seed(derive(self.run.config.seed, "analysis", split))
        return images.subset(torch.randperm(len(images), generator=generator)[: self._most])


def load_subject(directory: Path, *, images: int, against: Path | None = None, allow_imports: bool = False) -> Subject:
    """Load a run and its data.

    Args:
        directory: A run directory.
        images: Most images of each split, at least 1.
        against: Another run on the same data, to compare it with.
        allow_imports: Whether import paths in their config.yaml, which execute code, may be imported.

    Raises:
        ValueError: A run or its data cannot be read, or the data are not those of the training.
    """
    if images < 1:
        raise ValueError(f"--images {images}: must be at least 1")
    run = load_run(directory, allow_imports=allow_imports)
    data = load_data_of(run).data
    if against is None:
        return Subject(run, data, images=images)
    other = load_run(against, allow_imports=allow_imports)
    if (other.facts.class_names, other.facts.image_shape) != (run.facts.class_names, run.facts.image_shape):
        raise ValueError(
            f"--against {against}: was trained on images of shape {other.facts.image_shape} and classes "
            f"{other.facts.class_names}, this run on {run.facts.image_shape} and {run.facts.class_names}"
        )
    return Subject(run, data, images=images, against=Subject(other, data, images=images))


def check_chain(rule: Rule, name: str) -> None:
    """Refuse a method whose blocks do not read the image and the block before as they are.

    Raises:
        ValueError: It is one, with its `name`.
    """
    if not rule.is_chain:
        raise ValueError(
            f"{name}: its blocks read labelled inputs, normalised borders or patches, so what they make of an image "
            "alone is not what they were trained on"
        )


def block_outputs(rule: Rule, x: Tensor) -> Iterator[Tensor]:
    """Yield the output of every block, without a graph, in the mode the rule is in.

    Raises:
        ValueError: Blocks of this method read something else than the block before wrote.
    """
    check_chain(rule, type(rule).__name__)
    passes = rule.net.iter_blocks(x, context=rule.context)
    while True:
        with torch.no_grad():  # around the block alone: it must not leak into who asks for the next one
            done = next(passes, None)
        if done is None:
            return
        yield done.output


def block_features(rule: Rule, batches: Iterator[tuple[Tensor, Tensor]]) -> BlockFeatures:
    """Run images through a network once, and keep a vector of each block; the tensors lie on the host.

    Raises:
        ValueError: The method's blocks are no chain (see `block_outputs`), or there are no images.
    """
    blocks: list[list[tuple[Tensor, Tensor]]] = [[] for _ in rule.specs]
    exits: list[list[Tensor | None]] = [[] for _ in rule.specs]
    answers, targets = [], []
    for x, y in batches:
        for spec, h, kept in zip(rule.specs, block_outputs(rule, x), blocks, strict=True):
            pooled = pool_to_budget(standard_layout(h, spec.channel_axis), POOLED_FEATURES)
            kept.append((averaged_output(h, spec.channel_axis).cpu(), pooled.cpu()))
        with torch.no_grad():
            found = rule.exits(x)
            answers.append(rule.answer(found).argmax(1).cpu())
        for logits, kept_logits in zip(found, exits, strict=True):
            kept_logits.append(None if logits is None else logits.float().cpu())
        targets.append(y.cpu())
    if not targets:
        raise ValueError("batches: there are no images to analyse")
    return BlockFeatures(
        tuple(torch.cat([one for one, _ in kept]) for kept in blocks),
        tuple(torch.cat([other for _, other in kept]) for kept in blocks),
        tuple(_joined(kept_logits) for kept_logits in exits),
        torch.cat(answers),
        torch.cat(targets),
    )


def label_weights(objective: DictionaryContrast) -> Tensor:
    """Return the embeddings that an objective compares a block's averaged features with, shape (Z M, C_l).

    Of an objective that projects the features, <P hbar, t> = <hbar, P' t>: these are the t P.
    """
    weights = objective.block_embeddings().detach()
    if objective.feature_projection is not None:
        weights = weights @ objective.feature_projection.weight.detach()
    return weights


def plain(value: Any) -> Any:
    """Make numbers that JSON can hold of what an analysis returns: NaN and infinity become None."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if len(present) == len(parts) else None
