"""The reconstruction loss: a block must keep what a small decoder needs to draw the image."""

from __future__ import annotations

import math

from torch import Tensor, nn

from localprop.functional.information import reconstruction_loss
from localprop.functional.pooling import average_positions
from localprop.functional.precision import full_precision
from localprop.functional.upsampling import convolve_upsampled
from localprop.objectives.base import Objective, Scored
from localprop.types import BlockSpec, LocalBatch, LocalLoss

DECODER_CHANNELS = 12


class UpsampledConv2d(nn.Conv2d):
    """A 3x3 convolution of a map that is resized to the image first, bilinearly, corners on corners.

    Args:
        shape: The map, (C, H, W).
        num_out: Channels of its result.
        size: The image, (H_0, W_0).

    Shape: (N, C, H, W) -> (N, num_out, H_0, W_0).
    """

    def __init__(self, shape: tuple[int, ...], num_out: int, size: tuple[int, int]) -> None:
        super().__init__(shape[0], num_out, 3, padding=1)
        self.size = size

    def forward(self, h: Tensor) -> Tensor:
        """Convolve the resized map."""
        assert self.bias is not None
        return convolve_upsampled(h, self.weight, self.bias, self.size)


class Reconstruction(Objective):
    """Train a block by the reconstruction of its image, a bound on the information I(h; x) that it keeps.

    L = BCE(sigmoid(w(h)), x), x the image in [0, 1]. The decoder w upsamples a map bilinearly to the image's size; a
    3x3 convolution to 12 channels, batch normalisation, ReLU and a 3x3 convolution to the image's channels follow. For
    flat outputs, and for tokens, which are averaged, it is a linear map to the pixels.

    Args:
        spec: The block.
        image_shape: One image, (C_0, H_0, W_0).
        scored: The block's "output", or its "activation", before closing pooling and dropout.

    Shape: h (N, C, H, W), (N, K, C) or (N, D).

    Cost: 108 C + 36 + 109 C_0 parameters for a map, for which N (108 H W + 36 H W_0) numbers are kept for the backward
        pass, or N C H_0 W_0 where the convolution at the image's size multiplies less (few channels, a map nearly as
        large as the image); (D + 1) C_0 H_0 W_0 parameters for a flat output of width D. It makes no prediction.

    Raises:
        ValueError: `scored` is neither; in training, the batch has no image or one with pixels outside of [0, 1].

    References: Wang et al., "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training", ICLR 2021,
        arXiv:2101.10832.
    """

    needs_image = True

    def __init__(self, spec: BlockSpec, image_shape: tuple[int, ...], *, scored: Scored = "output") -> None:
        super().__init__(spec, scored)
        self.image_shape = image_shape
        shape = self.scored_shape
        self.is_map = len(shape) == len(image_shape) == 3
        self.decoder: nn.Module = (
            nn.Sequential(
                UpsampledConv2d(shape, DECODER_CHANNELS, (image_shape[1], image_shape[2])),
                nn.BatchNorm2d(DECODER_CHANNELS),
                nn.ReLU(inplace=True),
                nn.Conv2d(DECODER_CHANNELS, image_shape[0], 3, padding=1),
            )
            if self.is_map
            else nn.Linear(shape[0] if len(shape) == 3 else shape[-1], math.prod(image_shape))
        )

    def reconstruct(self, h: Tensor) -> Tensor:
        """Return the logits of the image's pixels, shape (N, *image_shape)."""
        if self.is_map:
            drawn: Tensor = self.decoder(h)
            return drawn
        features = average_positions(h, 1 if h.dim() == 4 else -1)
        flat: Tensor = self.decoder(features)
        return flat.view(-1, *self.image_shape)

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score `h` by the image that can be drawn of it."""
        image = _checked(batch.image)
        drawn = self.reconstruct(self.laid_out(h))
        with full_precision(h):
            return LocalLoss(reconstruction_loss(drawn, image))


def _checked(image: Tensor | None) -> Tensor:
    if image is None:
        raise ValueError("image: the batch must carry the images in [0, 1] to be reconstructed, got none")
    # Rounding takes a normalised pixel out of [0, 1] by less than this. An accelerator would have to be waited for.
    if image.is_cpu and (image.amin() < -1e-2 or image.amax() > 1 + 1e-2):
        raise ValueError(
            f"image: pixels must lie in [0, 1] to be reconstructed, got {float(image.amin()):.3g} to "
            f"{float(image.amax()):.3g}; set rule.normalisation to the mean and std that the inputs were made with"
        )
    return image
