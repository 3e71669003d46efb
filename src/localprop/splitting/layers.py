"""Cuts of models without repeated blocks: every layer with parameters, and what follows it, is a block."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from localprop.splitting.pieces import Cut, Cuts, cut, parameters_of
from localprop.splitting.tracing import Trace

_POOLING = (_MaxPoolNd, _AvgPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)


def layer_ends(trace: Trace) -> Cuts:
    """Cut before every layer with parameters: activations, pooling and normalisation go with the layer before them.

    Only where a chain of calls, each reading the one before alone, leads to the next layer.
    """
    ends: list[Cut] = []
    for node in trace.graph.nodes:
        if node.op != "call_module" or not parameters_of(trace, node):
            continue
        name = str(node.target)
        while (following := _only_user(node)) is not None and _goes_with(trace, following):
            node = following
            name = str(node.target) if node.op == "call_module" else name
        ends.append((name, node))
    cuts = cut(trace, list({node: (name, node) for name, node in ends}.values()))
    while crossings := cuts.crossings():
        cuts = cut(trace, [end for number, end in enumerate(cuts.cuts[:-1]) if number not in crossings])
    return cuts


def pooling_ends(cuts: Cuts) -> Sequence[Cut]:
    """Return the cuts that stand behind a pooling, if there are several."""
    found = [end for end in cuts.cuts[:-1] if _ends_in_pooling(cuts.trace, end[1])]
    return found if len(found) > 1 else []


def _ends_in_pooling(trace: Trace, node: fx.Node) -> bool:
    """Tell whether a pooling stands between a node and the last layer with parameters before it."""
    while not parameters_of(trace, node) and len(node.all_input_nodes) == 1:
        if node.op == "call_module" and isinstance(trace.model.get_submodule(str(node.target)), _POOLING):
            return True
        [node] = node.all_input_nodes
    return False


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _goes_with(trace: Trace, node: fx.Node) -> bool:
    if node.op == "output" or len(node.all_input_nodes) != 1:
        return False
    if node.op == "call_module" and isinstance(trace.model.get_submodule(str(node.target)), _NormBase):
        return True
    return not parameters_of(trace, node)
