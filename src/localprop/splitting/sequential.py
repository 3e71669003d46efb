"""Cut an `nn.Sequential`, whose order is its forward pass."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from torch import nn

from localprop.errors import nearest
from localprop.network import LocalNetwork


def split_sequential(model: nn.Sequential | LocalNetwork, at: Sequence[str] | None) -> LocalNetwork:
    """Split an `nn.Sequential` (nested ones too), or a `LocalNetwork` anew; see `localprop.split`.

    Raises:
        ValueError: A name does not exist, the model is empty, or a block would have no parameters.
    """
    architecture = model.architecture if isinstance(model, LocalNetwork) else None
    model = as_sequential(model)
    if not len(model):
        raise ValueError("model: the nn.Sequential is empty; there is nothing to cut")
    if at is None:
        return _network(_by_parameters(model))
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


def as_sequential(model: nn.Sequential | LocalNetwork) -> nn.Sequential:
    """Return the blocks of a `LocalNetwork` as an `nn.Sequential`, by its names or, if these are paths, by number."""
    if isinstance(model, nn.Sequential):
        return model
    # A name with a dot is a path into another model, and no module's own name.
    is_path = any("." in name for name in model.names)
    names = [str(index) for index in range(len(model))] if is_path else model.names
    return nn.Sequential(OrderedDict(zip(names, model.blocks, strict=True)))


def are_in_sequence(model: nn.Sequential, names: Sequence[str]) -> bool:
    """Tell whether modules stand in an `nn.Sequential` or in nested ones, so that it can be cut behind them."""
    return {name for name, _ in _leaves(model, frozenset(names))} >= set(names)


def lies_inside(model: nn.Sequential, names: Sequence[str]) -> bool:
    """Tell whether modules exist, but some stand in a module with a forward pass of its own."""
    return {name for name, _ in model.named_modules()} >= set(names) and not are_in_sequence(model, names)


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
