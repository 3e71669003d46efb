"""How memory grows with depth: networks of more and more residual blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop import methods
from localprop.bench.live import LiveTensors
from localprop.models.parts import pooled_classifier
from localprop.models.resnet import ResidualBlock
from localprop.network import LocalNetwork

CHANNELS, SIDE, BATCH_SIZE, NUM_CLASSES = 16, 32, 128, 10


def residual_network(blocks: int) -> LocalNetwork:
    """Build a 3x3 convolution to 16 channels, residual blocks of that width, and a linear classifier."""
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU())
    residual = [ResidualBlock(CHANNELS, CHANNELS) for _ in range(blocks)]
    net = LocalNetwork([stem, *residual, pooled_classifier(CHANNELS, NUM_CLASSES)])
    net.to(memory_format=torch.channels_last)
    return net


def depth_rows(names: Sequence[str], depths: Sequence[int], *, backprop_up_to: int) -> Iterator[dict[str, Any]]:
    """Measure one training step (AdamW) of each method at each depth, by the bytes of living tensors.

    Args:
        names: Methods; "bp" is backprop written by hand.
        depths: Numbers of residual blocks.
        backprop_up_to: The largest depth that backprop is measured at. Beyond it its bytes are extrapolated by the
            straight line through its two largest measured depths, and marked so.

    Yields:
        Rows `{method, blocks, activation_bytes, total_bytes, extrapolated}`: the most bytes alive at once apart from
        weights, gradients and the optimisers' state; and all bytes, weights and batch included.
    """
    for name in names:
        measured: list[dict[str, Any]] = []
        for blocks in sorted(depths):
            if name == "bp" and blocks > backprop_up_to and len(measured) > 1:
                yield {"method": name, "blocks": blocks, **_extrapolated(measured, blocks), "extrapolated": True}
                continue
            net = residual_network(blocks)
            found = _backprop_bytes(net) if name == "bp" else _local_bytes(name, net)
            measured.append({"method": name, "blocks": blocks, **found, "extrapolated": False})
            yield measured[-1]


def _local_bytes(name: str, net: LocalNetwork) -> dict[str, int]:
    x, y = _batch()
    rule = methods.build(name, net, num_classes=NUM_CLASSES, example=x[:2])
    with LiveTensors([*rule.parameters(), *rule.buffers(), x, y]) as live:
        optimizers = {key: torch.optim.AdamW(group) for key, group in rule.parameter_groups().items()}
        rule.begin(0)
        for step in rule.steps(x, y):
            optimizer = optimizers[step.key]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            live.kept_bytes += _state_bytes(optimizer)
    return _row(live, [*rule.parameters(), *rule.buffers(), x, y])


def _backprop_bytes(net: LocalNetwork) -> dict[str, int]:
    x, y = _batch()
    model = nn.Sequential(*net.blocks)
    with LiveTensors([*model.parameters(), *model.buffers(), x, y]) as live:
        optimizer = torch.optim.AdamW(model.parameters())
        loss = F.cross_entropy(model(x), y)
        torch.autograd.backward(loss)
        live.kept_bytes += sum(_num_bytes(p.grad) for p in model.parameters() if p.grad is not None)
        optimizer.step()
    return _row(live, [*model.parameters(), *model.buffers(), x, y])


def _row(live: LiveTensors, before: Sequence[Tensor]) -> dict[str, int]:
    return {
        "activation_bytes": live.peak_beyond_kept_bytes,
        "total_bytes": live.peak_bytes + sum(map(_num_bytes, before)),
    }


def _extrapolated(measured: Sequence[dict[str, Any]], blocks: int) -> dict[str, int]:
    first, last = measured[-2:]
    share = (blocks - last["blocks"]) / (last["blocks"] - first["blocks"])
    return {key: round(last[key] + share * (last[key] - first[key])) for key in ("activation_bytes", "total_bytes")}


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH_SIZE, 3, SIDE, SIDE, generator=generator).to(memory_format=torch.channels_last)
    return x, torch.randint(NUM_CLASSES, (BATCH_SIZE,), generator=generator)


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return sum(map(_num_bytes, tensors))


def _num_bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
