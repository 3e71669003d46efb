"""Run a block with fused functions in place of the chains of layers that have one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.functional.convolution import Convolution, MaxPool
from localprop.functional.fused import conv_norm_relu_pool, norm_linear
from localprop.functional.precision import under_autocast


def run_fused(block: nn.Module, x: Tensor) -> Tensor:
    """Compute block(x) for one backward pass, with these chains of an `nn.Sequential` as one function each.

    - Conv2d -> BatchNorm2d -> ReLU, and a MaxPool2d behind it, in training mode: see `conv_norm_relu_pool`. Under
      autocast on other devices than a CPU, or if the windows of the pooling overlap, the layers run by themselves, but
      the bias that the normalisation takes away again is left out, and the pooling comes before the ReLU.
    - LayerNorm -> Linear, where x needs no gradient and without autocast: see `norm_linear`.

    A layer of another class, with hooks, or with settings that the functions do not have runs by itself.

    Args:
        block: Any module.
        x: Its input.
    """
    if not _is_chain(block) or not torch.is_grad_enabled():
        out: Tensor = block(x)
        return out
    layers = list(block.children())
    while layers:
        x, used = _conv_chain(layers, x) or _norm_linear(layers, x) or (run_fused(layers[0], x), 1)
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
        assert isinstance(layers[3], nn.MaxPool2d)
        if not layers[3].return_indices:
            pool, used = layers[3], 4
    if under_autocast(x):
        half = torch.get_autocast_dtype(x.device.type)
        if not _runs_in_half(conv, norm, pool, x, half):
            return _conv_chain_by_layers(conv, norm, pool, x), used
        x = x.to(half)
    elif x.dtype not in (torch.float32, torch.float64):  # statistics of half precision lose too many digits
        return None
    if x.device.type not in ("cpu", "cuda"):  # where PyTorch has the kernels that the function is made of
        return None
    h, mean, var = conv_norm_relu_pool(
        x,
        conv.weight,
        conv.bias,
        norm.weight,
        norm.bias,
        eps=norm.eps,
        convolution=Convolution(_pair(conv.stride), _pair(conv.padding), _pair(conv.dilation), conv.groups),
        pool=None if pool is None else _moves(pool),
    )
    if norm.track_running_stats:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var, norm.momentum)
    return h, used


def _conv_chain_by_layers(conv: nn.Conv2d, norm: nn.BatchNorm2d, pool: nn.MaxPool2d | None, x: Tensor) -> Tensor:
    y = F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    beta: Tensor = norm.bias
    mean, var, momentum = None, None, norm.momentum or 0.0
    if norm.track_running_stats:
        assert norm.running_mean is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        mean, var = norm.running_mean.clone(), norm.running_var  # autograd keeps the mean that goes in here
    if conv.bias is not None:
        beta = torch.add(beta, conv.bias, alpha=0.0)  # so that its gradient is 0, not missing
    h = F.batch_norm(y, mean, var, norm.weight, beta, training=True, momentum=momentum, eps=norm.eps)
    if mean is not None and norm.running_mean is not None:
        norm.running_mean.copy_(mean if conv.bias is None else mean + momentum * conv.bias.detach())
    h = h if pool is None else pool(h)
    return h.relu_()


def _norm_linear(layers: Sequence[nn.Module], x: Tensor) -> tuple[Tensor, int] | None:
    """Run a layer norm and a linear layer, if the layers begin so; also says how many they were."""
    if not _begin_with(layers, nn.LayerNorm, nn.Linear) or x.requires_grad or x.dim() != 2:
        return None
    if under_autocast(x):
        return None
    norm, linear = layers[:2]
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(linear, nn.Linear)
    if norm.weight is None or norm.bias is None or norm.normalized_shape != x.shape[1:]:
        return None
    return norm_linear(x, norm.weight, norm.bias, linear.weight, linear.bias, eps=norm.eps), 2


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


def _moves(pool: nn.MaxPool2d) -> MaxPool:
    sizes = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    kernel, stride, padding, dilation = map(_pair, sizes)
    return MaxPool(kernel, stride, padding, dilation, pool.ceil_mode)


def _runs_in_half(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, pool: nn.MaxPool2d | None, x: Tensor, half: torch.dtype
) -> bool:
    """Tell whether `conv_norm_relu_pool` can stand for layers under autocast."""
    if not x.is_cpu or norm.weight.dtype != torch.float32 or not {x.dtype, conv.weight.dtype} <= {half, torch.float32}:
        return False
    moves = None if pool is None else _moves(pool)
    return moves is None or all(
        stride >= dilation * (kernel - 1) + 1  # windows that do not overlap
        for kernel, stride, dilation in zip(moves.kernel, moves.stride, moves.dilation, strict=True)
    )


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
