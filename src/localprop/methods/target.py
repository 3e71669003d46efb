"""Target propagation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localprop.citations import paper
from localprop.methods.common import Specs
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.rules import TargetPropagation
from localprop.rules.predictors import feedback_net
from localprop.rules.target import FeedbackLoss, Top, top_block


def target_propagation(
    net: LocalNetwork,
    specs: Specs,
    *,
    difference: bool = True,
    direct: bool = False,
    top: Top = "hidden",
    nudging: float = 0.7,
    noise: float = 0.1,
    iterations: int = 1,
    feedback_loss: FeedbackLoss = "reconstruction",
    feedback_lr: float = 10.0,
    hidden: int = 0,
) -> TargetPropagation:
    """Train hidden blocks by targets that learned feedback carries down, and the last block by cross-entropy.

    Args:
        net: The network.
        specs: Its blocks.
        difference: Whether targets are corrected by the error of the feedback.
        direct: Whether feedback leads from the top to every block, instead of from block to block.
        top: Where targets start: the "logits", or the last "hidden" block, by the gradient through the last block.
        nudging: Positive length of the step from the top to its target.
        noise: Positive standard deviation of the noise that feedback learns from.
        iterations: Updates of each feedback network in a batch.
        feedback_loss: What feedback learns: to undo blocks ("reconstruction"), or their transposed "jacobian".
        feedback_lr: Learning rate of the feedback as a multiple of that of the blocks.
        hidden: Channels or units of a hidden layer of the feedback; 0 for none.
    """
    end = top_block(len(specs), top)
    sources = [specs[end] if direct else specs[index + 1] for index in range(end)]
    feedback = [
        feedback_net(source.shape, spec.shape, hidden=hidden) for spec, source in zip(specs[:end], sources, strict=True)
    ]
    return TargetPropagation(
        net,
        specs,
        feedback,
        difference=difference,
        direct=direct,
        top=top,
        nudging=nudging,
        noise=noise,
        iterations=iterations,
        feedback_loss=feedback_loss,
        feedback_lr=feedback_lr,
    )


def _target(
    name: str, title: str, year: int, key: str, fixed: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Method:
    return Method(
        name,
        title,
        "target propagation",
        year,
        paper(key),
        target_propagation,
        "one feedback network a block below the top",
        fixed,
        defaults,
        messages="targets",
        passes=3,
        updates_in_forward=False,
        global_error=True,
    )


METHODS = (
    _target(
        "tp",
        "Target propagation",
        2015,
        "lee2015difference",
        {"difference": False, "direct": False},
        # A block's target also holds the feedback's error, beside which a small step is lost.
        {"nudging": 100.0, "feedback_loss": "reconstruction"},
    ),
    _target(
        "dtp",
        "Difference target propagation",
        2015,
        "lee2015difference",
        {"difference": True, "direct": False},
        {"feedback_loss": "jacobian"},
    ),
    _target(
        "direct-dtp",
        "Direct difference target propagation",
        2020,
        "meulemans2020theoretical",
        {"difference": True, "direct": True},
        {"feedback_loss": "jacobian"},
    ),
)
