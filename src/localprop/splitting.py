"""Cut a plain PyTorch model into the blocks that are trained locally."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from torch import nn

from localprop.errors import nearest
from localprop.network import LocalNetwork


def split(model: nn.Module, at: Sequence[str] | None = None) -> LocalNetwork:
    """Split an `nn.Sequential` (nested ones too) into blocks, without changing or copying its modules.

    Args:
        model: An `nn.Sequential`, or a `LocalNetwork` (returned as it is, or cut anew at `at`).
        at: Names of the modules that END a block, as in `model.named_modules()` ("3", "features.5"), or for a
            `LocalNetwork` as in its `names` ("conv2", and "conv2.0" inside of it); the rest after the last name is
            the last block. Default: a block begins at every child that has parameters; children without
            parameters (activations, pooling, flattening) end the block before them.

    Returns:
        The blocks as a `LocalNetwork` that computes exactly what `model` computes.

    Raises:
        ValueError: The model is not a chain of modules, a name does not exist, or a block would have no parameters.

    Example:
        >>> from torch import nn
        >>> import localprop
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> len(localprop.split(model))
        3
        >>> localprop.split(model, at=["3"]).names
        ('3', '4')
    """
    architecture = None
    if isinstance(model, LocalNetwork):
        architecture = model.architecture
        if at is None:
            return model
        # A name with a dot is a path into another model, and no module's own name.
        is_path = any("." in name for name in model.names)
        names = [str(index) for index in range(len(model))] if is_path else model.names
        model = nn.Sequential(OrderedDict(zip(names, model.blocks, strict=True)))
    if not isinstance(model, nn.Sequential):
        raise ValueError(
            f"model: only nn.Sequential can be cut (its order is its forward pass), got {type(model).__name__}; "
            "write the model as an nn.Sequential of its stages, or build a LocalNetwork from a list of blocks"
        )
    if not len(model):
        raise ValueError("model: the nn.Sequential is empty; there is nothing to cut")
    if at is None:
        return _network(_by_parameters(model))
    if isinstance(at, str) or not all(isinstance(name, str) for name in at):
        raise ValueError(f'at: must be a list of names, such as ["2", "5"], got {at!r}')
    leaves = list(_leaves(model, frozenset(at)))
    names = [name for name, _ in leaves]
    unknown = [name for name in at if name not in names]
    if unknown:
        raise ValueError(
            f"at: no module {unknown[0]!r} to cut after{nearest(unknown[0], names)}; the names are {names}"
        )
    pieces: list[list[tuple[str, nn.Module]]] = [[]]
    for name, module in leaves:
        pieces[-1].append((name, module))
        if name in at:
            pieces.append([])
    net = _network([piece for piece in pieces if piece])
    net.architecture = architecture
    return net


def _leaves(module: nn.Sequential, at: frozenset[str], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Flatten nested Sequentials, except those that a cut names as a whole."""
    for child_name, child in module.named_children():
        name = prefix + child_name
        # A subclass may carry its own forward pass or attributes, so it is opened only if a cut lies inside it.
        inside = any(cut.startswith(name + ".") for cut in at)
        if (type(child) is nn.Sequential and name not in at) or (
            inside and type(child).forward is nn.Sequential.forward
        ):
            assert isinstance(child, nn.Sequential)
            yield from _leaves(child, at, name + ".")
        else:
            yield name, child


def _by_parameters(model: nn.Sequential) -> list[list[tuple[str, nn.Module]]]:
    pieces: list[list[tuple[str, nn.Module]]] = [[]]
    trained = False  # whether the piece under construction has parameters
    for name, child in model.named_children():
        has_parameters = any(True for _ in child.parameters())
        if has_parameters and trained:
            pieces.append([])
        trained = trained or has_parameters
        pieces[-1].append((name, child))
    return pieces


def _network(pieces: Sequence[Sequence[tuple[str, nn.Module]]]) -> LocalNetwork:
    blocks = [piece[0][1] if len(piece) == 1 else _sequence([m for _, m in piece]) for piece in pieces]
    return LocalNetwork(blocks, [piece[-1][0] for piece in pieces])


def _sequence(modules: Sequence[nn.Module]) -> nn.Sequential:
    block = nn.Sequential(*modules)
    # Chunks are told by what gives the output; channels stay where the last layer puts them.
    trained = [module for module in modules if any(True for _ in module.parameters())]
    for name, told in (("feature_chunks", modules[-1:]), ("channel_axis", trained[-1:])):
        for module in told:
            if hasattr(module, name):
                setattr(block, name, getattr(module, name))
    return block
