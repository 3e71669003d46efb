"""Cut a model whose forward pass can be recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, fx, nn

from localprop.errors import nearest
from localprop.network import LocalNetwork
from localprop.splitting import WORDS, Balance, candidates
from localprop.splitting.balance import costs, share_out
from localprop.splitting.borders import settle, usual_example
from localprop.splitting.layers import layer_ends, pooling_ends
from localprop.splitting.pieces import Cut, Cuts, build, cut, returned_node
from localprop.splitting.tracing import Trace, TraceFailure, trace


def by_word(model: nn.Module, word: str) -> Cuts:
    """Cut after every child of a list, after one module, or where one of `WORDS` says.

    Raises:
        ValueError: There is no such module, or it cannot be cut there.
    """
    modules = dict(model.named_modules())
    if word in modules and word:
        children = [f"{word}.{name}" for name, _ in modules[word].named_children()]
        return by_names(model, children if candidates.is_list(modules[word]) and children else [word])
    if word not in WORDS:
        raise ValueError(
            f"at: no module {word!r} in {type(model).__name__}{nearest(word, [*WORDS, *modules])}; name modules that "
            f"end a block, a list of blocks, or one of {', '.join(WORDS)}"
        )
    return by_stages(model) if word == "stages" else by_blocks(model)


def by_names(model: nn.Module, at: Sequence[str]) -> Cuts:
    """Cut after the modules of these names.

    Raises:
        ValueError: There is no such module, or more than its output goes on from there.
    """
    modules = dict(model.named_modules())
    names = []
    for name in at:
        if name not in modules or not name:
            raise ValueError(f"at: no module {name!r} to cut after{nearest(name, modules)} in {type(model).__name__}")
        names.append(last_called(modules, name))
    try:
        found = trace(model, _parents(names))
    except TraceFailure as failure:
        raise _unrecorded(model, failure) from failure
    for name in names:
        if name not in found.outputs:
            raise ValueError(
                f"at: module {name!r} is not called by {type(model).__name__}, or returns no single tensor; "
                f"{_some_valid(found)}"
            )
    cuts = cut(found, [(name, found.outputs[name]) for name in names])
    for number, nodes in cuts.crossings().items():
        name, node = cuts.cuts[number]
        values = ", ".join(dict.fromkeys(f"{value.target}" for value in nodes))
        raise ValueError(
            f"at: more than one tensor goes on from {name!r}: its output and {values}; {_some_valid(found, node)}"
        )
    return cuts


def by_stages(model: nn.Module) -> Cuts:
    """Cut after every stage, or where there is only one, after every block."""
    found = candidates.find(model)
    stages = candidates.stages_of(found)
    if len(stages) > 1:
        cuts = _valid(model, stages)
        if len(cuts.cuts) > 2:
            return cuts
    if not found:
        layers = layer_ends(_recorded(model, list(candidates.layers_of(model))))
        return _keep_valid(layers.trace, pooling_ends(layers) or layers.cuts)
    return by_blocks(model)


def by_blocks(model: nn.Module) -> Cuts:
    """Cut after every repeated block; after every layer with what follows it where there are no blocks."""
    found = candidates.find(model)
    if not found:
        return layer_ends(_recorded(model, list(candidates.layers_of(model))))
    cuts = _valid(model, [entry.name for entry in found if entry.is_block])
    # The layers of a dense block cannot be told apart: all of them read all before them. The dense blocks can.
    return cuts if len(cuts.cuts) > 2 else _valid(model, candidates.stages_of(found))


def by_count(model: nn.Module, blocks: int, balance: Balance | None, example: Tensor | None) -> Cuts:
    """Cut into so many blocks, of as many repeated blocks each, or of as even a cost as can be had.

    Raises:
        ValueError: There are not so many places to cut at.
    """
    found = candidates.find(model)
    cuts = joined(by_blocks(model) if balance is None or not found else _by_all(model, found))
    if blocks > len(cuts.cuts):
        raise ValueError(
            f"blocks: {type(model).__name__} can be cut into at most {len(cuts.cuts)} blocks, got {blocks}; "
            "name places to cut at with at=[...]"
        )
    if balance is None:
        measured = [1] * (len(cuts.cuts) - 1) + [0]  # the head goes with the last blocks
    else:
        pieces = build(cuts)
        measured = costs(pieces, balance, example)
    return cut(cuts.trace, [cuts.cuts[end - 1] for end in share_out(measured, blocks)])


def _by_all(model: nn.Module, found: Sequence[candidates.Candidate]) -> Cuts:
    """Cut after blocks, what stands between them, and the stem: wherever costs may be shared out."""
    cuts = _valid(model, [*(entry.name for entry in found), *candidates.stages_of(found)])
    first = next(entry.name for entry in found if entry.is_block)
    stem = [
        (str(node.target), node)
        for node in cuts.trace.graph.nodes
        if node.op == "call_module" and any(user.target == first for user in node.users)
    ]
    return _keep_valid(cuts.trace, [*cuts.cuts[:-1], *stem])


def joined(cuts: Cuts) -> Cuts:
    """Join every piece without parameters to the one before it, or the first one to the one behind it."""
    while len(cuts.cuts) > 1:
        empty = [number for number, parameters in enumerate(cuts.parameters()) if not parameters]
        if not empty:
            break
        dropped = max(empty[0] - 1, 0)
        cuts = cut(cuts.trace, [end for number, end in enumerate(cuts.cuts[:-1]) if number != dropped])
    return cuts


def network(cuts: Cuts, example: Tensor | None) -> LocalNetwork:
    """Build the blocks.

    Raises:
        ValueError: Two blocks share a parameter, or they cannot run on the example.
    """
    cuts = joined(cuts)
    _check_apart(cuts)
    blocks = build(cuts)
    given = usual_example(cuts.trace.model) if example is None else example
    if given is not None:
        try:
            settle(blocks, given)
        except Exception as error:  # foreign code, on an input that it may not be made for
            if example is not None:
                raise ValueError(
                    f"example: the model cannot run on {given.dtype} of shape {tuple(given.shape)}: {error}"
                ) from error
            blocks = build(cuts)  # `LocalNetwork.specs` finds what is left to settle
    return LocalNetwork(blocks, [name for name, _ in cuts.cuts])


def _check_apart(cuts: Cuts) -> None:
    names = {parameter: name for name, parameter in cuts.trace.model.named_parameters()}
    owners: dict[nn.Parameter, int] = {}
    for number, parameters in enumerate(cuts.parameters()):
        for parameter in parameters:
            owner = owners.setdefault(parameter, number)
            if owner != number:
                raise ValueError(
                    f"at: blocks {cuts.cuts[owner][0]!r} and {cuts.cuts[number][0]!r} share the parameter "
                    f"{names[parameter]!r}; cut so that all that use it are in one block"
                )


def _valid(model: nn.Module, names: Iterable[str]) -> Cuts:
    """Cut after those of the modules from which one tensor goes on."""
    modules = dict(model.named_modules())
    wanted = [last_called(modules, name) for name in names]
    found = _recorded(model, wanted)
    return _keep_valid(found, [(name, found.outputs[name]) for name in wanted if name in found.outputs])


def _keep_valid(found: Trace, ends: Sequence[Cut]) -> Cuts:
    """Cut at those of the ends from which one tensor goes on; each node once, under its first name."""
    unique = {node: name for name, node in reversed(ends)}
    cuts = cut(found, [(name, node) for node, name in unique.items()])
    while crossings := cuts.crossings():
        cuts = cut(found, [end for number, end in enumerate(cuts.cuts[:-1]) if number not in crossings])
    return cuts


def _recorded(model: nn.Module, names: Sequence[str]) -> Trace:
    """Record a model with the parents of these modules opened, except those that cannot be recorded."""
    closed: set[str] = set()
    while True:
        opened = {name for name in _parents(names) if not any((name + ".").startswith(path + ".") for path in closed)}
        try:
            return trace(model, opened)
        except TraceFailure as failure:
            if failure.module not in opened:
                raise _unrecorded(model, failure) from failure
            closed.add(failure.module)


def _parents(names: Iterable[str]) -> set[str]:
    return {name[:dot] for name in names for dot in range(len(name)) if name[dot] == "."}


def last_called(modules: dict[str, nn.Module], name: str) -> str:
    """Return the name of what is called at the end of a module list, which is not called itself."""
    while isinstance(module := modules[name], nn.ModuleList) and len(module):
        name = f"{name}.{len(module) - 1}"
    return name


class Unrecorded(ValueError):
    """Tells that a forward pass cannot be recorded."""


def _unrecorded(model: nn.Module, failure: TraceFailure) -> Unrecorded:
    inside = f"inside of {failure.module!r}" if failure.module else f"of {type(model).__name__}"
    cure = "name modules outside of it in at, or " if failure.module else ""
    return Unrecorded(
        f"model: the forward pass {inside} cannot be recorded ({failure}); {cure}write the blocks yourself, as "
        "localprop.LocalNetwork([first, second, ...])"
    )


def _some_valid(found: Trace, near: fx.Node | None = None) -> str:
    """Name the places to cut at that lie next to a node, or all of them."""
    place = {node: index for index, node in enumerate(found.graph.nodes)}
    last = returned_node(found)
    valid = {
        name: place[node]
        for name, node in found.outputs.items()
        if node is not last and not cut(found, [(name, node)]).crossings()
    }
    if near is not None:
        before = [name for name in valid if valid[name] < place[near]][-1:]
        after = [name for name in valid if valid[name] > place[near]][:1]
        return f"the nearest places to cut at are {' and '.join(map(repr, before + after)) or 'none'}"
    return f"it can be cut after {', '.join(map(repr, valid)) or 'no module'}"
