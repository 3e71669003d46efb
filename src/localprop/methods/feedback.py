"""Feedback: errors that are sent back by other weights, or straight to every block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from localprop.citations import paper
from localprop.functional.feedback import Initialisation, centred_sign, initial_magnitude, initial_std
from localprop.methods.common import Specs, objectives_of
from localprop.methods.method import Method
from localprop.network import LocalNetwork
from localprop.objectives import RandomTargetProjection
from localprop.rules import DirectFeedback, FeedbackAlignment, Greedy, Rule
from localprop.rules.feedback import RandomFeedback, RedrawnSignFeedback, SignFeedback


def feedback_alignment(net: LocalNetwork, specs: Specs) -> FeedbackAlignment:
    """Send the error back by fixed random weights."""
    return FeedbackAlignment(net, specs, RandomFeedback)


def uniform_sign(net: LocalNetwork, specs: Specs, *, initialisation: Initialisation = "kaiming") -> FeedbackAlignment:
    """Send the error back by the signs of the weights, times the standard deviation that they started with.

    Args:
        net: The network.
        specs: Its blocks.
        initialisation: What the weights are taken to start with: "kaiming", PyTorch's own, or "xavier".
    """

    def feedback(weight: Tensor) -> SignFeedback:
        return SignFeedback(weight, weight.new_tensor(initial_std(weight.shape, initialisation)))

    return FeedbackAlignment(net, specs, feedback)


def redrawn_sign(net: LocalNetwork, specs: Specs, *, initialisation: Initialisation = "kaiming") -> FeedbackAlignment:
    """Send the error back by the signs of the weights, with magnitudes drawn anew every step.

    Args:
        net: The network.
        specs: Its blocks.
        initialisation: How magnitudes are drawn: as weights are by "kaiming", PyTorch's own, or "xavier".
    """
    return FeedbackAlignment(net, specs, lambda weight: RedrawnSignFeedback(weight, initialisation))


def fixed_sign(net: LocalNetwork, specs: Specs, *, initialisation: Initialisation = "kaiming") -> FeedbackAlignment:
    """Send the error back by the signs of the weights, with magnitudes drawn once.

    Args:
        net: The network.
        specs: Its blocks.
        initialisation: How magnitudes are drawn: as weights are by "kaiming", PyTorch's own, or "xavier".
    """
    return FeedbackAlignment(net, specs, lambda weight: SignFeedback(weight, initial_magnitude(weight, initialisation)))


def direct_feedback(net: LocalNetwork, specs: Specs) -> DirectFeedback:
    """Send the error straight to every block."""
    return DirectFeedback(net, specs)


def direct_sign_feedback(net: LocalNetwork, specs: Specs, *, centred: bool = False) -> DirectFeedback:
    """Send the sign of the error straight to every block.

    Args:
        net: The network.
        specs: Its blocks.
        centred: Whether the mean over classes is taken off the signs. It is the same for every sample, (Z - 2) / Z, and
            pushes every unit one way for good.
    """
    return DirectFeedback(net, specs, centred_sign if centred else torch.sign)


def random_target(net: LocalNetwork, specs: Specs) -> Greedy:
    """Send the target straight to every block."""
    return Greedy(net, objectives_of(specs, RandomTargetProjection))


_RANDOM = {"lr": 0.005}
"""Random feedback wants larger steps than the networks' recipes take: see docs/methods."""


def _by_error(
    name: str,
    title: str,
    year: int,
    source: str,
    builder: Callable[..., Rule],
    *,
    messages: Literal["gradients", "errors"] = "gradients",
    passes: int = 1,
    global_error: bool = True,
    training: Mapping[str, float] = MappingProxyType({}),
) -> Method:
    return Method(
        name,
        title,
        "feedback",
        year,
        paper(source),
        builder,
        "none",
        training=training,
        messages=messages,
        passes=passes,
        updates_in_forward=False,
        global_error=global_error,
    )


METHODS = (
    _by_error(
        "fa",
        "Feedback alignment: fixed random backward weights",
        2016,
        "lillicrap2016random",
        feedback_alignment,
        training=_RANDOM,
    ),
    _by_error(
        "usf",
        "Uniform sign-symmetric feedback: the signs of the weights",
        2016,
        "liao2016important",
        uniform_sign,
    ),
    _by_error(
        "brsf",
        "Batchwise random sign-symmetric feedback: redrawn magnitudes",
        2016,
        "liao2016important",
        redrawn_sign,
    ),
    _by_error(
        "frsf",
        "Fixed random sign-symmetric feedback: fixed magnitudes",
        2016,
        "liao2016important",
        fixed_sign,
    ),
    _by_error(
        "dfa",
        "Direct feedback alignment: the error, projected to every block",
        2016,
        "nokland2016direct",
        direct_feedback,
        messages="errors",
        passes=2,
        training=_RANDOM,
    ),
    _by_error(
        "sdfa",
        "Sign-based direct feedback alignment",
        2021,
        "frenkel2021learning",
        direct_sign_feedback,
        messages="errors",
        training=_RANDOM,
        global_error=False,  # the sign of softmax - onehot is the label's alone
        passes=2,
    ),
    Method(
        "drtp",
        "Direct random target projection: the target, projected to every block",
        "feedback",
        2021,
        paper("frenkel2021learning"),
        random_target,
        "none",
        training=_RANDOM,
    ),
)
