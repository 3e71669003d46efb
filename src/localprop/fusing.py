"""Run a block with fused functions in place of the chains of layers that have one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from localprop.functional.fused import Convolution, MaxPool, conv_norm_relu_pool, norm_linear


def run_fused(block: nn.Module, x: Tensor) -> Tensor:
    """Compute block(x) for one backward pass, with these chains of an `nn.Sequential` as one function each.

    - Conv2d -> BatchNorm2d -> ReLU, and a MaxPool2d behind it, in training mode: see `conv_norm_relu_pool`.
    - LayerNorm -> Linear, where x needs no gradient: see `norm_linear`.
    - Under autocast neither, but ReLU -> MaxPool2d the other way round: the same values from a smaller map.

    A layer of another class, with hooks, or with settings that the functions do not have runs by itself.

    Args:
        block: Any module.
        x: Its input.
    """
    if not _is_chain(block) or not torch.is_grad_enabled():
        out: Tensor = block(x)
        return out
    chains = (_relu_pool,) if torch.is_autocast_enabled(x.device.type) else (_conv_chain, _norm_linear)
    layers = list(block.children())
    while layers:
        found = next(filter(None, (chain(layers, x) for chain in chains)), None)
        x, used = found or (run_fused(layers[0], x), 1)
        del layers[:used]
    return x


def _conv_chain(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, int] | None:
    """Run a convolution, normalisation, ReLU and pooling, if the layers begin so; also says how many they were."""
    if not _begin_with(layers, nn.Conv2d, nn.BatchNorm2d, nn.ReLU):
        return None
    conv, norm = layers[:2]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    if (
        not (norm.training and norm.affine)
        or norm.momentum is None
        or conv.padding_mode != "zeros"
        or isinstance(conv.padding, str)
        or x.dim() != 4
        or len(x) < 2  # one value a channel cannot be normalised, which BatchNorm2d says best
    ):
        return None
    pool, used = None, 3
    if _begin_with(layers[3:], nn.MaxPool2d):
        pooling = layers[3]
        assert isinstance(pooling, nn.MaxPool2d)
        if not pooling.return_indices:
            kernel, stride, padding, dilation = map(
                _pair, (pooling.kernel_size, pooling.stride, pooling.padding, pooling.dilation)
            )
            pool, used = MaxPool(kernel, stride, padding, dilation, pooling.ceil_mode), 4
    h, mean, var = conv_norm_relu_pool(
        x,
        conv.weight,
        conv.bias,
        norm.weight,
        norm.bias,
        eps=norm.eps,
        convolution=Convolution(_pair(conv.stride), _pair(conv.padding), _pair(conv.dilation), conv.groups),
        pool=pool,
    )
    if norm.track_running_stats:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var, norm.momentum)
    return h, used


def _norm_linear(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, int] | None:
    """Run a layer norm and a linear layer, if the layers begin so; also says how many they were."""
    if not _begin_with(layers, nn.LayerNorm, nn.Linear) or x.requires_grad or x.dim() != 2:
        return None
    norm, linear = layers[:2]
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(linear, nn.Linear)
    if norm.weight is None or norm.bias is None or norm.normalized_shape != x.shape[1:]:
        return None
    return norm_linear(x, norm.weight, norm.bias, linear.weight, linear.bias, eps=norm.eps), 2


def _relu_pool(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, int] | None:
    """Run a ReLU and a pooling the other way round, if the layers begin so: maximum and ReLU commute."""
    if not _begin_with(layers, nn.ReLU, nn.MaxPool2d):
        return None
    relu, pool = layers[:2]
    out: Tensor = relu(pool(x))
    return out, 2


def _is_chain(block: nn.Module) -> bool:
    return isinstance(block, nn.Sequential) and type(block).forward is nn.Sequential.forward and not _has_hooks(block)


def _begin_with(layers: Sequence[nn.Module], *classes: type[nn.Module]) -> bool:
    """Tell whether the first layers are of exactly these classes, with nothing attached to them."""
    return len(layers) >= len(classes) and all(
        type(layer) is wanted and not _has_hooks(layer) for layer, wanted in zip(layers, classes, strict=False)
    )


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
