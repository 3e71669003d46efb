"""A block learns to draw the image, beside or instead of naming its class."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from localprop.functional.pooling import map_shape
from localprop.functional.targets import shifted_image
from localprop.objectives.base import Objective
from localprop.objectives.heads import AsMap
from localprop.types import BlockSpec, LocalBatch, LocalLoss

Upsampling = Literal["learned", "bilinear"]


class ImagePrediction(Objective):
    """Train a block by the error of an image drawn from its activation, beside a prediction of the label.

    L = w_p L_p(tail(a), y) + w_i mean |d(a) - roll(image, s)|, for the activation a of the block, h = tail(a).

    With w_p = 0 the block learns from the image alone, and the prediction is a probe: L_p reads sg[a], with weight 1.

    Args:
        spec: The block.
        tail: The block's closing pooling and dropout, without parameters; see `localprop.network.body_and_tail`.
        prediction: L_p, which scores the block's output.
        image_shape: (C, H, W) of the images.
        shift: s, the pixels by which the target is moved along both axes, with wrap-around; 0 leaves it.
        prediction_weight: w_p >= 0.
        image_weight: w_i >= 0.
        upsampling: How the decoder d enlarges a map; see `build_decoder`.

    Shape: a (N, C, H, W), (N, K, C) or (N, H), the activation.

    Cost: the parameters of the prediction and of the decoder.

    Raises:
        ValueError: A setting out of its range.

    Note: The tail runs twice, here and on the way to the next block; with dropout in it the two draw different masks.

    References: Code of a thesis on local learning, github.com/AlonNT/Thesis.
    """

    reads = "activation"
    needs_image = True

    def __init__(
        self,
        spec: BlockSpec,
        tail: nn.Module,
        prediction: Objective,
        *,
        image_shape: tuple[int, ...],
        shift: int = 0,
        prediction_weight: float = 0.9,
        image_weight: float = 0.1,
        upsampling: Upsampling = "learned",
    ) -> None:
        super().__init__(spec)
        for name, weight in (("prediction_weight", prediction_weight), ("image_weight", image_weight)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name}: must be at least 0 and finite, got {weight}")
        if prediction_weight == image_weight == 0:
            raise ValueError("prediction_weight and image_weight: both are 0, so nothing would train a hidden block")
        self.tail = tail
        self.prediction = prediction
        self.decoder = build_decoder(self.scored_shape, image_shape, upsampling)
        self.shift = shift
        self.prediction_weight = prediction_weight
        self.image_weight = image_weight

    def logits(self, h: Tensor) -> Tensor | None:
        """Return the prediction's logits, shape (N, Z)."""
        return self.prediction.logits(self.tail(h))

    def forward(self, h: Tensor, batch: LocalBatch) -> LocalLoss:
        """Score the activation `h`; logs the error of the image.

        Raises:
            ValueError: The batch carries no image.
        """
        if batch.image is None:
            raise ValueError(
                f"blocks: block {self.spec.name!r} learns to draw the image, which only a pass from block 0 on carries"
            )
        probing = self.prediction_weight == 0
        predicted = self.prediction(self.tail(h.detach() if probing else h), batch)
        error = F.l1_loss(self.decoder(self.laid_out(h)).to(batch.image.dtype), shifted_image(batch.image, self.shift))
        loss = (1.0 if probing else self.prediction_weight) * predicted.loss + self.image_weight * error
        return LocalLoss(loss, predicted.logits, {"image_error": error.detach()})


def build_decoder(shape: tuple[int, ...], image_shape: tuple[int, ...], upsampling: Upsampling) -> nn.Sequential:
    """Build what draws an image from a block's activation.

    Maps are doubled until no side is smaller than the image's; where they do not fit then, they are resized to it
    bilinearly, corner to corner.
        learned:  each doubling is [4x4 transposed conv with stride 2, C -> C/2, ReLU]; a 3x3 conv ends at the image.
        bilinear: a 3x3 conv from C to the image's channels at the block's resolution, then one resizing.
    A flat activation is drawn by one linear layer.

    Args:
        shape: One sample of the activation.
        image_shape: (C, H, W).
        upsampling: "learned" or "bilinear".

    Raises:
        ValueError: No such upsampling.
    """
    if upsampling not in get_args(Upsampling):
        raise ValueError(f"upsampling: must be one of {list(get_args(Upsampling))}, got {upsampling!r}")
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], math.prod(image_shape)), nn.Unflatten(1, image_shape))
    channels, *size = map_shape(shape)
    modules: list[nn.Module] = [AsMap()]
    while upsampling == "learned" and (size[0] < image_shape[1] or size[1] < image_shape[2]):
        narrower = max(channels // 2, image_shape[0])
        modules += [nn.ConvTranspose2d(channels, narrower, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
        channels, size = narrower, [2 * side for side in size]
    modules.append(nn.Conv2d(channels, image_shape[0], 3, padding=1))
    if tuple(size) != image_shape[1:]:
        modules.append(nn.Upsample(image_shape[1:], mode="bilinear", align_corners=True))
    return nn.Sequential(*modules)
