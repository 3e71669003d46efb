"""Find the axis of the channels of a tensor by watching the layers that made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

_CHANNELS_FIRST = {
    F.conv2d, F.conv_transpose2d, F.batch_norm, F.group_norm, F.instance_norm, F.max_pool2d, F.avg_pool2d,
    F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, F.pixel_shuffle, F.pixel_unshuffle,
    torch.conv2d, torch.batch_norm, torch.group_norm,
}  # fmt: skip
_CHANNELS_LAST = {F.linear, F.layer_norm, torch.layer_norm, torch._C._nn.linear}
_PERMUTATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    getattr(home, name): getattr(torch, name)
    for name in ("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims")
    for home in (torch, Tensor)
}


_RESHAPINGS = {Tensor.reshape, Tensor.view, torch.reshape, Tensor.flatten, torch.flatten, Tensor.unflatten}


class ChannelWatch(TorchFunctionMode):
    """Keep account of the axis that holds the channels of what is computed inside.

    A convolution or a batch normalisation puts them on axis 1, a linear layer or a layer normalisation on the last
    one, a permutation moves them, and what keeps the shape of a tensor, or the length of a last axis that holds them,
    keeps their axis.
    """

    def __init__(self) -> None:
        super().__init__()
        self._axes: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()

    def has_channels_last(self, h: Tensor) -> bool:
        """Tell whether `h` is a map (N, H, W, C); one of unknown origin is taken for (N, C, H, W)."""
        return h.dim() == 4 and self._axes.get(h) == 3

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of PyTorch and note where the channels of what it returns are."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.dim() > 2:
            axis = self._axis_of(func, args, kwargs, out)
            if axis is not None:
                self._axes[out] = axis
        return out

    def _axis_of(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
    ) -> int | None:
        last = out.dim() - 1
        if func in _CHANNELS_FIRST:
            return 1
        if func in _CHANNELS_LAST:
            return last
        known = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value in self._axes]
        if not known:
            return None
        if func in _PERMUTATIONS:
            return _moved(_PERMUTATIONS[func], known[0].dim(), args[1:], kwargs, self._axes[known[0]])
        if func in _RESHAPINGS and self._axes[known[0]] == known[0].dim() - 1:
            return last if out.shape[-1] == known[0].shape[-1] else None
        return next((self._axes[value] for value in known if value.shape == out.shape), None)


def _moved(
    permutation: Callable[..., Any], num_axes: int, args: tuple[Any, ...], kwargs: dict[str, Any], axis: int
) -> int:
    """Return where a permutation puts an axis: that of a tensor whose sides tell its axes apart."""
    sides = torch.empty(*range(2, num_axes + 2), device="meta")
    dims = (args,) if permutation is torch.permute and args and isinstance(args[0], int) else args
    kwargs = {name: value for name, value in kwargs.items() if name != "input"}
    return list(permutation(sides, *dims, **kwargs).shape).index(sides.shape[axis])
