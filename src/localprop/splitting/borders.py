"""Make the borders between pieces fit what the rest of localprop expects of a block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.conv import _ConvNd

from localprop.network import in_mode
from localprop.watch import ChannelWatch

_USUAL_SIDE = 224


def settle(blocks: Sequence[fx.GraphModule], example: Tensor) -> None:
    """Run an example through the blocks, and change what stands at their borders where it has to be.

    - A map with its channels last is handed on as a view with its channels first, (N, C, H, W), and turned back by the
      next block.
    - A block that would overwrite its input works on a copy: the block before has handed the same memory out.

    Args:
        blocks: The blocks in order.
        example: Inputs, shape (N, ...).

    Raises:
        ValueError: The blocks cannot run on the example.
    """
    # Nothing is computed: shapes, layers and versions tell all, and a large model would take seconds.
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as fakes:
        h = fakes.from_tensor(example)
        for number, block in enumerate(blocks):
            version = h._version
            given = h
            with in_mode(block, training=False), ChannelWatch() as watch:
                h = block(given)
            if given._version != version:
                _copy_input(block)
            if number < len(blocks) - 1 and watch.has_channels_last(h):
                _permute_output(block, (0, 3, 1, 2))
                _permute_input(blocks[number + 1], (0, 2, 3, 1))
                h = h.permute(0, 3, 1, 2)


def usual_example(model: nn.Module) -> Tensor | None:
    """Make an input of the size that the model declares, or of a usual one; None if its first layer does not tell.

    timm's models declare theirs as `patch_embed.img_size` or `pretrained_cfg["input_size"]`, torchvision's as
    `image_size`.
    """
    layer = next((module for module in model.modules() if isinstance(module, _ConvNd | nn.Linear)), None)
    if layer is None:
        return None
    if isinstance(layer, nn.Linear):
        return layer.weight.new_zeros(1, layer.in_features)
    sides = _declared_sides(model) or [_USUAL_SIDE] * (layer.weight.dim() - 2)
    return layer.weight.new_zeros(1, layer.in_channels, *sides)


def _declared_sides(model: nn.Module) -> list[int] | None:
    found = (
        getattr(getattr(model, "patch_embed", getattr(model, "stem", None)), "img_size", None)
        or getattr(model, "image_size", None)
        or (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (0, None))[1:]
    )
    sides = [found, found] if isinstance(found, int) else list(found)
    return sides if len(sides) == 2 and all(isinstance(side, int) for side in sides) else None


def _copy_input(block: fx.GraphModule) -> None:
    [x] = block.graph.find_nodes(op="placeholder")
    with block.graph.inserting_after(x):
        copied = block.graph.call_method("clone", (x,))
    x.replace_all_uses_with(copied, delete_user_cb=lambda user: user is not copied)
    block.recompile()


def _permute_input(block: fx.GraphModule, dims: tuple[int, ...]) -> None:
    [x] = block.graph.find_nodes(op="placeholder")
    with block.graph.inserting_after(x):
        turned = block.graph.call_method("permute", (x, *dims))
    x.replace_all_uses_with(turned, delete_user_cb=lambda user: user is not turned)
    block.recompile()


def _permute_output(block: fx.GraphModule, dims: tuple[int, ...]) -> None:
    [output] = block.graph.find_nodes(op="output")
    [h] = output.all_input_nodes
    with block.graph.inserting_before(output):
        output.args = (block.graph.call_method("permute", (h, *dims)),)
    block.recompile()
