"""Cut a model whose forward pass cannot be recorded: while it runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from localprop.errors import nearest
from localprop.network import BlockPass, LocalNetwork, in_mode, no_context
from localprop.splitting import candidates
from localprop.splitting.balance import share_out
from localprop.splitting.recorded import last_called
from localprop.splitting.stretches import Stretches, answer_of, leaves_of
from localprop.types import BlockSpec


class CannotRun(ValueError):
    """Tells that a model cannot run on an example."""


class HookedBlock(nn.Module):
    """The layers of a stretch of a forward pass, which run only as part of the whole."""

    def __init__(self, name: str, layers: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.name = name
        for path, layer in layers.items():
            self.add_module(path.replace(".", "/"), layer)
        for path, parameter in parameters.items():
            self.register_parameter(path.replace(".", "/"), parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Refuse to run by itself."""
        raise ValueError(
            f"block {self.name!r} cannot run by itself: the forward pass of its model could not be recorded, so it "
            "runs as a whole; choose a method that trains each block once, on what the one before hands on, such as "
            "dcl or pred, or write the blocks yourself, as localprop.LocalNetwork([first, second, ...])"
        )


class HookedNetwork(LocalNetwork):
    """Chain the stretches of a model's forward pass, which runs whole and waits at every cut.

    What a stretch reads of those before it is detached, whether it is the output of a cut or goes past it; so no
    gradient crosses a cut. No block runs by itself: stretches of blocks, phases, windows and gradients at a block's
    input are refused.

    Args:
        model: The model; its layers are those of the blocks.
        blocks: Its stretches.
        ends: Names of the modules at whose end all stretches but the last end.
    """

    runs_whole = True

    def __init__(self, model: nn.Module, blocks: Sequence[HookedBlock], ends: Sequence[str]) -> None:
        super().__init__(blocks, [block.name for block in blocks])
        self._model = [model]  # in a list, which names no parameter twice
        self._ends = tuple(ends)

    def train(self, mode: bool = True) -> HookedNetwork:
        """Set training or evaluation mode, of all that the model has; frozen blocks stay in evaluation mode."""
        self._model[0].train(mode)
        super().train(mode)
        return self

    def specs(self, example: Tensor, num_classes: int, *, fewest: int = 2) -> tuple[BlockSpec, ...]:
        """Describe every block; see `LocalNetwork.specs`."""
        with in_mode(self._model[0], training=False):  # gives every module of the model its mode back
            return super().specs(example, num_classes, fewest=fewest)

    def forward(self, x: Tensor) -> Tensor:
        """Run the model, shape (N, ...) -> (N, Z)."""
        return answer_of(self._model[0](x))

    def run_layers(self, x: Tensor, context: Callable[[int], AbstractContextManager[None]] = no_context) -> Tensor:
        """Run the model in the first block's context; see `LocalNetwork.run_layers`."""
        with context(0):
            return self.forward(x)

    def iter_blocks(
        self,
        x: Tensor,
        *,
        blocks: range | None = None,
        input_grad: bool = False,
        boundary: Callable[[Tensor], Tensor] | None = None,
        context: Callable[[int], AbstractContextManager[None]] = no_context,
        at_activation: Container[int] = (),
    ) -> Iterator[BlockPass]:
        """Run stretch after stretch; see `LocalNetwork.iter_blocks`. What is scored is always a stretch's output.

        Raises:
            ValueError: A stretch of blocks or gradients at inputs are asked for, or a pass ends its stretches elsewhere
                than that of the example.
        """
        if blocks is not None and blocks != range(len(self)):
            self.blocks[blocks.start](x)  # which refuses
        if input_grad:
            raise ValueError(
                "the blocks of this model have no single input whose gradient could be had, for its forward pass could "
                "not be recorded; choose a method without messages between blocks, or write the blocks yourself"
            )
        given = x.detach()
        with Stretches(self._model[0], self._ends, given, context) as stretches:
            for index, h in enumerate(stretches):
                self._check_end(index, stretches.end)
                output = h.detach()
                yield BlockPass(index, given, h, output)
                del h  # its graph must be gone before the next block runs
                given = output if boundary is None else boundary(output)
                stretches.hand_back(given)

    def run_window(
        self,
        x: Tensor,
        blocks: range,
        *,
        context: Callable[[int], AbstractContextManager[None]] = no_context,
    ) -> list[Tensor]:
        """Refuse to run a stretch of blocks."""
        return [self.blocks[blocks.start](x)]

    def _check_end(self, block: int, end: str | None) -> None:
        expected = [*self._ends, None][block]
        if end != expected:
            went, wanted = (f"{name!r}" if name else "the answer" for name in (end, expected))
            raise ValueError(
                f"model: block {self.names[block]!r} ended with {went}, not with {wanted}: the forward pass calls "
                "others than it did for the example; cut only after modules that are always called, in one order"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HookedNetwork:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        own = set(self.modules())
        rest = {name: module for name, module in self._model[0].named_modules() if module not in own}
        for module in rest.values():
            module._apply(fn, recurse=False)
        for path in self.blocks[0]._buffers:
            name, _, buffer = path.replace("/", ".").rpartition(".")
            self.blocks[0]._buffers[path] = rest[name]._buffers[buffer]
        return self


def ends_of(model: nn.Module, at: str | Sequence[str] | None, blocks: int | None) -> list[str]:
    """Return the names of the modules that `split` is asked to cut after; none where it takes a recorded pass to know.

    Raises:
        ValueError: There is no such module.
    """
    modules = dict(model.named_modules())
    found = candidates.find(model)
    repeated = [entry.name for entry in found if entry.is_block]
    if blocks is not None:
        ends = [] if blocks > len(repeated) else [repeated[end - 1] for end in share_out([1] * len(repeated), blocks)]
    elif isinstance(at, str) and at in modules:
        children = [f"{at}.{name}" for name, _ in modules[at].named_children()]
        ends = children if candidates.is_list(modules[at]) and children else [at]
    elif at is None or at == "stages":
        stages = candidates.stages_of(found)
        ends = stages if len(stages) > 1 else repeated
    else:
        ends = repeated if isinstance(at, str) else list(at)
    for name in ends:
        if name not in modules or not name:
            raise ValueError(f"at: no module {name!r} to cut after{nearest(name, modules)} in {type(model).__name__}")
    return [last_called(modules, name) for name in ends]


def network(model: nn.Module, at: Sequence[str], example: Tensor) -> HookedNetwork:
    """Find the stretches of a model by running an example through it, in evaluation mode.

    Args:
        model: Any module that turns one tensor into logits, or into a tuple or record that begins with them.
        at: Names of the modules that end a stretch.
        example: Inputs, shape (N, ...).

    Raises:
        CannotRun: The model cannot run on the example.
        ValueError: A module is called more than once, or two stretches share a parameter.
    """
    found = _look(model, at, example)
    names = {parameter: name for name, parameter in model.named_parameters()}
    if found.ends and (empty := [number for number, reached in enumerate(found.reached) if not reached & set(names)]):
        dropped = found.ends[max(empty[0] - 1, 0)]  # a stretch without parameters goes with the one before it
        return network(model, [name for name in at if name != dropped], example)
    titles = [*found.ends, _last_layer(model, found.ends)]
    owners: dict[nn.Parameter, int] = {}
    for number, reached in enumerate(found.reached):
        for parameter in reached & set(names):
            owner = owners.setdefault(parameter, number)
            if owner != number:
                raise ValueError(
                    f"at: the parameter {names[parameter]!r} is in two blocks, {titles[owner]!r} and "
                    f"{titles[number]!r}; cut so that all that use it are in one block"
                )
    _tell_left_out([name for parameter, name in names.items() if parameter not in owners])
    blocks = []
    for number, title in enumerate(titles):
        layers = {name: leaf for name, leaf in _leaves(model).items() if _place(leaf, name, owners, found) == number}
        inside = {parameter for layer in layers.values() for parameter in layer.parameters()}
        loose = {
            names[parameter]: parameter
            for parameter, owner in owners.items()
            if owner == number and parameter not in inside
        }
        blocks.append(HookedBlock(title, layers, loose))
    for path, buffer in _tables(model):
        blocks[0].register_buffer(path.replace(".", "/"), buffer)
    return HookedNetwork(model, blocks, found.ends)


class _Seen(NamedTuple):
    """What a pass showed: ends in order, the parameters of each stretch, and which stretch called a layer first."""

    ends: list[str]
    reached: list[set[nn.Parameter]]
    called: dict[str, int]


def _look(model: nn.Module, at: Sequence[str], example: Tensor) -> _Seen:
    seen = _Seen([], [], {})

    def note(name: str) -> Callable[..., None]:
        def called(*_: object) -> None:
            seen.called.setdefault(name, len(seen.reached))

        return called

    handles = [leaf.register_forward_pre_hook(note(name)) for name, leaf in _leaves(model).items()]
    try:
        with torch.enable_grad(), in_mode(model, training=False), Stretches(model, at, example.detach()) as stretches:
            for h in stretches:
                seen.reached.append(leaves_of(h))
                if stretches.end is not None:
                    seen.ends.append(stretches.end)
                    stretches.hand_back(h.detach())
    except (RuntimeError, TypeError, AttributeError, IndexError, KeyError, AssertionError) as error:  # foreign code
        raise CannotRun(
            f"example: the model cannot run on {example.dtype} of shape {tuple(example.shape)}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if missing := [name for name in at if name not in seen.ends]:
        raise ValueError(f"at: module {missing[0]!r} is not called by {type(model).__name__}; cut somewhere else")
    return seen


def _leaves(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if not any(True for _ in module.children())}


def _tables(model: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    """Yield the stored buffers of modules that are made of modules, with their names in the model."""
    for name, module in model.named_modules():
        if any(True for _ in module.children()):
            for own, buffer in module._buffers.items():
                if own not in module._non_persistent_buffers_set:
                    yield f"{name}.{own}".lstrip("."), buffer


def _place(leaf: nn.Module, name: str, owners: Mapping[nn.Parameter, int], seen: _Seen) -> int | None:
    """Return the number of the stretch that a layer belongs to: that of its parameters, else the first to call it."""
    return next((owners[each] for each in leaf.parameters() if each in owners), seen.called.get(name))


def _last_layer(model: nn.Module, ends: Sequence[str]) -> str:
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in ends]
    return layers[-1] if layers else "head"


def _tell_left_out(names: Sequence[str]) -> None:
    if names:
        warnings.warn(
            f"no block's output depends on {len(names)} parameters, which are not trained: {', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}",
            UserWarning,
            stacklevel=3,
        )
