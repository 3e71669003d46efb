"""How deep an auxiliary network is, and of which later blocks it is made.

References:
    Ma et al., "Scaling Supervised Local Learning with Augmented Auxiliary Networks", ICLR 2024.
"""

from __future__ import annotations


def pyramid_depth(index: int, num_blocks: int, depth: int, shrink: float) -> int:
    """Return how many later blocks are copied: d_l = max(1, round(d (1 - c l / (K - 2)) + c l / (K - 2))).

    Args:
        index: l, 0 .. K - 2.
        num_blocks: K, with the last block.
        depth: d, the depth at the first block, at least 1.
        shrink: c, 0 .. 1: at c = 1 the last hidden block's depth is 1.
    """
    share = shrink * index / max(num_blocks - 2, 1)
    return max(1, round(depth * (1 - share) + share))


def uniform_indices(index: int, num_hidden: int, depth: int) -> list[int]:
    """Choose d of the hidden blocks after block l, evenly: round(l + (H - 1 - l) i / d) for i = 1 .. d.

    Args:
        index: l, 0 .. H - 1.
        num_hidden: H; indices reach H - 1.
        depth: d; all later blocks are taken if there are no more than that.
    """
    remaining = num_hidden - 1 - index
    if remaining <= depth:
        return list(range(index + 1, num_hidden))
    return [round(index + remaining * i / depth) for i in range(1, depth + 1)]
