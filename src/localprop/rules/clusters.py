"""Layer-wise clustering: every position is passed on as the centre of its cluster."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from localprop.functional.clustering import k_means, nearest_centres, spread_centres
from localprop.functional.precision import full_precision
from localprop.network import LocalNetwork
from localprop.objectives.base import Objective
from localprop.rules.layerwise import Layerwise
from localprop.seed import derive
from localprop.types import BlockSpec, Phase


class Clusters(Layerwise):
    """Train block after block, and cluster a block's outputs at all positions before the next one is trained.

    Phase l = 1 .. L: theta_l gets grad L_l(f_l(c_{l-1}(sg[h_{l-1}])), y), where c puts the nearest of K centres in the
    place of each position's feature vector. The centres are those of k-means on `samples` positions, drawn uniformly
    from all outputs of block l - 1 over the training set, in evaluation mode. Outputs of one position, flat ones among
    them, are passed on as they are.

    Args:
        net: The network; at least one block before the last gives a map, or tokens, of more than one position.
        objectives: One a block.
        clusters: K, at least 2.
        samples: Positions that are clustered, at least K.
        iterations: Most moves of the centres, at least 1.

    Cost: K C fixed numbers and K C products a position for a block of C channels; `samples` K numbers while it is
        clustered.

    Raises:
        ValueError: A setting out of its range, or a network without positions.

    Note: The code stands at the entrance of the next block of the rule's network, which shares all parameters with
        `net`. Until it is made it passes features on as they are.

    References: Malach and Shalev-Shwartz, "A Provably Correct Algorithm for Deep Learning that Actually Works", 2018,
        arXiv:1803.09522.
    """

    def __init__(
        self, net: LocalNetwork, objectives: Sequence[Objective], *, clusters: int, samples: int, iterations: int
    ) -> None:
        if clusters < 2:
            raise ValueError(f"clusters: must be at least 2, got {clusters}")
        if samples < clusters:
            raise ValueError(f"samples: must be at least the number of clusters, {clusters}, got {samples}")
        if iterations < 1:
            raise ValueError(f"iterations: must be at least 1, got {iterations}")
        specs = [objective.spec for objective in objectives]
        codes = {spec.index + 1: ClusterCode(spec, clusters) for spec in specs[:-1] if _positions(spec) > 1}
        if not codes:
            raise ValueError(
                f"net: clusters are those of positions, and no block before the last gives a map or tokens of more "
                f"than one, got outputs of shapes {[spec.shape for spec in specs]}; use a convolutional network such "
                "as --model vgg8b or cnn, or --method layerwise"
            )
        blocks = [
            nn.Sequential(codes[index], block) if index in codes else block for index, block in enumerate(net.blocks)
        ]
        coded = LocalNetwork(blocks, net.names)
        coded.freeze(net.frozen)
        super().__init__(coded, objectives)
        self.samples = samples
        self.iterations = iterations
        self._codes = codes

    def prepare(self, phase: Phase, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Cluster what the phase's block is given, over the training set."""
        for index in phase.blocks:
            if code := self._codes.get(index):
                generator = torch.Generator().manual_seed(derive(self.seed, "clusters", index))
                points = self._drawn(code, batches, generator)
                if len(points) < len(code.centres):
                    raise ValueError(
                        f"clusters: the training set gives {len(points)} positions for {len(code.centres)} clusters of "
                        f"block {self.net.names[index - 1]!r}; lower --method.clusters or use more images"
                    )
                start = spread_centres(points, len(code.centres), generator)
                code.fit(k_means(points, start, self.iterations))

    def _drawn(self, code: ClusterCode, batches: Iterable[tuple[Tensor, Tensor]], generator: torch.Generator) -> Tensor:
        """Return the positions with the largest random keys of all, on the host in double precision."""
        kept, keys = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
        for x, _ in batches:
            found = x.movedim(code.channel_axis, -1).flatten(0, -2).double().cpu()
            drawn = torch.rand(len(found), generator=generator, dtype=torch.float64)
            kept, keys = torch.cat([kept.view(-1, found.shape[1]), found]), torch.cat([keys, drawn])
            order = keys.argsort(descending=True, stable=True)[: self.samples]
            kept, keys = kept[order], keys[order]
        return kept


class ClusterCode(nn.Module):
    """Put the nearest centre in the place of each position's feature vector, once centres are there.

    Args:
        spec: The block whose outputs are coded.
        clusters: K.

    Shape: (N, C, ...) or (N, K, C), as the block gives it; kept.
    """

    centres: Tensor
    fitted: Tensor

    def __init__(self, spec: BlockSpec, clusters: int) -> None:
        super().__init__()
        self.channel_axis = 1 if spec.channel_axis == 0 else -1
        self.register_buffer("centres", torch.zeros(clusters, spec.shape[spec.channel_axis]))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self._codes = False  # what `fitted` says, where reading it does not wait for a device

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._codes = bool(self.fitted)

    def fit(self, centres: Tensor) -> None:
        """Take the centres."""
        self.centres.copy_(centres)
        self.fitted.fill_(True)
        self._codes = True

    def forward(self, x: Tensor) -> Tensor:
        """Code every position; nothing is differentiated."""
        if not self._codes:
            return x.detach()
        with torch.no_grad(), full_precision(x):
            features = x.movedim(self.channel_axis, -1).to(self.centres.dtype)
            coded = self.centres[nearest_centres(features, self.centres)]
            coded.masked_fill_(features.isnan().any(-1, keepdim=True), torch.nan)  # what is not a number stays so
            return coded.movedim(-1, self.channel_axis).to(x.dtype)


def _positions(spec: BlockSpec) -> int:
    return math.prod(spec.shape) // spec.shape[spec.channel_axis] if len(spec.shape) > 1 else 1
