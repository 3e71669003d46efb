"""A trained network as a module of its own: images in [0, 1] in, logits out, and no more weights than that takes."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from localprop.errors import nearest
from localprop.rules import Rule
from localprop.rules.base import check_tensor
from localprop.train.assemble import DataFacts, in_layout

Exit = int | Literal["last", "all"]
"""What a network is asked for: the logits of a block, by its index; its answer; or both of all blocks."""

ANSWER = "logits"
"""Name of the network's answer among its outputs."""


class TrainedNetwork(nn.Module):
    """Use a trained network: normalise the images, run the blocks up to an exit, return its logits.

    It computes in float32 and without gradients, and holds the parameters and buffers that its exit reads: later blocks
    and objectives that predict nothing are gone.

    Args:
        rule: A trained rule. It is taken over: put in evaluation mode, and emptied of what is not read.
        facts: Classes, image shape and normalisation.
        exit: "all" keeps the network's answer and the exits of all blocks; "last" the answer alone; an index the exit
            of that block alone, and no block after it.

    Attributes:
        class_names: Names of the classes, in the order of the logits.
        image_shape: (C, H, W) of the images.
        block_names: Names of the network's blocks, of those after the exit too.

    Raises:
        ValueError: The exit makes no prediction of its own; says why.
    """

    def __init__(self, rule: Rule, facts: DataFacts, exit: Exit = "all") -> None:
        super().__init__()
        rule.autocast_dtype = None
        self.rule = rule.requires_grad_(False)
        self.exit: Exit = exit
        self.class_names = facts.class_names
        self.image_shape = facts.image_shape
        self.block_names = rule.net.names
        self.eval()
        with _Reads() as reads:
            self.outputs(torch.zeros(1, *facts.image_shape, device=next(rule.parameters()).device))
        _forget_all_but(self, reads.seen)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the exit; of "all" those of the network's answer.

        Args:
            images: Numbers in [0, 1], such as pixels / 255.

        Shape: (N, C, H, W) to (N, Z).

        Raises:
            ValueError: The images do not fit the network.
        """
        x = self._inputs(images)
        with torch.no_grad():
            return self._answer(x) if isinstance(self.exit, str) else self._run_to(self.exit, x)

    def exits(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits of every block that makes a prediction, by its name. Takes images as `forward` does.

        Raises:
            ValueError: The images do not fit, or the network was cut down to one exit.
        """
        self._check_whole()
        exits = self.rule.exits(self._inputs(images))
        return {name: logits for name, logits in zip(self.block_names, exits, strict=True) if logits is not None}

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return all that the network was kept for, in one pass: the exits by name, and the "logits" of its answer."""
        if self.exit != "all":
            return {ANSWER: self(images)}
        exits = self.exits(images)
        return {**exits, ANSWER: self.rule.answer([exits.get(name) for name in self.block_names])}

    def _inputs(self, images: Tensor) -> Tensor:
        check_tensor(images)
        if not images.is_floating_point():
            raise ValueError(f"images: need numbers in [0, 1], got {images.dtype}; use images / 255")
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"images: need a batch of shape (N, {', '.join(map(str, self.image_shape))}), got "
                f"{tuple(images.shape)}; stack and resize them"
            )
        return in_layout(self.rule.from_image(images), self.rule)

    def _answer(self, x: Tensor) -> Tensor:
        """Return the network's answer, without exits that it does not read where blocks run one after another."""
        if self.rule.answers_together or type(self.rule).run_block is Rule.run_block:
            return self.rule.predict(x)
        return self.rule.answer([self._run_to(len(self.block_names) - 1, x)])

    def _run_to(self, block: int, x: Tensor) -> Tensor:
        for index in range(block + 1):
            h, x = self.rule.run_block(index, x)
        logits = self.rule.exit_logits(block, h)
        if logits is None:
            raise ValueError(f"exits: block {self.block_names[block]!r} makes no prediction of its own")
        return logits

    def _check_whole(self) -> None:
        if self.exit != "all":
            held = "the network's answer" if self.exit == "last" else f"block {self.block_names[self.exit]!r}"
            raise ValueError(f"exits: the network was cut down to {held}; export it with --exit all")


def read_exit(text: str, block_names: tuple[str, ...]) -> Exit:
    """Return the exit that a user means: "last", "all", the name of a block, or its number from 0.

    Raises:
        ValueError: There is no such block.
    """
    if text in ("last", "all"):
        return "last" if text == "last" else "all"
    if text in block_names:
        return block_names.index(text)
    if text.isdecimal() and int(text) < len(block_names):
        return int(text)
    raise ValueError(
        f"--exit {text}: no such block{nearest(text, block_names)}; there are {', '.join(block_names)}, or 0 to "
        f"{len(block_names) - 1}, last and all"
    )


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return what a module's state holds, by its first name: shared parameters stand there once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call] # PyTorch's class has no types
    """Record which tensors the operations inside are given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # as above
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation as it is."""
        self.seen |= {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        return func(*args, **(kwargs or {}))


def _forget_all_but(module: nn.Module, kept: Container[int]) -> None:
    """Set to None the parameters and buffers that are not among the kept ones, so that using one fails.

    Truth values stay: they tell a module what to do when it is loaded.
    """
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in kept and tensor.dtype != torch.bool:
                    tensors[name] = None
