"""Where the channels of a tensor are, found by watching the layers that made it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.watch import ChannelWatch

CONV, LINEAR, NORM = nn.Conv2d(3, 5, 1), nn.Linear(3, 5), nn.LayerNorm(5)


def windows(h: Tensor) -> Tensor:
    """Cut a map (N, H, W, C) into windows of tokens, and put it together again, as a Swin does."""
    tokens = h.view(-1, 2, 2, 2, 2, 5).transpose(2, 3).reshape(-1, 4, 5)
    return NORM(tokens).reshape(-1, 2, 2, 2, 2, 5).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 5)


@pytest.mark.parametrize(
    ("compute", "is_last"),
    [
        (lambda x: x, False),
        (lambda x: CONV(x), False),
        (lambda x: F.relu(CONV(x)) + 1, False),
        (lambda x: CONV(x).permute(0, 2, 3, 1), True),
        (lambda x: torch.permute(CONV(x), (0, 2, 3, 1)), True),
        (lambda x: torch.permute(CONV(x), dims=(0, 2, 3, 1)), True),
        (lambda x: CONV(x).transpose(1, 3), True),
        (lambda x: CONV(x).transpose(1, 3).transpose(-1, 1), False),
        (lambda x: CONV(x).movedim(1, -1), True),
        (lambda x: LINEAR(x.permute(0, 2, 3, 1)), True),
        (lambda x: LINEAR(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), False),
        (lambda x: NORM(LINEAR(x.permute(0, 2, 3, 1))).mul(2.0).roll((1, 1), (1, 2)), True),
        (lambda x: windows(LINEAR(x.permute(0, 2, 3, 1))), True),
        (lambda x: LINEAR(x.flatten(2).transpose(1, 2)).unflatten(1, (4, 4)), True),
        (lambda x: LINEAR(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(-1, 5, 4, 4), False),
        (lambda x: F.max_pool2d(CONV(x), 2), False),
        (lambda x: LINEAR(x.flatten(2).transpose(1, 2)), False),  # tokens are no map
    ],
)
def test_the_axis_of_the_channels_is_known(compute: Callable[[Tensor], Tensor], is_last: bool):
    with torch.no_grad(), ChannelWatch() as watch:
        assert watch.has_channels_last(compute(torch.randn(2, 3, 4, 4))) == is_last
