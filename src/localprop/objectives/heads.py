"""Small trained heads between a block and its loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from localprop.functional.pooling import average_positions, pool_to_budget


class PooledLinear(nn.Module):
    """Map features to a vector: average pooling to a feature budget, flattening, one linear layer.

    Args:
        shape: One sample of what is scored: (C, H, W), (K, C) or (D,).
        num_outputs: Length of the vector; at least 1.
        feature_budget: Most features that the linear layer reads; at least 1.

    Shape: h (N, *shape), result (N, num_outputs), in at least float32.

    Cost: num_outputs (P + 1) parameters, P <= max(feature_budget, C).

    Raises:
        ValueError: The budget is below 1.
    """

    def __init__(self, shape: tuple[int, ...], num_outputs: int, *, feature_budget: int) -> None:
        super().__init__()
        if feature_budget < 1:
            raise ValueError(f"feature_budget: must be at least 1, got {feature_budget}")
        self.feature_budget = feature_budget
        self.linear = nn.Linear(pool_to_budget(torch.zeros(1, *shape), feature_budget).shape[1], num_outputs)

    def forward(self, h: Tensor) -> Tensor:
        """Map `h`."""
        features = pool_to_budget(h, self.feature_budget)
        with torch.autocast(h.device.type, enabled=False):
            output: Tensor = self.linear(features)
            return output


class ConvolutionalHead(nn.Module):
    """Map features to a vector: 3x3 convolutions, global averaging, linear layers with ReLU between them.

    A convolution doubles the channels and halves the map while there are fewer than `widest` channels, and keeps both
    after that; batch normalisation and ReLU follow it. Tokens and flat outputs meet the linear layers alone.

    Args:
        shape: One sample of what is scored: (C, H, W), (K, C) or (D,).
        num_outputs: Length of the vector; at least 1.
        num_convolutions: Number of convolutions, 0 or more.
        num_linear: Number of linear layers, 1 or more.
        widest: Most channels that a convolution makes of fewer.
        hidden_width: Width between the linear layers.

    Shape: h (N, *shape), result (N, num_outputs), in at least float32.

    Note: Published for 16, 32 and 64 channels as 16 -> 32, 32 -> 64 with stride 2 and 64 -> 64 with stride 1; `widest`
        takes the place of 64. What a second convolution does is not, here it follows the same rule.

    References: Wang et al., "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training", ICLR 2021,
        arXiv:2101.10832.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_outputs: int,
        *,
        num_convolutions: int,
        num_linear: int,
        widest: int,
        hidden_width: int = 128,
    ) -> None:
        super().__init__()
        self.channel_axis = 1 if len(shape) == 3 else -1
        width = shape[0] if len(shape) == 3 else shape[-1]
        convolutions: list[nn.Module] = []
        for _ in range(num_convolutions if len(shape) == 3 else 0):
            wider = max(width, min(2 * width, widest))
            stride = 2 if wider > width else 1
            convolutions += [nn.Conv2d(width, wider, 3, stride, padding=1, bias=False), nn.BatchNorm2d(wider)]
            convolutions.append(nn.ReLU(inplace=True))
            width = wider
        self.convolutions = nn.Sequential(*convolutions)
        linear: list[nn.Module] = []
        for _ in range(num_linear - 1):
            linear += [nn.Linear(width, hidden_width), nn.ReLU(inplace=True)]
            width = hidden_width
        self.linear = nn.Sequential(*linear, nn.Linear(width, num_outputs))

    def forward(self, h: Tensor) -> Tensor:
        """Map `h`."""
        features = average_positions(self.convolutions(h), self.channel_axis)
        with torch.autocast(h.device.type, enabled=False):
            output: Tensor = self.linear(features)
            return output
