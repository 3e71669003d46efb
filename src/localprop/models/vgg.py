"""Networks of the VGG kind: plain stacks of 3x3 convolutions, each a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from localprop.models.parts import (
    Nonlinearity,
    check_settings,
    conv_block,
    hidden_block,
    named,
    pooled_classifier,
    scaled,
)
from localprop.network import LocalNetwork

Plan = Sequence[int | str]
"""Channels of each convolution; "M" halves the map after the one before it."""

VGG8B: Plan = (128, 256, "M", 256, 512, "M", 512, "M", 512, "M")
VGG11B: Plan = (128, 128, 128, 256, "M", 256, 512, "M", 512, 512, "M", 512, "M")
VGG11: Plan = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
VGG11C: Plan = (64, "M", 128, "M", 256, 256, "M", 512, 512, 512, 512)
VGG13: Plan = (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")
VGG16: Plan = (64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M")
VGG19: Plan = (64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M")


def _with_hidden_layer(name: str, plan: Plan, title: str, notes: str) -> Callable[..., LocalNetwork]:
    least = 2 ** plan.count("M")

    def build(
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: float = 1.0,
        hidden: int | None = None,
        dropout: float = 0.0,
        nonlinearity: Nonlinearity = "relu",
    ) -> LocalNetwork:
        """Build {title}, then a linear layer of 1024 and the classifier.

        Args:
            image_shape: (C, H, W); at least {least} x {least} pixels. Above 64 pixels the first convolution is 7x7 with
                stride 2.
            num_classes: Z.
            width: Factor of all layer widths.
            hidden: Width of the hidden linear layer, an even number; default 1024 times `width`.
            dropout: Probability at the end of each hidden block.
            nonlinearity: Of every hidden block.

        Returns:
            {blocks} blocks. The hidden linear block is averaged over K = 2 chunks by local objectives.

        Raises:
            ValueError: A setting out of its range, or an image smaller than {least} pixels.

        {notes}
        """
        check_settings(image_shape, num_classes, width=width, dropout=dropout)
        if hidden is None:
            hidden = 2 * scaled(512, width)
        if hidden < 2 or hidden % 2:
            raise ValueError(
                f"hidden: must be an even number, for local objectives average it over 2 pieces, got {hidden}"
            )
        size = list(image_shape[1:])
        if min(size) < least:
            raise ValueError(f"image_shape: {name} needs images of {least} pixels a side or more, got {tuple(size)}")
        large = min(size) > 64
        blocks, channels = _convolutions(plan, image_shape, width, dropout, nonlinearity, large=large)
        if large:
            size = [(side + 1) // 2 for side in size]
        size = [side // least for side in size]
        inputs = channels * size[0] * size[1]
        blocks.append(hidden_block(inputs, hidden, chunks=2, dropout=dropout, nonlinearity=nonlinearity, flatten=True))
        blocks.append(nn.Linear(hidden, num_classes))
        return LocalNetwork(blocks, [*(f"conv{i + 1}" for i in range(len(blocks) - 2)), "hidden", "classifier"])

    return named(build, name, title=title, least=least, blocks=len(plan) - plan.count("M") + 2, notes=notes)


def _plain(name: str, plan: Plan) -> Callable[..., LocalNetwork]:
    def build(
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: float = 1.0,
        dropout: float = 0.0,
        nonlinearity: Nonlinearity = "relu",
    ) -> LocalNetwork:
        """Build {title} for small images: {convolutions} convolutions, global averages, one linear layer.

        The two linear layers of 4096 that VGG has for large images are left out, as is usual for CIFAR.

        Args:
            image_shape: (C, H, W), of any size: halvings round up, so that 28 pixels are halved to 14, 7, 4, 2 and 1.
            num_classes: Z.
            width: Factor of all layer widths.
            dropout: Probability at the end of each hidden block.
            nonlinearity: Of every hidden block.

        Raises:
            ValueError: A setting out of its range.

        References: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
            ICLR 2015, arXiv:1409.1556; batch normalisation and the single linear layer are later custom.
        """
        check_settings(image_shape, num_classes, width=width, dropout=dropout)
        blocks, channels = _convolutions(plan, image_shape, width, dropout, nonlinearity, ceil_mode=True)
        blocks.append(pooled_classifier(channels, num_classes))
        return LocalNetwork(blocks, [*(f"conv{i + 1}" for i in range(len(blocks) - 1)), "classifier"])

    return named(build, name, title=name.upper(), convolutions=len(plan) - plan.count("M"))


def _convolutions(
    plan: Plan,
    image_shape: tuple[int, int, int],
    width: float,
    dropout: float,
    nonlinearity: Nonlinearity,
    *,
    large: bool = False,
    ceil_mode: bool = False,
) -> tuple[list[nn.Module], int]:
    """Build one block a convolution; returns them and the number of channels they give."""
    channels = image_shape[0]
    blocks: list[nn.Module] = []
    for index, entry in enumerate(plan):
        if isinstance(entry, str):
            continue
        pool = plan[index + 1 : index + 2] == ("M",)
        first = large and index == 0
        out_channels = scaled(entry, width)
        blocks.append(
            conv_block(
                channels,
                out_channels,
                kernel=7 if first else 3,
                stride=2 if first else 1,
                pool=pool,
                ceil_mode=ceil_mode,
                dropout=dropout,
                nonlinearity=nonlinearity,
            )
        )
        channels = out_channels
    return blocks, channels


vgg8b = _with_hidden_layer(
    "vgg8b",
    VGG8B,
    "VGG8B: 128, 256-M, 256, 512-M, 512-M, 512-M",
    "Cost: 7,328,266 parameters on 1x28x28 and 10 classes, 8,903,434 on 3x32x32.\n\n"
    "References: Nokland and Eidnes, ICML 2019; Choi et al., ICLR 2024.",
)
vgg11b = _with_hidden_layer(
    "vgg11b",
    VGG11B,
    "VGG11B: 128, 128, 128, 256-M, 256, 512-M, 512, 512-M, 512-M",
    "Cost: 11,559,946 parameters on 3x32x32 and 10 classes. Published with widths 1, 2 and 3, of which 2 and 3 keep\n"
    "    `hidden` 1024: 42.0M and 91.3M.\n\n"
    "References: Nokland and Eidnes, ICML 2019.",
)
vgg11c = _with_hidden_layer(
    "vgg11c",
    VGG11C,
    "VGG11c: the convolutions of VGG11 with three of its five poolings",
    "Note: Which three poolings are kept is not published; here the first three. The last map has 4x4\n"
    "    positions on 32x32 pixels.",
)
vgg11, vgg13, vgg16, vgg19 = (
    _plain(name, plan) for name, plan in (("vgg11", VGG11), ("vgg13", VGG13), ("vgg16", VGG16), ("vgg19", VGG19))
)
