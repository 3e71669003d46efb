"""Find the repeated blocks and the stages of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

_LAYERS = {f"torch.nn.modules.{name}" for name in ("activation", "batchnorm", "conv", "linear", "normalization")}


@dataclass(frozen=True)
class Candidate:
    """A module that may end a block.

    Attributes:
        name: Its name in the model.
        parent: Name of the list or stage that holds it; "" for the model.
        is_block: Whether it is one of the repeated blocks, and not a stem, a transition or a head.
    """

    name: str
    parent: str
    is_block: bool


def find(model: nn.Module) -> list[Candidate]:
    """Find the modules of a model that may end a block, in the order in which they were registered.

    A block is a module of modules in a list that holds no other such list. A list is an `nn.Sequential`,
    `nn.ModuleList` or `nn.ModuleDict`, or a stage: a module of a class that holds such a list of modules of one class,
    or nothing but modules of one class. Blocks are not looked into.

    Returns:
        Blocks and what stands between them; none for a model without blocks, such as a VGG.
    """
    stages = _stage_classes(model)
    found = list(_walk(model, "", stages))
    holders = {parent for _, parent, is_block in found if is_block}
    inner = {parent for parent in holders if not any(other.startswith(parent + ".") for other in holders)}
    if not inner:
        return []
    return [Candidate(name, parent, is_block and parent in inner) for name, parent, is_block in found]


def stages_of(candidates: Sequence[Candidate]) -> list[str]:
    """Return the names of the stages that hold the blocks: for each list of blocks its outermost parent of its own."""
    parents = list(dict.fromkeys(entry.parent for entry in candidates if entry.is_block))
    stages = []
    for parent in parents:
        path = parent.split(".")
        while len(path) > 1 and not any(
            other != parent and other.startswith(".".join(path[:-1]) + ".") for other in parents
        ):
            path.pop()
        stages.append(".".join(path))
    return stages


def layers_of(model: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yield the names of the modules with parameters in a model without blocks; lists are looked into."""
    for child_name, child in model.named_children():
        name = prefix + child_name
        if is_list(child):
            yield from layers_of(child, name + ".")
        elif _has_parameters(child):
            yield name


def is_list(module: nn.Module) -> bool:
    """Tell whether a module's children are a list: run one after another, or called by their parent."""
    if isinstance(module, nn.Sequential):
        return type(module).forward is nn.Sequential.forward
    return isinstance(module, nn.ModuleList | nn.ModuleDict)


def _walk(module: nn.Module, prefix: str, stages: set[type[nn.Module]]) -> Iterator[tuple[str, str, bool]]:
    """Yield the name, the parent and whether it may be a block of every module of modules, and list of layers."""
    for child_name, child in module.named_children():
        name = prefix + child_name
        if type(child) in stages or (is_list(child) and any(map(is_composite, _members(child)))):
            yield from _walk(child, name + ".", stages)
        elif (is_composite(child) or is_list(child)) and _has_parameters(child):
            is_block = is_composite(child) and (is_list(module) or type(module) in stages)
            yield name, prefix.rstrip("."), is_block


def _stage_classes(model: nn.Module) -> set[type[nn.Module]]:
    """Return the classes of modules that hold a list of blocks, or several blocks and nothing else."""
    found: set[type[nn.Module]] = set()
    for module in model.modules():
        if module is model or is_list(module):
            continue
        holds_list = any(_is_uniform(child) for child in module.children() if is_list(child))
        parts = list(module.children())
        # Modules of plain layers, one after another, are a block: a bottleneck of three normalised convolutions.
        holds_blocks = len(parts) > 1 and _is_uniform(module) and any(map(_is_deep, parts))
        if holds_list or holds_blocks:
            found.add(type(module))
    return found


def _is_uniform(module: nn.Module) -> bool:
    """Tell whether all children with parameters are modules of modules, and of one class."""
    children = [child for child in module.children() if _has_parameters(child)]
    return bool(children) and all(map(is_composite, children)) and len({*map(type, children)}) == 1


def is_composite(module: nn.Module) -> bool:
    """Tell whether a module is made of modules, and neither a list of them nor one of PyTorch's layers."""
    is_layer = any(base.__module__ in _LAYERS for base in type(module).__mro__)
    return not is_list(module) and not is_layer and any(True for _ in module.children())


def _is_deep(module: nn.Module) -> bool:
    return any(is_composite(child) or is_list(child) for child in module.children())


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _members(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the children of a list, and those of the lists in it."""
    for child in module.children():
        if is_list(child):
            yield from _members(child)
        else:
            yield child
