"""Where the channels stand in a block's output: told by the block, or read off its last layer where that is certain."""

from __future__ import annotations

from torch import nn

_CHANNELS_FIRST = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.GroupNorm)
_WIDTHS = ("out_channels", "num_features", "num_channels")


def channel_axis(block: nn.Module, shape: tuple[int, ...], name: str, *, seen_last: bool = False) -> int:
    """Return the axis of the channels in one sample of a block's output: 0 for the first, -1 for the last.

    What the block's integer attribute `channel_axis` says goes before all. Otherwise three axes and more are maps
    (C, H, W), or (H, W, C) where that was seen, and two are tokens (K, C) unless the block ends in an `nn.Conv1d` or
    its normalisation, which give sequences (C, L).

    Args:
        block: The block.
        shape: One sample of its output, or of its activation.
        name: The block's name, for messages.
        seen_last: Whether the block was seen to compute a map with its channels last; see `ChannelWatch`.

    Raises:
        ValueError: The attribute is neither 0 nor -1; or the block has layers of both kinds, and their order is not
            known.
    """
    told = getattr(block, "channel_axis", None)
    if told not in (None, 0, -1):
        raise ValueError(
            f"channel_axis: block {name!r} must have its channels on the first axis of a sample, 0, or on the last, "
            f"-1, got {told!r}"
        )
    if len(shape) < 2:
        return 0
    if told is not None:
        return int(told)
    if len(shape) > 2:
        return -1 if seen_last else 0
    return -1 if not _ends_in_convolution(block, shape, name) else 0


def _ends_in_convolution(block: nn.Module, shape: tuple[int, ...], name: str) -> bool:
    """Tell whether the last layer with parameters puts channels first, in an output of two axes a sample."""
    while isinstance(block, nn.Sequential) and type(block).forward is nn.Sequential.forward:
        trained = [child for child in block if any(True for _ in child.parameters())]
        if not trained:
            return False
        block = trained[-1]
    layers = [module for module in block.modules() if any(True for _ in module.parameters(recurse=False))]
    first = [isinstance(layer, _CHANNELS_FIRST) for layer in layers]
    if not any(first):
        return False
    widths = {getattr(layer, width, None) for layer in layers for width in _WIDTHS}
    if shape[0] not in widths:  # the output was turned since
        return False
    if not all(first):
        raise ValueError(
            f"channel_axis: block {name!r} gives samples of shape {shape} and has layers with their channels first and "
            "last; say where they end up by an attribute: block.channel_axis = 0 for (C, L), -1 for (K, C)"
        )
    return True
