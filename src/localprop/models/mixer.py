"""The MLP-Mixer on small patches."""

from __future__ import annotations

from torch import Tensor, nn

from localprop.models.parts import check_settings, scaled
from localprop.models.tokens import PatchEmbedding, check_stack, count_patches, token_classifier
from localprop.network import LocalNetwork


class MixerBlock(nn.Module):
    """Mix tokens, then channels: u = x + f(LN(x)^T)^T and y = u + g(LN(u)), with MLPs f and g of one hidden layer.

    Args:
        num_tokens: K.
        hidden: D.
        token_width: Hidden width of f.
        channel_width: Hidden width of g.
        dropout: Probability behind both layers of f and of g.

    Shape: (N, K, D) to (N, K, D).

    Cost: 4 D + 2 K token_width + token_width + K + 2 D channel_width + channel_width + D parameters.
    """

    def __init__(self, num_tokens: int, hidden: int, *, token_width: int, channel_width: int, dropout: float) -> None:
        super().__init__()
        self.token_norm, self.channel_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.tokens = _mlp(num_tokens, token_width, dropout)
        self.channels = _mlp(hidden, channel_width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        x = x + self.tokens(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.channels(self.channel_norm(x))
        return mixed


def mixer(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    depth: int = 6,
    hidden: int = 512,
    patch: int = 4,
    width: float = 1.0,
    dropout: float = 0.0,
) -> LocalNetwork:
    """Build patches as tokens, `depth` blocks that mix tokens and channels, layer norm, mean and a linear classifier.

    MLPs have GELU; that over tokens is D / 2 wide, that over channels 4 D.

    Args:
        image_shape: (C, H, W); patches must cover it.
        num_classes: Z.
        depth: Mixing blocks, each a block; the first one holds the embedding of patches.
        hidden: D, the width of a token; at least 2.
        patch: Pixels a side of a patch.
        width: Factor of D.
        dropout: Probability inside the MLPs.

    Returns:
        `depth` blocks with tokens as outputs, and the classifier.

    Cost: 12,840,330 parameters on 3x32x32 and 10 classes.

    Raises:
        ValueError: A setting out of its range, or patches that do not cover the image.

    Note: Choi et al. publish width, depth and patch size; the widths of the MLPs are those of Tolstikhin et al.

    References: Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", NeurIPS 2021, arXiv:2105.01601;
        trained module by module by Choi et al., ICLR 2024.
    """
    check_settings(image_shape, num_classes, width=width, dropout=dropout)
    check_stack(depth=depth, hidden=hidden)
    num_tokens, size = count_patches(image_shape, patch), scaled(hidden, width)
    token_width = max(1, size // 2)
    blocks: list[nn.Module] = [
        MixerBlock(num_tokens, size, token_width=token_width, channel_width=4 * size, dropout=dropout)
        for _ in range(depth)
    ]
    blocks[0] = nn.Sequential(PatchEmbedding(image_shape[0], size, patch), blocks[0])
    names = [*(f"block{i + 1}" for i in range(depth)), "classifier"]
    return LocalNetwork([*blocks, token_classifier(size, num_classes)], names, "mixer")


def _mlp(size: int, hidden: int, dropout: float) -> nn.Sequential:
    drop = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), *drop, nn.Linear(hidden, size), *drop)
