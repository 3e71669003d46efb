"""Self-supervised local losses: hidden blocks learn without labels; the reported errors are those of linear probes."""

from __future__ import annotations

from localprop.citations import paper
from localprop.functional.views import grid_shape
from localprop.methods.common import Specs
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import CrossEntropy, Objective, Probe, RowPrediction, ViewContrast
from localprop.rules import EndToEndPatches, GreedyPatches, GreedyViews
from localprop.rules.self_supervised import PatchGrid, check_takes_images
from localprop.types import BlockSpec


def view_contrast(
    net: LocalNetwork,
    specs: Specs,
    *,
    temperature: float = 0.5,
    projection: int = 128,
    smallest_crop: float = 0.25,
    jitter: float = 0.4,
) -> GreedyViews:
    """Train hidden blocks to tell two views of each image from those of the others.

    Args:
        net: The network.
        specs: Its blocks.
        temperature: Positive divisor of the cosine similarities.
        projection: Width of each head's output.
        smallest_crop: Smallest part of an image's area that a view shows, in (0, 1].
        jitter: Strength of random changes of brightness, contrast and saturation.
    """
    hidden = [ViewContrast(spec, temperature=temperature, projection=projection) for spec in specs[:-1]]
    return GreedyViews(net, [*hidden, CrossEntropy(specs[-1])], smallest_crop=smallest_crop, jitter=jitter)


def row_prediction(
    net: LocalNetwork,
    specs: Specs,
    *,
    end_to_end: bool = False,
    patch: int | None = None,
    stride: int | None = None,
    predicted_rows: int = 5,
    skipped_rows: int = 1,
    negatives: int = 16,
) -> GreedyPatches | EndToEndPatches:
    """Train hidden blocks to predict an image's patches from the patches above them.

    Args:
        net: The network.
        specs: Its blocks.
        end_to_end: Whether the hidden blocks learn together from the prediction of the last of them, or each from its
            own.
        patch: Pixels a side of a patch; default a quarter of the image.
        stride: Pixels between two patches; default half of a patch.
        predicted_rows: How many rows below a patch are predicted.
        skipped_rows: Rows between a patch and the first predicted one, which overlap it.
        negatives: Random codes that the right one is told from.
    """
    of_patches, grid = _cut(net, specs, patch, stride)

    def prediction(spec: BlockSpec) -> RowPrediction:
        return RowPrediction(
            spec,
            grid=(grid.rows, grid.columns),
            predicted_rows=predicted_rows,
            skipped_rows=skipped_rows,
            negatives=negatives,
        )

    if not end_to_end:
        hidden = [prediction(spec) for spec in of_patches[:-1]]
        return GreedyPatches(net, [*hidden, CrossEntropy(of_patches[-1])], grid)
    probes: list[Objective] = [Probe(spec) for spec in of_patches[:-1]]
    probes[-1:] = [prediction(spec) for spec in of_patches[-2:-1]]
    return EndToEndPatches(net, [*probes, CrossEntropy(of_patches[-1])], grid)


def _cut(net: LocalNetwork, specs: Specs, patch: int | None, stride: int | None) -> tuple[Specs, PatchGrid]:
    """Return the specs of the blocks when they run on patches, and how images are cut into these."""
    image_shape = specs[0].input_shape
    check_takes_images(image_shape)
    size = max(1, min(image_shape[1:]) // 4) if patch is None else patch
    if not 1 <= size <= min(image_shape[1:]):
        raise ValueError(f"patch: must be 1 .. {min(image_shape[1:])} pixels a side, got {size}")
    step = max(1, size // 2) if stride is None else stride
    if step < 1:
        raise ValueError(f"stride: must be at least 1 pixel, got {step}")
    try:
        example = next(net.parameters()).new_zeros(1, image_shape[0], size, size)
        of_patches = net.specs(example, specs[-1].num_classes)
    except ValueError as error:
        raise ValueError(
            f"network: its blocks must also take patches of {size}x{size} pixels, as convolutions and global averages "
            f"do (conv, vgg11), but {error}"
        ) from error
    return of_patches, PatchGrid(image_shape, size, step, *grid_shape(image_shape[1], image_shape[2], size, step))


METHODS = (
    Method(
        "simclr-local",
        "SimCLR at every block: contrast of two views",
        "self-supervised",
        2020,
        paper("xiong2020loco"),
        view_contrast,
        "one head of two linear layers and a probe a block",
        needs_labels=False,
        passes=2,
    ),
    Method(
        "infomax",
        "Greedy InfoMax: prediction of patches at every block",
        "self-supervised",
        2019,
        paper("lowe2019greedy"),
        row_prediction,
        "one matrix a predicted row and block, and a probe a block",
        fixed={"end_to_end": False},
        needs_labels=False,
    ),
    Method(
        "cpc",
        "CPC: prediction of patches, trained end to end",
        "self-supervised",
        2018,
        paper("oord2018representation"),
        row_prediction,
        "one matrix a predicted row, and a probe a block",
        fixed={"end_to_end": True},
        needs_labels=False,
        messages="gradients",
        updates_in_forward=False,
        global_error=True,
    ),
)
