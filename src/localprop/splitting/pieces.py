"""Cut a recorded forward pass into pieces that hand on one tensor each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature

import torch.nn.functional as F
from torch import fx, nn

from localprop.splitting.tracing import Trace

Cut = tuple[str, fx.Node]
"""The name of a block, and the node whose value is the block's output."""


@dataclass(frozen=True)
class Cuts:
    """A recorded forward pass and the cuts through it.

    Attributes:
        trace: The record.
        cuts: In the order of the forward pass; the last one is what the model returns.
        stages: Number of the piece that each node belongs to; nodes that do not depend on the input are left out,
            each piece computes them for itself.
    """

    trace: Trace
    cuts: tuple[Cut, ...]
    stages: dict[fx.Node, int]

    def crossings(self) -> dict[int, tuple[fx.Node, ...]]:
        """Return the values beside the block's output that cross each cut, by the number of the cut."""
        found: dict[int, list[fx.Node]] = {}
        for node, stage in self.stages.items():
            last = max((self.stages[user] for user in node.users if user in self.stages), default=stage)
            for number in range(stage, last):
                if node is not self.cuts[number][1]:
                    found.setdefault(number, []).append(node)
        return {number: tuple(nodes) for number, nodes in found.items()}

    def members(self) -> list[list[fx.Node]]:
        """Return the nodes of each piece in order, with those that do not depend on the input where they are needed."""
        pieces = [{node for node, stage in self.stages.items() if stage == number} for number in range(len(self.cuts))]
        for nodes in pieces:
            waiting = list(nodes)
            while waiting:
                constant = [node for node in waiting.pop().all_input_nodes if node not in self.stages]
                waiting += [node for node in constant if node not in nodes]
                nodes.update(constant)
        order = list(self.trace.graph.nodes)
        return [[node for node in order if node in nodes] for nodes in pieces]

    def parameters(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each piece."""
        return [
            [parameter for node in nodes for parameter in parameters_of(self.trace, node)] for nodes in self.members()
        ]


def parameters_of(trace: Trace, node: fx.Node) -> list[nn.Parameter]:
    """Return the parameters of the module that a node calls, or the one that it reads."""
    if node.op == "call_module":
        return list(trace.model.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        parent, _, name = str(node.target).rpartition(".")
        found = getattr(trace.model.get_submodule(parent), name)
        return [found] if isinstance(found, nn.Parameter) else []
    return []


def cut(trace: Trace, ends: Sequence[Cut]) -> Cuts:
    """Say which piece each node belongs to: the first one whose output depends on it.

    Args:
        trace: The record of a model that returns one tensor.
        ends: The cuts, in any order; what the model returns is added.
    """
    nodes = list(trace.graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    returned = returned_node(trace)
    cuts = sorted((end for end in ends if end[1] is not returned), key=lambda end: place[end[1]])
    last = next((name for name, node in ends if node is returned), None) or _last_module(trace)
    cuts.append((last, returned))
    moving = _depending(nodes)
    stages: dict[fx.Node, int] = {}
    for number, (_, end) in enumerate(cuts):
        waiting = [end]
        while waiting:
            node = waiting.pop()
            if node in moving and node not in stages:
                stages[node] = number
                waiting += node.all_input_nodes
    for node in nodes:  # checks of shapes and the like, which nothing depends on
        if node in moving and node not in stages and node.op != "output":
            stages[node] = max(stages[source] for source in node.all_input_nodes if source in stages)
    return Cuts(trace, tuple(cuts), stages)


def returned_node(trace: Trace) -> fx.Node:
    """Return the node of what the model returns.

    Raises:
        ValueError: It does not return one tensor.
    """
    [output] = [node for node in trace.graph.nodes if node.op == "output"]
    value = output.args[0]
    if not isinstance(value, fx.Node):
        raise ValueError(
            f"model: must return one tensor, the logits, got a {type(value).__name__} from "
            f"{type(trace.model).__name__}; wrap it into a module that returns the logits"
        )
    return value


def build(cuts: Cuts) -> list[fx.GraphModule]:
    """Make a module of each piece, with the model's own modules and parameters under their own names."""
    blocks = []
    for number, nodes in enumerate(cuts.members()):
        graph = fx.Graph()
        known: dict[fx.Node, fx.Node] = {}
        if number:
            known[cuts.cuts[number - 1][1]] = graph.placeholder("x")
        for node in nodes:
            known[node] = graph.node_copy(node, known.__getitem__)
        graph.output(known[cuts.cuts[number][1]])
        block = fx.GraphModule(cuts.trace.model, graph, "Block")
        for dropout in cuts.trace.dropouts.intersection(nodes):
            _follow_mode(block, known[dropout])
        blocks.append(block)
    return blocks


def _follow_mode(block: fx.GraphModule, dropout: fx.Node) -> None:
    """Put a module, which knows the block's mode, in the place of a call of the function `dropout`."""
    given = signature(F.dropout).bind(*dropout.args, **dropout.kwargs).arguments
    block.add_submodule(dropout.name, nn.Dropout(given.get("p", 0.5), given.get("inplace", False)))
    with block.graph.inserting_before(dropout):
        dropout.replace_all_uses_with(block.graph.call_module(dropout.name, (given["input"],)))
    block.graph.erase_node(dropout)
    block.recompile()


def _depending(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes that depend on the input."""
    moving: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(source in moving for source in node.all_input_nodes):
            moving.add(node)
    return moving


def _last_module(trace: Trace) -> str:
    """Return the name of the last module that has parameters, for the block that ends the model."""
    called = [str(node.target) for node in trace.graph.nodes if node.op == "call_module" and parameters_of(trace, node)]
    return called[-1] if called else "output"
