"""What networks on tokens share: patches of an image as tokens, and tokens as one vector."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from localprop.functional.pooling import average_positions

Pooling = Literal["mean", "class"]


class PatchEmbedding(nn.Module):
    """Map the patches of an image to tokens: z_k = W patch_k + b, row by row.

    Args:
        channels: C of the image.
        hidden: D, the width of a token.
        patch: P, pixels a side of a patch.

    Shape: (N, C, H, W) to (N, K, D), K = (H / P) (W / P).

    Cost: D (C P^2 + 1) parameters.
    """

    def __init__(self, channels: int, hidden: int, patch: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, hidden, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens."""
        tokens: Tensor = self.projection(x).flatten(2).transpose(1, 2)
        return tokens


class TokenPooling(nn.Module):
    """Make one vector of tokens: their average, or the first of them.

    Args:
        pooling: "mean", or "class" for the class token.

    Shape: (N, K, D) to (N, D).
    """

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, h: Tensor) -> Tensor:
        """Return the vectors."""
        return average_positions(h, channel_axis=-1) if self.pooling == "mean" else h[:, 0]


def token_classifier(hidden: int, num_classes: int, pooling: Pooling = "mean") -> nn.Sequential:
    """Build layer norm -> one vector of the tokens -> linear classifier."""
    return nn.Sequential(nn.LayerNorm(hidden), TokenPooling(pooling), nn.Linear(hidden, num_classes))


def count_patches(image_shape: tuple[int, int, int], patch: int) -> int:
    """Count the patches of an image.

    Raises:
        ValueError: They do not cover it.
    """
    _, height, width = image_shape
    if patch < 1 or height % patch or width % patch:
        raise ValueError(
            f"patch: must divide the sides of images of {height} x {width} pixels, got {patch}; choose another, or "
            "images of another size"
        )
    return (height // patch) * (width // patch)


def check_stack(**counts: int) -> None:
    """Refuse settings that must be at least 1 and are not.

    Raises:
        ValueError: Names the first of them.
    """
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}: must be at least 1, got {count}")
