"""What blocks retain: information on the class, on a nuisance, and on the image itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from localprop.analysis.checks import check_features
from localprop.analysis.figures import depth_figure
from localprop.analysis.information import Information, label_information
from localprop.analysis.subject import BlockFeatures, Finding, Subject, block_outputs
from localprop.data.store import ImageSet
from localprop.functional.pooling import pool_to_budget, standard_layout
from localprop.seed import derive

_RECONSTRUCTED = 1000
_RECONSTRUCTED_FEATURES = 8192
_PENALTIES = tuple(10.0**exponent for exponent in range(-6, 3))


def reconstructed_share(features: Tensor, images: Tensor, test_features: Tensor, test_images: Tensor) -> float | None:
    """Return the share of the pixels' variance that a linear map draws from features, on images it was not fitted to.

    share = 1 - sum |x - W h - b|^2 / sum |x - mean of the training images|^2: 1 is a perfect drawing, 0 no better than
    the mean image. W is ridge regression in closed form, the same decoder for every block; its penalty is that with the
    smallest leave-one-out error on the training images.

    Args:
        features: Training features, whole maps flattened. Shape (N, P).
        images: Their images. Shape (N, ...).
        test_features: Features of other images. Shape (M, P).
        test_images: Shape (M, ...).

    Returns:
        The share; None if the test images are all the mean training image.

    Cost: N^2 + N M numbers, whatever P is; one eigendecomposition of N x N.

    Raises:
        ValueError: Shapes do not fit, numbers are not finite, or fewer than 3 training images.

    Note: InfoPro trains a convolutional decoder by binary cross-entropy instead. Trained decoders differ in how far
        they got, and a convolution cannot draw from a map of one position, so depths could not be compared.
    """
    check_features("features", features, fewest=3)
    check_features("test_features", test_features, fewest=1)
    if len(images) != len(features) or len(test_images) != len(test_features):
        raise ValueError(
            f"images, test_images: need one image for each of {len(features)} and {len(test_features)} samples, got "
            f"{len(images)} and {len(test_images)}"
        )
    features, test_features = features.detach().float(), test_features.detach().float()
    mean = features.mean(0)
    z, test_z = features - mean, test_features - mean
    scale = z.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    z, test_z = z / scale, test_z / scale
    pixels, test_pixels = images.flatten(1).double(), test_images.flatten(1).double()
    average = pixels.mean(0)
    left = float((test_pixels - average).square().sum())
    if left == 0:
        return None
    values, vectors = torch.linalg.eigh((z @ z.T).double())
    values = values.clamp_min(0)
    turned = vectors.T @ (pixels - average)
    size = float(values.mean()) or 1.0
    errors = []
    for penalty in _PENALTIES:
        kept = values / (values + penalty * size)
        leverage = (vectors.square() @ kept + 1 / len(z)).clamp_max(1 - 1e-9)
        residual = (pixels - average - vectors @ (kept[:, None] * turned)) / (1 - leverage[:, None])
        errors.append(float(residual.square().sum()))
    penalty = _PENALTIES[min(range(len(errors)), key=errors.__getitem__)] * size
    weights = vectors @ (turned / (values + penalty)[:, None])
    drawn = average + (test_z @ z.T).double() @ weights
    return 1 - float((test_pixels - drawn).square().sum()) / left


def information_of_run(subject: Subject) -> Finding:
    """Estimate what each block retains of the class y, a nuisance r and the image x, one row a block.

    I(h; y) and I(h; r) are lower bounds in nats by `label_information` on pooled features (at most 1024 numbers). r is
    an attribute that the data set gives its images independently of y, such as the colour of `coloured-digits`. Of
    other sets r is whether the image was mirrored, by a fair coin that knows nothing of y; networks that were trained
    on images mirrored at random were taught to overlook it.

    I(h; x) is told by `reconstructed_share` of 1000 test images from maps of at most 8192 numbers, fitted to 1000
    training images. Its unit is not the nat: it bounds I(h; x) from below, but how far it is from it is not known.
    """
    seed = subject.run.config.seed
    train, test = subject.train_features, subject.test_features
    nuisance = _nuisance(subject)
    shares = _reconstruction(subject)
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(subject.names):
        y = label_information(train.pooled[index], train.target, test.pooled[index], test.target, seed=seed)
        r = label_information(
            nuisance.train.pooled[index],
            nuisance.train_labels,
            nuisance.test.pooled[index],
            nuisance.test_labels,
            seed=seed,
        )
        row = {"block": index, "name": name, **_columns("class", y), **_columns("nuisance", r)}
        rows.append({**row, "image_share": shares[index]})
    dependence = empirical_information(nuisance.train_labels, subject.train.labels)
    return Finding(rows, {"nuisance": nuisance.name, "nuisance_class_nats": dependence})


def empirical_information(a: Tensor, b: Tensor) -> float:
    """Return the mutual information of two labellings as they stand, in nats: sum p(a, b) log p(a, b) / (p(a) p(b)).

    Of N independent pairs it is about (A - 1)(B - 1) / (2 N) for A and B labels, not 0.

    Args:
        a: Labels from 0. Shape (N,), int64.
        b: Labels from 0. Shape (N,), int64.
    """
    width = int(b.max()) + 1
    joint = torch.bincount(a * width + b, minlength=(int(a.max()) + 1) * width).view(-1, width).double() / len(a)
    product = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    seen = joint > 0
    return float((joint[seen] * (joint[seen] / product[seen]).log()).sum())


def information_figure(finding: Finding) -> Figure:
    """Draw the three over depth."""

    def curve(key: str) -> list[float | None]:
        return [row[key] for row in finding.rows]

    return depth_figure(
        [row["name"] for row in finding.rows],
        {
            "I(h; class), nats": {"bound": curve("class_nats"), "most": curve("class_most_nats")},
            f"I(h; {finding.details['nuisance']}), nats": {
                "bound": curve("nuisance_nats"),
                "most": curve("nuisance_most_nats"),
            },
            "image, share of variance drawn": {"share": curve("image_share")},
        },
    )


def _columns(name: str, found: Information) -> dict[str, Any]:
    return {
        f"{name}_nats": found.nats,
        f"{name}_most_nats": found.most_nats,
        f"{name}_flags": ", ".join(found.flags),
    }


class _Nuisance(NamedTuple):
    """A labelling of the images that knows nothing of their class, with the features of the images that show it."""

    name: str
    train: BlockFeatures
    train_labels: Tensor
    test: BlockFeatures
    test_labels: Tensor


def _nuisance(subject: Subject) -> _Nuisance:
    for name, values in subject.train.attributes.items():
        if name in subject.test.attributes:
            return _Nuisance(name, subject.train_features, values, subject.test_features, subject.test.attributes[name])
    return _Nuisance("mirrored", *_mirrored(subject, subject.train, "train"), *_mirrored(subject, subject.test, "test"))


def _mirrored(subject: Subject, images: ImageSet, split: str) -> tuple[BlockFeatures, Tensor]:
    """Return the features of images of which a coin mirrored half, and the coins."""
    generator = torch.Generator().manual_seed(derive(subject.run.config.seed, "mirrored", split))
    coins = torch.randint(2, (len(images),), generator=generator)
    turned = torch.where(coins.bool()[:, None, None, None], images.images.flip(-1), images.images)
    return subject.features(replace(images, images=turned)), coins


def _reconstruction(subject: Subject) -> list[float | None]:
    train, images = _whole_maps(subject, subject.train)
    test, test_images = _whole_maps(subject, subject.test)
    return [
        reconstructed_share(features, images, test_features, test_images)
        for features, test_features in zip(train, test, strict=True)
    ]


def _whole_maps(subject: Subject, images: ImageSet) -> tuple[list[Tensor], Tensor]:
    """Return every block's map of some images, flattened, and the images in [0, 1]."""
    kept: list[list[Tensor]] = [[] for _ in subject.names]
    pixels = []
    for x, _ in subject.batches(images.subset(range(min(_RECONSTRUCTED, len(images))))):
        pixels.append(subject.rule.image(x).cpu())
        for spec, h, parts in zip(subject.rule.specs, block_outputs(subject.rule, x), kept, strict=True):
            parts.append(pool_to_budget(standard_layout(h, spec.channel_axis), _RECONSTRUCTED_FEATURES).cpu())
    return [torch.cat(parts) for parts in kept], torch.cat(pixels)
