"""Record what a model computes as a graph of its modules' calls."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from itertools import zip_longest
from traceback import walk_tb
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import fx, nn


@dataclass(frozen=True)
class Trace:
    """A model's forward pass.

    Attributes:
        model: The model.
        graph: Calls of modules and functions in order; a module that was not opened is one call.
        outputs: The node of what each called module returned last, by the module's name.
        dropouts: Calls of the function `dropout` that follow the mode of the module that makes them.
    """

    model: nn.Module
    graph: fx.Graph
    outputs: dict[str, fx.Node]
    dropouts: frozenset[fx.Node] = frozenset()


class TraceFailure(ValueError):
    """Tells that a forward pass cannot be recorded.

    Attributes:
        module: Name of the module whose own forward pass it is; "" for the model.
    """

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(reason)
        self.module = module


class _Tracer(fx.Tracer):
    """Call modules as a whole, except the opened ones, whose forward pass is recorded."""

    proxy_buffer_attributes = True  # else a buffer is frozen into the graph as a constant

    def __init__(self, opened: Collection[str], functions: Sequence[Callable[..., Any]]) -> None:
        super().__init__(autowrap_functions=tuple(functions))
        self.opened = opened
        self.outputs: dict[str, fx.Node] = {}
        self.failed = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a module is one call."""
        return module_qualified_name not in self.opened

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Hand in the model and its first argument; the others keep the defaults that a plain call gives them."""
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a call, and what it returns."""
        name = self.path_of_module(m)
        try:
            out = super().call_module(m, forward, args, kwargs)
        except Exception:  # whatever foreign code raises goes on; here only its place is noted
            self.failed = self.failed or name
            raise
        if isinstance(out, fx.Proxy):
            self.outputs[name] = out.node
        return out


def trace(model: nn.Module, opened: Collection[str]) -> Trace:
    """Record the forward pass of a model.

    Args:
        model: The model; called with one argument.
        opened: Names of the modules whose forward passes are recorded, with their parents; those of all others run as
            they are, so that what they decide by their input or mode is decided anew each time.

    Raises:
        TraceFailure: A recorded forward pass branches on values, or does something else in training than in
            evaluation.
    """
    modules = [model, *(model.get_submodule(name) for name in opened)]
    modes = [module.training for module in modules]
    try:
        traces = []
        for mode in (True, False):
            for module in modules:
                module.training = mode
            traces.append(_traced(model, opened))
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    return replace(traces[1], dropouts=_following_the_mode(*traces))


def _traced(model: nn.Module, opened: Collection[str]) -> Trace:
    """Record the forward pass in the present mode; functions of the model's file that branch become single calls."""
    functions: list[Callable[..., Any]] = []
    while True:
        tracer = _Tracer(opened, functions)
        try:
            graph = tracer.trace(model)
        except Exception as error:  # foreign code ran on stand-ins for tensors: it may raise anything
            function = _function_that_failed(model, error)
            if function is None or function in functions:
                reason = next(iter(str(error).strip().splitlines()), "no reason given")
                raise TraceFailure(tracer.failed, f"{type(error).__name__}: {reason}") from error
            functions.append(function)
        else:
            return Trace(model, graph, tracer.outputs)


def _function_that_failed(model: nn.Module, error: Exception) -> Callable[..., Any] | None:
    """Return the function known to the model's file, not a method, that an error came out of, if there is one."""
    known = {
        value.__code__: value
        for value in getattr(type(model).forward, "__globals__", {}).values()
        if isinstance(value, FunctionType)
    }
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return next((known[frame.f_code] for frame in frames if frame.f_code in known), None)


def _following_the_mode(training: Trace, evaluation: Trace) -> frozenset[fx.Node]:
    """Return the calls of `dropout` that read `self.training`, and refuse all else that does: a record freezes it."""
    dropouts = set()
    for one, other in zip_longest(training.graph.nodes, evaluation.graph.nodes):
        same = (
            one is not None
            and other is not None
            and (one.op, one.name, one.target) == (other.op, other.name, other.target)
        )
        if same and _arguments(one) == _arguments(other):
            continue
        if same and one.target is F.dropout and _arguments(one, but="training") == _arguments(other, but="training"):
            dropouts.add(other)
            continue
        node = other if one is None else one
        raise TraceFailure(
            _owner(node),
            f"it does something else in training than in evaluation, at {node.name!r}, outside of a module",
        )
    return frozenset(dropouts)


def _arguments(node: fx.Node, but: str | None = None) -> str:
    """Write a call's arguments, by name where it calls the function `dropout`."""
    if node.target is F.dropout:
        given = signature(F.dropout).bind(*node.args, **node.kwargs).arguments
        return str({name: value for name, value in given.items() if name != but})
    return f"{node.args} {node.kwargs}"


def _owner(node: fx.Node) -> str:
    """Return the name of the module whose forward pass holds a call."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return next((str(path) for path in reversed(stack) if path != node.target), "")
