"""The vision transformer on small patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from localprop.models.parts import check_settings, scaled
from localprop.models.tokens import PatchEmbedding, Pooling, check_stack, count_patches, token_classifier
from localprop.network import LocalNetwork


class Positions(nn.Module):
    """Put a class token before the tokens if there is one, and add to each what says where it stands.

    Args:
        num_tokens: K, of the image alone.
        hidden: D.
        class_token: Whether there is a class token.

    Shape: (N, K, D) to (N, K, D), or (N, K + 1, D) with a class token.

    Cost: K D parameters, or (K + 2) D.

    Raises:
        ValueError: In `forward`, there are more tokens than positions, or fewer.
    """

    def __init__(self, num_tokens: int, hidden: int, *, class_token: bool) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, hidden)) if class_token else None
        self.positions = nn.Parameter(0.02 * torch.randn(1, num_tokens + class_token, hidden))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens with their positions.

        Raises:
            ValueError: There are more tokens than positions, or fewer.
        """
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], 1)
        if tokens.shape[1] != self.positions.shape[1]:  # a single token or position would be broadcast
            raise ValueError(f"x: positions are learned for {self.positions.shape[1]} tokens, got {tokens.shape[1]}")
        return tokens + self.positions


def vit(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    depth: int = 6,
    hidden: int = 512,
    heads: int = 8,
    patch: int = 4,
    pooling: Pooling = "mean",
    width: float = 1.0,
    dropout: float = 0.0,
) -> LocalNetwork:
    """Build patches as tokens, `depth` layers of attention and MLP, layer norm, pooling and a linear classifier.

    Layers normalise what they read ("pre-norm"); the MLP is four times as wide as a token, with GELU.

    Args:
        image_shape: (C, H, W); patches must cover it.
        num_classes: Z.
        depth: Layers, each a block; the first one holds the embedding of patches and positions.
        hidden: D, the width of a token.
        heads: Attention heads; must divide the width of a token.
        patch: Pixels a side of a patch.
        pooling: What the classifier reads: the "mean" of all tokens, as local objectives do, or the "class" token,
            which stands before the others and is one of those that local objectives average.
        width: Factor of D.
        dropout: Probability inside the layers, on attention weights too.

    Returns:
        `depth` blocks with tokens as outputs, and the classifier.

    Cost: 18,978,314 parameters on 3x32x32 and 10 classes.

    Raises:
        ValueError: A setting out of its range, or patches that do not cover the image.

    Note: Choi et al. publish width, depth and patch size; heads, MLP and pooling are not, here they are usual.

    References: Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR
        2021, arXiv:2010.11929; trained module by module by Choi et al., ICLR 2024.
    """
    check_settings(image_shape, num_classes, width=width, dropout=dropout)
    check_stack(depth=depth, hidden=hidden, heads=heads)
    num_tokens, size = count_patches(image_shape, patch), scaled(hidden, width)
    if size % heads:
        raise ValueError(f"heads: must divide the width {size} of a token, got {heads}; choose another hidden or width")
    if pooling not in ("mean", "class"):
        raise ValueError(f"pooling: must be 'mean' or 'class', got {pooling!r}")
    layers: list[nn.Module] = [
        nn.TransformerEncoderLayer(
            size, heads, 4 * size, dropout=dropout, activation="gelu", batch_first=True, norm_first=True
        )
        for _ in range(depth)
    ]
    embedding = PatchEmbedding(image_shape[0], size, patch)
    layers[0] = nn.Sequential(embedding, Positions(num_tokens, size, class_token=pooling == "class"), layers[0])
    names = [*(f"block{i + 1}" for i in range(depth)), "classifier"]
    return LocalNetwork([*layers, token_classifier(size, num_classes, pooling)], names, "vit")
