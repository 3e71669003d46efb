"""Cut a plain PyTorch model into the blocks that are trained locally."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from localprop.errors import nearest
from localprop.network import LocalNetwork
from localprop.splitting.sequential import are_in_sequence, as_sequential, lies_inside, split_sequential

__all__ = ["WORDS", "Balance", "split"]

Balance = Literal["memory", "flops", "parameters"]
"""What blocks can have in equal amounts."""
WORDS = ("blocks", "stages", "layers")
"""What `at` may say where the model has no module of that name."""


def split(
    model: nn.Module,
    at: str | Sequence[str] | None = None,
    *,
    blocks: int | None = None,
    balance: Balance | None = None,
    example: Tensor | None = None,
) -> LocalNetwork:
    """Split a model into blocks, without changing or copying its modules.

    The forward pass of an `nn.Sequential` is its order. That of any other model is recorded once with `torch.fx`; only
    the modules around the cuts are recorded, what lies inside of a block runs as it is. Where that fails, because the
    pass depends on values or on code that cannot be recorded, the model is cut while it runs: its whole forward pass
    waits at every cut, and whatever it reads of before a cut is detached. A warning says so, for then no block runs
    by itself.

    Args:
        model: Any module that turns one tensor into logits, or a `LocalNetwork` (returned as it is, or cut anew).
        at: Names of the modules that END a block, as in `model.named_modules()` ("layer1.0", "features.5"), or for a
            `LocalNetwork` as in its `names`; the rest after the last name is the last block. A single text names a
            list of modules, each of which ends a block ("blocks", "encoder.layers"); where the model has no module of
            that name, "blocks" and "layers" stand for all repeated blocks and "stages" for all stages. Default: for
            an `nn.Sequential` a block begins at every child that has parameters; other models are cut into stages, or
            into blocks if they have one stage.
        blocks: Number of blocks, in place of `at`: equally many of the repeated blocks in each.
        balance: What `blocks` shall have in equal amounts: "memory" kept for the backward pass, "flops" or
            "parameters". The largest block is as small as the places to cut at allow.
        example: A batch of inputs, shape (N, ...), which "memory" and "flops" are measured on. Models that put the
            channels of a map last need it where the size of their input cannot be guessed.

    Returns:
        The blocks as a `LocalNetwork` that computes exactly what `model` computes. Pieces without parameters end the
        block before them; the last block ends in what the model returns. The parameters of block I of a recorded model
        are called blocks.I.NAME, with NAME as in the model.

    Raises:
        ValueError: A name does not exist, more than one tensor crosses a cut of a recorded pass, two blocks share a
            parameter, a block would have no parameters, or the pass can neither be recorded nor cut while it runs.

    Example:
        >>> from torch import nn
        >>> import localprop
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> len(localprop.split(model))
        3
        >>> localprop.split(model, at=["3"]).names
        ('3', '4')
        >>> from torchvision.models import resnet18
        >>> localprop.split(resnet18()).names
        ('layer1', 'layer2', 'layer3', 'layer4', 'fc')
    """
    _check(at, blocks, balance, example)
    if isinstance(model, LocalNetwork) and blocks is None and (at is None or at in WORDS):
        return model
    if isinstance(model, nn.Sequential | LocalNetwork) and blocks is None and not isinstance(at, str):
        inside = isinstance(model, nn.Sequential) and at is not None and lies_inside(model, at)
        if not inside:
            return split_sequential(model, at)
    from localprop.splitting import recorded  # takes a second to import, which a list of modules can spare

    if isinstance(model, LocalNetwork):
        model = as_sequential(model)
    try:
        if blocks is not None:
            cuts = recorded.by_count(model, blocks, balance, example)
        elif at is None:
            cuts = recorded.by_stages(model)
        elif isinstance(at, str):
            cuts = recorded.by_word(model, at)
        else:
            cuts = recorded.by_names(model, at)
    except recorded.Unrecorded as refusal:
        return _hooked(model, at, blocks, balance, example, refusal)
    if isinstance(model, nn.Sequential):
        names = [name for name, _ in recorded.joined(cuts).cuts[:-1]]
        if are_in_sequence(model, names):  # then the blocks are lists, too, which have an activation and fused chains
            return split_sequential(model, names)
    return recorded.network(cuts, example)


def _hooked(
    model: nn.Module,
    at: str | Sequence[str] | None,
    blocks: int | None,
    balance: Balance | None,
    example: Tensor | None,
    refusal: ValueError,
) -> LocalNetwork:
    """Cut a model while it runs, and say so, where that can be done."""
    from localprop.splitting import hooked
    from localprop.splitting.borders import usual_example

    ends = hooked.ends_of(model, at, blocks)
    if balance is not None or not ends:
        raise refusal
    given = usual_example(model) if example is None else example
    try:
        if given is None:
            raise hooked.CannotRun
        net = hooked.network(model, ends, given)
    except hooked.CannotRun as failure:
        if example is not None:
            raise
        raise ValueError(f"{refusal}, or pass example=x, a batch of inputs, to cut it while it runs") from failure
    warnings.warn(
        f"{refusal}. It is cut while it runs: no gradient crosses a cut, but no block runs by itself, so that methods "
        "which train blocks in phases, send messages between them or exit early are refused",
        UserWarning,
        stacklevel=3,
    )
    return net


def _check(at: object, blocks: object, balance: object, example: object) -> None:
    if at is not None and blocks is not None:
        raise ValueError(f"blocks: goes in place of at, got both, {at!r} and {blocks!r}; give one of the two")
    if not (at is None or (isinstance(at, Sequence) and all(isinstance(name, str) for name in at))):
        raise ValueError(f'at: must be a list of names, such as ["2", "5"], got {at!r}')
    if blocks is not None and (not isinstance(blocks, int) or blocks < 1):
        raise ValueError(f"blocks: must be a whole number of at least 1, got {blocks!r}")
    if balance is not None and balance not in get_args(Balance):
        known = get_args(Balance)
        raise ValueError(f"balance: must be one of {', '.join(known)}{nearest(str(balance), known)}, got {balance!r}")
    if balance is not None and blocks is None:
        raise ValueError(f"balance: needs the number of blocks, as split(model, blocks=8, balance={balance!r})")
    if balance in ("memory", "flops") and example is None:
        raise ValueError(f"balance: {balance!r} is measured on a batch; pass example=x")
