"""Networks on patch dictionaries: a stage names the nearest patches of its input and learns a linear map of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from localprop.functional.patches import nearest_patches, patch_filters
from localprop.functional.precision import full_precision
from localprop.models.parts import check_settings, scaled
from localprop.network import LocalNetwork

Classifier = Literal["linear", "hidden"]


class PatchCoding(nn.Module):
    """Code every window of a map by its nearest patches in a whitened dictionary; see `functional.patches`.

    Until `fit` is called the dictionary is noise.

    Args:
        channels: C of the map.
        patch_size: p.
        dictionary_size: D.
        neighbours: Q, 1 .. D - 1.

    Shape: (N, C, H, W) to (N, 2 D, H - p + 1, W - p + 1).

    Cost: D (C p^2 + 2) fixed numbers; per window D C p^2 products and two selections among D.
    """

    filters: Tensor
    offsets: Tensor
    half_norms: Tensor

    def __init__(self, channels: int, patch_size: int, dictionary_size: int, neighbours: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.neighbours = neighbours
        num_values = channels * patch_size**2
        patches, mean, whitener = (
            torch.randn(dictionary_size, num_values),
            torch.zeros(num_values),
            torch.eye(num_values),
        )
        filters, offsets, half_norms = patch_filters(patches, mean, whitener)
        self.register_buffer("filters", filters.view(dictionary_size, channels, patch_size, patch_size))
        self.register_buffer("offsets", offsets)
        self.register_buffer("half_norms", half_norms)

    def fit(self, dictionary: Tensor, mean: Tensor, whitener: Tensor) -> None:
        """Take a dictionary of flattened patches; see `patch_filters`."""
        filters, offsets, half_norms = patch_filters(dictionary, mean, whitener)
        self.filters.copy_(filters.view_as(self.filters))
        self.offsets.copy_(offsets)
        self.half_norms.copy_(half_norms)

    def forward(self, x: Tensor) -> Tensor:
        """Code the windows; nothing is differentiated."""
        with torch.no_grad(), full_precision(x):
            inputs = x.to(self.filters.dtype)
            return nearest_patches(inputs, self.filters, self.offsets, self.half_norms, self.neighbours)


def patches(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    stages: int = 1,
    patch_size: int = 6,
    neighbours: float = 0.4,
    classifier: Classifier = "linear",
    width: float = 1.0,
    dropout: float = 0.0,
) -> LocalNetwork:
    """Build stages of [patch coding, pooling, batch norm, 1x1 conv], the last one with the classifier.

    The first stage codes `patch_size` x `patch_size` patches by a dictionary of 2048, later ones 3x3 patches of the map
    before. The last stage is pooled 5x5 with stride 3, then to at most 6x6 positions; stages before it 3x3 with stride
    2. The 1x1 convolution leaves 128 channels; it is affine in the codes of the dictionary and of its negative.

    Args:
        image_shape: (C, H, W).
        num_classes: Z.
        stages: Stages, 1 or more; each is a block.
        patch_size: Pixels a side of a patch of the first stage.
        neighbours: Share Q / D of the dictionary that codes a window, in (0, 1).
        classifier: "linear", or "hidden": a 3x3 convolution to 2048 channels and a ReLU before it.
        width: Factor of the dictionary's size and of all layer widths.
        dropout: Probability before the classifier, and at the end of the stages before it.

    Cost: 578,698 parameters on 3x32x32 and 10 classes.

    Raises:
        ValueError: A setting out of its range, or an image too small for the stages.

    References: Thiry et al., "The Unreasonable Effectiveness of Patches in Deep Convolutional Kernels Methods",
        ICLR 2021, arXiv:2101.07528.
    """
    check_settings(image_shape, num_classes, width=width, dropout=dropout)
    if stages < 1 or patch_size < 1:
        raise ValueError(f"stages and patch_size: must be at least 1, got {stages} and {patch_size}")
    if not 0 < neighbours < 1:
        raise ValueError(f"neighbours: must be a share of the dictionary in (0, 1), got {neighbours}")
    if classifier not in ("linear", "hidden"):
        raise ValueError(f"classifier: must be 'linear' or 'hidden', got {classifier!r}")
    dictionary_size, out_channels = max(2, scaled(2048, width)), scaled(128, width)
    nearest = min(max(1, round(neighbours * dictionary_size)), dictionary_size - 1)
    channels, *size = image_shape
    blocks: list[nn.Module] = []
    for stage in range(stages):
        side = patch_size if stage == 0 else 3
        if min(size) < side:
            raise ValueError(
                f"stages: stage {stage + 1} codes {side}x{side} patches, and its input is {size[0]} x {size[1]}; "
                "choose fewer stages, smaller patches or larger images"
            )
        size = [length - side + 1 for length in size]
        last = stage == stages - 1
        kernel = (min(5 if last else 3, size[0]), min(5 if last else 3, size[1]))
        stride = 3 if last else 2
        size = [_pooled(length, side, stride) for length, side in zip(size, kernel, strict=True)]
        size = [min(length, 6) for length in size] if last else size
        modules = [
            PatchCoding(channels, side, dictionary_size, nearest),
            nn.AvgPool2d(kernel, stride, ceil_mode=True),
            nn.AdaptiveAvgPool2d((size[0], size[1])),
            nn.BatchNorm2d(2 * dictionary_size),
            nn.Conv2d(2 * dictionary_size, out_channels, 1),
        ]
        channels = out_channels
        blocks.append(nn.Sequential(*modules, *([nn.Dropout2d(dropout)] if dropout else [])))
    head: list[nn.Module] = []
    if classifier == "hidden":
        hidden = scaled(2048, width)
        head += [nn.Conv2d(channels, hidden, 3, padding=1), nn.ReLU(inplace=True)]
        channels = hidden
    final = blocks[-1]
    assert isinstance(final, nn.Sequential)
    blocks[-1] = nn.Sequential(*final, *head, nn.Flatten(), nn.Linear(channels * size[0] * size[1], num_classes))
    return LocalNetwork(blocks, [f"stage{stage + 1}" for stage in range(stages)])


def _pooled(length: int, kernel: int, stride: int) -> int:
    """Return the positions that ceil-mode pooling leaves."""
    positions = -(-(length - kernel) // stride) + 1
    return positions - 1 if (positions - 1) * stride >= length else positions
