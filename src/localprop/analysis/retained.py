"""What blocks retain: information on the class, on a nuisance, and on the image itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from localprop.analysis.figures import depth_figure
from localprop.analysis.information import Information, label_information
from localprop.analysis.subject import BlockFeatures, Finding, Subject, block_features, block_outputs
from localprop.data.store import ImageSet
from localprop.objectives.reconstruction import Reconstruction
from localprop.rules import Rule
from localprop.seed import derive, seeded
from localprop.types import LocalBatch

_RECONSTRUCTED = 1000
_DECODER_EPOCHS = 12


def reconstruction_share(loss: float, mean_image_loss: float, least: float) -> float | None:
    """Return the share of an image's explainable loss that a decoder explains: 1 - (L - L_min) / (L_0 - L_min).

    0 is what the mean image explains, 1 a perfect drawing; negative is worse than the mean image. None if all images
    are one.

    Args:
        loss: L, binary cross-entropy of the drawn pixels.
        mean_image_loss: L_0, that of the mean training image.
        least: L_min, the pixels' own entropy, which no drawing can go below.
    """
    explainable = mean_image_loss - least
    return None if explainable <= 1e-9 else 1 - (loss - least) / explainable


def information_of_run(subject: Subject) -> Finding:
    """Estimate what each block retains of the class y, a nuisance r and the image x, one row a block.

    I(h; y) and I(h; r) are lower bounds in nats by `label_information` on pooled features (at most 1024 numbers). r is
    whether the image was mirrored, by a fair coin that knows nothing of y. Networks that were trained on images
    mirrored at random were taught to overlook it.

    I(h; x) is told by `reconstruction_share` of test images, of a decoder per block as InfoPro has it, fitted to 1000
    training images; its unit is not the nat, for neither H(x) nor the decoder's distance from the best one is known.
    Compare blocks of one network by it.
    """
    seed = subject.run.config.seed
    train, test = subject.train_features, subject.test_features
    train_mirrored, train_coins = _mirrored(subject, subject.train, "train")
    test_mirrored, test_coins = _mirrored(subject, subject.test, "test")
    shares = _reconstruction(subject)
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(subject.names):
        y = label_information(train.pooled[index], train.target, test.pooled[index], test.target, seed=seed)
        r = label_information(
            train_mirrored.pooled[index], train_coins, test_mirrored.pooled[index], test_coins, seed=seed
        )
        row = {"block": index, "name": name, **_columns("class", y), **_columns("mirrored", r)}
        rows.append({**row, "image_share": shares[index]})
    return Finding(rows)


def information_figure(finding: Finding) -> Figure:
    """Draw the three over depth."""

    def curve(key: str) -> list[float | None]:
        return [row[key] for row in finding.rows]

    return depth_figure(
        [row["name"] for row in finding.rows],
        {
            "I(h; class), nats": {"bound": curve("class_nats"), "most": curve("class_most_nats")},
            "I(h; mirrored), nats": {"bound": curve("mirrored_nats"), "most": curve("mirrored_most_nats")},
            "image, share reconstructed": {"share": curve("image_share")},
        },
    )


def _columns(name: str, found: Information) -> dict[str, Any]:
    return {
        f"{name}_nats": found.nats,
        f"{name}_most_nats": found.most_nats,
        f"{name}_flags": ", ".join(found.flags),
    }


def _mirrored(subject: Subject, images: ImageSet, split: str) -> tuple[BlockFeatures, Tensor]:
    """Return the features of images of which a coin mirrored half, and the coins."""
    generator = torch.Generator().manual_seed(derive(subject.run.config.seed, "mirrored", split))
    coins = torch.randint(2, (len(images),), generator=generator)
    turned = torch.where(coins.bool()[:, None, None, None], images.images.flip(-1), images.images)
    turned_set = ImageSet(turned, images.labels, images.side)
    return block_features(subject.rule, subject.batches(turned_set)), coins


def _reconstruction(subject: Subject) -> list[float | None]:
    rule = subject.rule
    train = subject.train.subset(range(min(_RECONSTRUCTED, len(subject.train))))
    test = subject.test.subset(range(min(_RECONSTRUCTED, len(subject.test))))
    with torch.enable_grad(), seeded(derive(subject.run.config.seed, "decoders"), subject.run.device):
        decoders = _fitted_decoders(rule, subject, train)
    mean_image = torch.cat([rule.image(x) for x, _ in subject.batches(train)]).mean(0, keepdim=True).clamp(0, 1)
    sums = [0.0] * len(decoders)
    at_mean = least = 0.0
    with torch.no_grad():
        for x, y in subject.batches(test):
            image = rule.image(x).clamp(0, 1)
            at_mean += len(x) * float(_pixel_loss(mean_image.expand_as(image), image))
            least += len(x) * float(_pixel_loss(image, image))
            for index, h in enumerate(block_outputs(rule, x)):
                sums[index] += len(x) * float(decoders[index](h.float(), LocalBatch(y, x, image)).loss)
    return [reconstruction_share(total / len(test), at_mean / len(test), least / len(test)) for total in sums]


def _fitted_decoders(rule: Rule, subject: Subject, train: ImageSet) -> Sequence[Reconstruction]:
    """Fit one decoder a block, all in the same passes over the images."""
    decoders = [Reconstruction(spec, subject.run.facts.image_shape).to(subject.run.device) for spec in rule.specs]
    optimizers = [torch.optim.AdamW(decoder.parameters(), lr=5e-3) for decoder in decoders]
    for _ in range(_DECODER_EPOCHS):
        for x, y in subject.batches(train):
            if len(x) == 1:  # batch normalisation of the decoders needs two
                continue
            image = rule.image(x).clamp(0, 1)
            for h, decoder, optimizer in zip(block_outputs(rule, x), decoders, optimizers, strict=True):
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(decoder(h.float(), LocalBatch(y, x, image)).loss)
                optimizer.step()
    return [decoder.eval() for decoder in decoders]


def _pixel_loss(drawn: Tensor, image: Tensor) -> Tensor:
    return torch.nn.functional.binary_cross_entropy(drawn, image)
