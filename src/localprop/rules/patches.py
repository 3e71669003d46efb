"""Dictionaries of patches, drawn from the training set stage by stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from localprop.functional.patches import whitening
from localprop.models.patches import PatchCoding
from localprop.network import LocalNetwork
from localprop.objectives.base import Objective
from localprop.rules.layerwise import Layerwise
from localprop.seed import derive
from localprop.types import Phase


class PatchDictionaries(Layerwise):
    """Before each stage is trained, draw its dictionary from its input over the training set, and whiten it.

    `patches_per_image` windows are drawn in every image, uniformly. Their mean and covariance make the whitening, and D
    of all of them, drawn uniformly without replacement, make the dictionary.

    Args:
        net: A network of `localprop.models.patches`.
        objectives: One a stage.
        ridge: lambda of the whitening, positive.
        patches_per_image: Windows drawn in each image, at least 1.

    Raises:
        ValueError: A setting out of its range, or another network.

    References: Thiry et al., "The Unreasonable Effectiveness of Patches in Deep Convolutional Kernels Methods",
        ICLR 2021, arXiv:2101.07528.
    """

    def __init__(
        self, net: LocalNetwork, objectives: Sequence[Objective], *, ridge: float, patches_per_image: int
    ) -> None:
        super().__init__(net, objectives)
        if not 0 < ridge < float("inf"):
            raise ValueError(f"ridge: must be positive, got {ridge}")
        if patches_per_image < 1:
            raise ValueError(f"patches_per_image: must be at least 1, got {patches_per_image}")
        self.ridge = ridge
        self.patches_per_image = patches_per_image
        self._codings = [next((m for m in block.modules() if isinstance(m, PatchCoding)), None) for block in net.blocks]
        if None in self._codings:
            raise ValueError(
                f"net: block {net.names[self._codings.index(None)]!r} codes no patches; this method trains its own "
                "network: use --model patches"
            )

    def prepare(self, phase: Phase, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Draw the dictionary of the phase's stage; a frozen one keeps what it has."""
        for index in set(phase.blocks) - self.net.frozen:
            coding = self._codings[index]
            assert coding is not None
            generator = torch.Generator().manual_seed(derive(self.seed, "patches", index))
            coding.fit(*self._draw(coding, batches, generator))

    def _draw(
        self, coding: PatchCoding, batches: Iterable[tuple[Tensor, Tensor]], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return dictionary, mean and whitener; of the patches seen, those with the largest random keys are kept."""
        size = len(coding.filters)
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        kept, keys = torch.empty(0), torch.empty(0)
        for x, _ in batches:
            found = windows(x, coding.patch_size, self.patches_per_image, generator)
            drawn = torch.rand(len(found), generator=generator, dtype=torch.float64)
            patches = found.double()
            count += len(patches)
            total = patches.sum(0) + total.to(patches)
            squares = patches.T @ patches + squares.to(patches)
            kept, keys = torch.cat([kept.to(found), found]), torch.cat([keys.to(drawn), drawn])
            order = keys.argsort(descending=True, stable=True)[:size]
            kept, keys = kept[order.to(kept.device)], keys[order]
        if len(kept) < size:
            raise ValueError(
                f"patches_per_image: {count} patches were drawn for a dictionary of {size}; raise it, use more images, "
                "or a smaller --model.width"
            )
        mean = total / count
        whitener = whitening(squares / count - torch.outer(mean, mean), self.ridge)
        return kept.double(), mean, whitener


def windows(x: Tensor, patch_size: int, per_image: int, generator: torch.Generator) -> Tensor:
    """Draw windows uniformly in every image.

    Args:
        x: Shape (N, C, H, W).
        patch_size: p.
        per_image: Windows an image, drawn with replacement.
        generator: Draws them, on the host.

    Shape: (N per_image, C p^2), in the order of `torch.nn.functional.unfold`.
    """
    unfolded = F.unfold(x.float() if x.dtype == torch.bfloat16 else x, patch_size)
    chosen = torch.randint(unfolded.shape[2], (len(x), 1, per_image), generator=generator).to(x.device)
    picked = unfolded.gather(2, chosen.expand(-1, unfolded.shape[1], -1))
    return picked.transpose(1, 2).reshape(len(x) * per_image, -1)
