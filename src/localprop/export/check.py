"""Whether an export answers as its run does: on real test images, one at a time and many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from localprop.data.loader import normalise
from localprop.data.store import ImageSet, in_size
from localprop.infer.trained import ANSWER, Exit
from localprop.train.assemble import in_layout
from localprop.train.stored import StoredRun

NUM_IMAGES = 32  # at most
TOLERANCE = 1e-4
"""Of a logit, in units of the largest one of its output, or of 1: other libraries add up in another order."""


class Sample(NamedTuple):
    """Test images and what the run itself answers.

    Attributes:
        images: In [0, 1]. Shape (N, C, H, W).
        expected: Outputs by name. Shape (N, Z) each.
    """

    images: Tensor
    expected: dict[str, Tensor]

    @property
    def batch_sizes(self) -> list[int]:
        """One image, which can take another path than many, and all others."""
        return [size for size in (1, len(self.images) - 1) if size]


def sample_of(run: StoredRun, test: ImageSet, exit: Exit) -> Sample:
    """Answer some test images, evenly spread over the set, as the run's evaluation does, but in float32.

    Raises:
        ValueError: The exit's block makes no prediction, or an answer is not finite.
    """
    chosen = test.subset(torch.linspace(0, len(test) - 1, min(NUM_IMAGES, len(test))).long())
    pixels = in_size(chosen.images, chosen.side)
    rule = run.rule
    rule.autocast_dtype = None
    exits = rule.exits(in_layout(normalise(pixels, run.facts.mean, run.facts.std), rule))
    named = {name: logits for name, logits in zip(rule.net.names, exits, strict=True) if logits is not None}
    if isinstance(exit, int):
        name = rule.net.names[exit]
        if name not in named:
            raise ValueError(
                f"--exit {name}: the block makes no prediction under method {run.config.method.name}; those that do: "
                f"{', '.join(named)}; or last, all"
            )
        outputs = {ANSWER: named[name]}
    else:
        outputs = {**(named if exit == "all" else {}), ANSWER: rule.answer(exits)}
    if not all(logits.isfinite().all() for logits in outputs.values()):
        raise ValueError("export: the run's own answers are not finite, it has diverged; train again at a lower rate")
    return Sample(pixels.float() / 255, outputs)


def largest_difference(sample: Sample, run: Callable[[Tensor], Mapping[str, Tensor]]) -> float:
    """Run an export on one image and on many, and return the largest difference of any output to its run.

    Args:
        sample: Images and answers.
        run: Runs the export.

    Returns:
        max |difference| / max(1, largest |logit| of that output).

    Raises:
        ValueError: An output is missing, of another shape, or differs by more than the tolerance.
    """
    parts = [run(images) for images in torch.split(sample.images, sample.batch_sizes)]
    largest = 0.0
    for name, expected in sample.expected.items():
        found = torch.cat([part[name] for part in parts])
        scale = max(1.0, float(expected.abs().max()))
        difference = float((found - expected).abs().max()) / scale
        if not difference <= TOLERANCE:  # also NaN
            raise ValueError(
                f"export: output {name!r} differs from the run's own by {difference:.2g} of its largest logit, at most "
                f"{TOLERANCE:g} is rounding; nothing was written, try another --to"
            )
        largest = max(largest, difference)
    return largest
