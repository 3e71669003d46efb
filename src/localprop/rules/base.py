"""The contract of a rule, and what all rules share: seeded contexts and checks of the batch."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from localprop.functional.precision import autocast
from localprop.network import LocalNetwork
from localprop.seed import derive, seeded
from localprop.types import BlockSpec, BlockStep, Key, Normalisation, Phase


class Rule(nn.Module, ABC):
    """Turn a batch into gradients, block after block.

    Args:
        net: The network.
        specs: One description a block, from `net.specs(example, num_classes)`.

    Attributes:
        accumulates: Whether gradients of several batches may be added up before a step.
        seed: Seed of all randomness inside the blocks (dropout masks); set it before training.
        normalisation: How the inputs were made of images in [0, 1], for methods that need the images; None if the
            inputs are the images.
        autocast_dtype: Lower precision for forward passes, such as torch.bfloat16; None computes as the tensors are.
        is_chain: Whether the first block reads the input and each other what the one before wrote; where labels or
            patches come in between, features say little of what the blocks see.
        answers_together: Whether the network's answer reads the exits of all blocks; else the last one's alone.

    Example:
        >>> import torch, localprop
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> x, y = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
        >>> rule = localprop.methods.build("dcl", localprop.split(model), num_classes=3, example=x)
        >>> groups = rule.parameter_groups().items()
        >>> optimizers = {key: torch.optim.SGD(params, lr=0.1) for key, params in groups}
        >>> rule.begin(0)
        >>> for step in rule.steps(x, y):
        ...     optimizers[step.key].step()
        ...     optimizers[step.key].zero_grad(set_to_none=True)
        >>> tuple(rule.predict(x).shape)
        (4, 3)
    """

    accumulates = True
    is_chain = True
    answers_together = False
    _not_early_because = "hidden blocks make no prediction of their own"

    def __init__(self, net: LocalNetwork, specs: Sequence[BlockSpec]) -> None:
        super().__init__()
        if len(specs) != len(net):
            raise ValueError(
                f"specs: need one a block ({len(net)}), got {len(specs)}; use net.specs(example, num_classes)"
            )
        self.net = net
        self.specs = tuple(specs)
        self.seed = 0
        self.normalisation: Normalisation | None = None
        self.autocast_dtype: torch.dtype | None = None
        self._step = 0
        self._passes = 0

    @abstractmethod
    def parameter_groups(self) -> dict[Key, list[nn.Parameter]]:
        """Return the parameters of each group; each group wants an optimiser of its own."""

    @abstractmethod
    def steps(self, x: Tensor, y: Tensor, *, blocks: range | None = None, scale: float = 1.0) -> Iterator[BlockStep]:
        """Yield each parameter group as soon as its gradients are final.

        Args:
            x: Inputs, or with `blocks` the input of the first of them. Shape (N, ...).
            y: Class indices. Shape (N,), int64.
            blocks: A stretch of the network, for layer-parallel training; default all.
            scale: Factor of every gradient: 1 / k for k accumulated batches.

        Raises:
            ValueError: The batch does not fit the network.
        """

    @abstractmethod
    def exits(self, x: Tensor) -> list[Tensor | None]:
        """Return the logits of every block, None where a block makes no prediction. Uses the mode the rule is in."""

    def predict(self, x: Tensor) -> Tensor:
        """Return the logits of the network's answer, shape (N, Z)."""
        return self.answer(self.exits(x))

    def answer(self, exits: Sequence[Tensor | None]) -> Tensor:
        """Return the logits of the network's answer, given those of all blocks; here the last block's."""
        logits = exits[-1]
        assert logits is not None
        return logits

    def run_block(self, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run one block as `exits` does, where the exits of blocks can be had one after another.

        Args:
            block: Its index.
            x: The network's inputs, or what the block before handed on, of any of the samples. Shape (N, ...).

        Returns:
            What the block's exit reads, for `exit_logits`; and what the next block is given. Shape (N, ...) each.

        Raises:
            ValueError: The exits of this rule's blocks cannot be had one after another; says why.
        """
        raise ValueError(f"exits: {type(self).__name__} cannot exit early: {self._not_early_because}")

    def exit_logits(self, block: int, h: Tensor) -> Tensor | None:
        """Return a block's own logits, given what `run_block` said its exit reads; None if it makes no prediction."""
        raise ValueError(f"exits: {type(self).__name__} cannot exit early: {self._not_early_because}")

    def begin(self, step: int) -> None:
        """Start optimiser step number `step`: what is random in it depends on this number, not on what ran before."""
        self._step = step
        self._passes = 0

    def phases(self) -> tuple[Phase, ...]:
        """Return the phases of training, in order; one phase that trains all blocks unless a rule says otherwise."""
        return (Phase("train", range(len(self.net))),)

    def features(self, x: Tensor, blocks: int) -> Tensor:
        """Return what `steps` is given for block number `blocks`: the output of those before, in evaluation mode.

        Args:
            x: Inputs. Shape (N, ...).
            blocks: How many blocks to run; 0 gives the inputs back.
        """
        modes = {module: module.training for module in self.net.blocks[:blocks].modules()}
        try:
            for module in modes:
                module.training = False
            with torch.no_grad():
                for done in self.net.iter_blocks(x, blocks=range(blocks), context=self.context):
                    x = done.output
        finally:
            for module, mode in modes.items():
                module.training = mode
        return x

    def prepare(self, phase: Phase, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Get ready for a phase with one pass over the training set (dictionaries, whitening); by default nothing.

        Called in evaluation mode, without gradients. What it changes is parameters and buffers, as a function of the
        rule's state and the batches alone: a run that is killed in it does it again.

        Args:
            phase: The phase that begins.
            batches: The training set in order, without augmentation: pairs of what `steps` will be given and labels.
        """

    def finish(self, phase: Phase, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """End a phase with one pass over the training set (closed forms); by default nothing. As `prepare`."""

    def solved_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that `finish` solves for, so that no group holds them; here none."""
        return []

    def lr_factor(self, key: Key) -> float:
        """Return the factor of a group's learning rate, where a method trains groups at different rates; here 1."""
        return 1.0

    def image(self, x: Tensor) -> Tensor:
        """Return the images in [0, 1] that the inputs were made of: x std + mean. Shape (N, C, H, W)."""
        if self.normalisation is None:
            return x
        mean, std = self._mean_and_std(x)
        return x * std + mean

    def from_image(self, image: Tensor) -> Tensor:
        """Return the inputs that images in [0, 1] become: (image - mean) / std. Shape (N, C, ...)."""
        if self.normalisation is None:
            return image
        mean, std = self._mean_and_std(image)
        return (image - mean) / std

    @contextlib.contextmanager
    def context(self, block: int, part: str = "block") -> Iterator[None]:
        """Run a block's forward pass, or its "objective": seeded per (step, pass, block), in the rule's precision."""
        device = self._device()
        place = derive(self.seed, part, self._step, self._passes, block)
        drawing = seeded(place, device) if self.training else contextlib.nullcontext()
        with drawing, autocast(device, self.autocast_dtype):
            yield

    def check_batch(self, x: Tensor, y: Tensor, blocks: range) -> None:
        """Refuse a batch that the network cannot train on, with the reason."""
        self.check_input(x, blocks.start)
        if not torch.is_grad_enabled():
            raise ValueError("steps: gradients are switched off (torch.no_grad or inference_mode); train outside of it")
        if not isinstance(y, Tensor):
            raise ValueError(f"y: need a tensor of class indices, got a {type(y).__name__}; use torch.tensor(y)")
        self.check_target(y, len(x))
        if len(x) == 0:
            raise ValueError("x: the batch is empty")
        if len(x) == 1 and self.training and has_batch_norm(self):
            raise ValueError("x: batch normalisation cannot train on a batch of one sample; use at least two")

    def check_target(self, y: Tensor, num_samples: int) -> None:
        """Refuse targets that the network cannot train on, with the reason; here all but class indices."""
        if y.shape != (num_samples,) or y.dtype != torch.int64:
            raise ValueError(
                f"y: need one int64 class index a sample, shape ({num_samples},), got {y.dtype} of shape "
                f"{tuple(y.shape)}; real-valued targets are for the method regression"
            )
        num_classes = self.specs[0].num_classes
        # Reading labels that lie on an accelerator would wait for it; there the loss's own assertion speaks.
        if y.is_cpu and num_samples and not (int(y.min()) >= 0 and int(y.max()) < num_classes):
            wrong = y[(y < 0) | (y >= num_classes)][0]
            raise ValueError(f"y: labels must lie in 0 .. {num_classes - 1} ({num_classes} classes), got {int(wrong)}")

    def refuse_stretch(self, blocks: range | None, why: str, fix: str) -> None:
        """Refuse to train a stretch of blocks, where a method trains the network as a whole."""
        if blocks is not None and blocks != range(len(self.net)):
            raise ValueError(f"blocks: {why}, got {blocks}; {fix}")

    def check_input(self, x: Tensor, block: int = 0) -> None:
        """Refuse an input that a block cannot take, with the reason."""
        check_tensor(x)
        expected = self.specs[block].input_shape
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"x: the network takes samples of shape {expected}, got a batch of shape {tuple(x.shape)}")
        weight = next(self.net.blocks[block].parameters())
        if x.is_floating_point() and self.autocast_dtype is None and x.dtype != weight.dtype:
            raise ValueError(f"x: the weights are {weight.dtype}, got {x.dtype}; use x.to({weight.dtype})")
        if x.dtype == torch.uint8:
            raise ValueError("x: got raw bytes; scale them, as x / 255, and normalise them as in training")

    def _mean_and_std(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.normalisation is not None
        shape = (1, -1, *[1] * (x.dim() - 2))
        mean, std = (
            torch.tensor(values, dtype=x.dtype).view(shape).to(x.device, non_blocking=True)
            for values in (self.normalisation.mean, self.normalisation.std)
        )
        return mean, std

    @contextlib.contextmanager
    def cleared_if_abandoned(self) -> Iterator[None]:
        """Drop every gradient if the pass inside is left half-way, by an error or by whoever iterates over it."""
        try:
            yield
        except BaseException:  # also GeneratorExit
            self.clear_gradients()
            raise

    def clear_gradients(self) -> None:
        """Drop every gradient of the rule's parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    def _device(self) -> torch.device:
        return next(self.parameters()).device


def check_tensor(x: object) -> None:
    """Refuse what is no tensor of numbers that networks compute with.

    Raises:
        ValueError: Says what it is, and what to do.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"x: need a batch of inputs as a tensor, got a {type(x).__name__}; use torch.as_tensor(x)")
    if x.dtype == torch.bool or x.is_complex():
        raise ValueError(f"x: no network computes with {x.dtype}; use x.to({torch.get_default_dtype()})")


def unique(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return the trainable ones of `parameters`, in order, each once."""
    return list(dict.fromkeys(parameter for parameter in parameters if parameter.requires_grad))


def has_batch_norm(module: nn.Module) -> bool:
    """Tell whether a module normalises over the batch, which takes two samples to train."""
    return any(isinstance(part, _BatchNorm) for part in module.modules())


def block_groups(net: LocalNetwork) -> dict[Key, list[nn.Parameter]]:
    """Return one group (block, "block") for every block that has trainable parameters."""
    groups = {(index, "block"): unique(list(block.parameters())) for index, block in enumerate(net.blocks)}
    return {key: parameters for key, parameters in groups.items() if parameters}


def groups_from_the_last(net: LocalNetwork) -> dict[Key, list[nn.Parameter]]:
    """Return `block_groups` from the last block to the first, the order in which errors go back."""
    return dict(reversed(block_groups(net).items()))
