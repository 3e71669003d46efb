"""Run a forward pass in stretches, none of which sees the graph of those before it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn, overrides
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_iter, tree_map_only, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from localprop.network import no_context


class _Abandoned(BaseException):
    """Unwinds a forward pass that nobody waits for any more."""


class Stretches:
    """Iterate over the outputs of a forward pass's stretches.

    The pass runs in a thread of its own, which waits at every cut until `hand_back` is called; only one of the two
    threads runs at a time. On leaving, a pass that has not ended is unwound.

    Args:
        model: Called with x.
        ends: Names of the modules at whose end a stretch ends; each is called once.
        x: The input.
        context: Entered around each stretch.

    Attributes:
        end: Name of the module that ended the last stretch; None when the pass has ended.
    """

    def __init__(
        self,
        model: nn.Module,
        ends: Sequence[str],
        x: Tensor,
        context: Callable[[int], AbstractContextManager[None]] = no_context,
    ) -> None:
        self.end: str | None = None
        self._model, self._x = model, x
        self._context = context
        self._out: SimpleQueue[Tensor | BaseException] = SimpleQueue()
        self._back: SimpleQueue[Tensor | None] = SimpleQueue()
        self._number = 0
        self._passed: set[str] = set()
        self._cut = _Cut()
        modules = dict(model.named_modules())
        self._handles = [modules[name].register_forward_hook(self._hook(name)) for name in ends]
        # What is set for one thread only has to be carried over into the other.
        self._grad_enabled = torch.is_grad_enabled()
        self._modes: list[TorchDispatchMode | TorchFunctionMode] = [
            *_python_dispatch._get_current_dispatch_mode_stack(),
            *overrides._get_current_function_mode_stack(),  # type: ignore[no-untyped-call]
            self._cut,
        ]
        self._thread = threading.Thread(target=self._run, daemon=True, name="localprop-forward")

    def __enter__(self) -> Stretches:
        return self

    def __iter__(self) -> Iterator[Tensor]:
        self._thread.start()
        while True:
            yield self._next()  # not through a name, which would keep its graph alive while the next stretch runs
            if self.end is None:
                return

    def hand_back(self, output: Tensor) -> None:
        """Let the pass go on, with this in place of the first tensor that the module at the cut returned."""
        if self.end is not None:
            self._back.put(output)

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._back.put(None)
            self._thread.join()
        for handle in self._handles:
            handle.remove()

    def _next(self) -> Tensor:
        found = self._out.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def _run(self) -> None:
        try:
            with ExitStack() as stack, torch.set_grad_enabled(self._grad_enabled):
                for mode in self._modes:
                    stack.enter_context(_pushed(mode))
                self._stretch = ExitStack()
                with ExitStack() as last:
                    last.callback(lambda: self._stretch.close())
                    self._stretch.enter_context(self._context(0))
                    answer = answer_of(self._model(self._x))
            self.end = None
            self._out.put(answer)
        except _Abandoned:
            pass
        except BaseException as error:
            self._out.put(error)

    def _hook(self, name: str) -> Callable[..., Any]:
        def wait(module: nn.Module, args: object, returned: Any) -> Any:
            if name in self._passed:
                raise ValueError(f"at: module {name!r} is called more than once in a forward pass; cut somewhere else")
            self._passed.add(name)
            values, structure = tree_flatten(returned)
            place = next((index for index, value in enumerate(values) if isinstance(value, Tensor)), None)
            if place is None:
                raise ValueError(f"at: module {name!r} returns no tensor; cut somewhere else")
            self._stretch.close()
            self.end = name
            self._out.put(values[place])
            values[place] = None
            output = self._back.get()
            if output is None:
                raise _Abandoned
            values[place] = output
            self._number += 1
            self._cut.begin()
            self._stretch = ExitStack()
            self._stretch.enter_context(self._context(self._number))
            return tree_unflatten(values, structure)

        return wait


class _Cut(TorchFunctionMode):
    """Detach what a function is given of an earlier stretch: every tensor with a graph that was not made in this one.

    What is written into in place is the result of that, also under its old name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        """Begin a stretch."""
        self._made: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        self._written: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of PyTorch on detached arguments."""
        given_args, given = tree_map_only(Tensor, self._current, (args, kwargs or {}))
        out = func(*given_args, **given)
        for value in tree_iter(out):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                self._made[value] = True
        if args and isinstance(args[0], Tensor) and given_args[0] is not args[0] and out is given_args[0]:
            self._written[args[0]] = out
        return out

    def _current(self, value: Tensor) -> Tensor:
        if value.grad_fn is None or value in self._made:
            return value
        written = self._written.get(value)
        return value.detach() if written is None else written


@contextmanager
def _pushed(mode: TorchDispatchMode | TorchFunctionMode) -> Iterator[None]:
    """Put a mode that another thread has entered on this one's stack."""
    if isinstance(mode, TorchFunctionMode):
        overrides._push_mode(mode)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            overrides._pop_mode()  # type: ignore[no-untyped-call]
    else:
        _python_dispatch._push_mode(mode)
        try:
            yield
        finally:
            _python_dispatch._pop_mode(getattr(mode, "_dispatch_key", None) or getattr(mode, "_mode_key", None))


def answer_of(returned: object) -> Tensor:
    """Find the logits in what a model returns: a tensor, a record with `logits`, or a tuple that begins with them.

    Raises:
        ValueError: There are none.
    """
    if isinstance(returned, Tensor):
        return returned
    logits = getattr(returned, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(returned, tuple | list) and returned and isinstance(returned[0], Tensor):
        return returned[0]
    raise ValueError(f"model: must return logits, or a tuple that begins with them, got a {type(returned).__name__}")


def leaves_of(h: Tensor) -> set[nn.Parameter]:
    """Return the leaves of a tensor's graph."""
    found, seen, waiting = set(), set(), [h.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(variable)
        waiting.extend(parent for parent, _ in node.next_functions)
    return found
