"""Mutual information of features with labels and with Gaussians, by variational lower bounds.

References:
    Barber and Agakov, "The IM algorithm: a variational approach to information maximization", NeurIPS 2003 (the bound);
    Wang et al., "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training", ICLR 2021,
    arXiv:2101.10832 (its use on frozen features, layer by layer);
    McAllester and Stratos, "Formal limitations on the measurement of mutual information", AISTATS 2020,
    arXiv:1811.04251 (why no estimate from N samples can be trusted far above log N).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from localprop.analysis.checks import check_features, check_target
from localprop.seed import derive, seeded

WIDTH = 256
_BATCH_SIZE = 256
_PATIENCE = 8
_HELD_OUT = 0.2
_NEAR = 0.01
_GAIN_NATS = 2e-3


@dataclass(frozen=True)
class Information:
    """An estimated lower bound on mutual information, in nats.

    Attributes:
        nats: The bound; 0 where it came out negative.
        bound_nats: The bound as it came out.
        most_nats: What the estimate cannot exceed: H(v) of a label, log N of the test samples otherwise.
        train_nats: The bound on the samples that the critic was fitted to: far above `bound_nats`, it has learned them
            by heart.
        flags: What is wrong with the estimate: "negative" (it says nothing), "saturated" (it has come to `most_nats`:
            there may be more), "not converged" (the critic was still getting better when its epochs ran out). None of
            them: empty.
    """

    nats: float
    bound_nats: float
    most_nats: float
    train_nats: float
    flags: tuple[str, ...]


def label_information(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    epochs: int = 60,
    seed: int = 0,
) -> Information:
    """Estimate I(h; v) of frozen features with a label v: the class y, or a nuisance r that is known.

    I(h; v) = H(v) - H(v|h) >= H(v) - E[-log q(v|h)], on test samples, with the critic q a perceptron of two hidden
    layers of 256 on standardised features, the same for every block. H(v) is that of the test labels' frequencies. The
    critic is fitted by AdamW to four fifths of the training samples; the rest chooses its epoch.

    Args:
        features: Training features. Shape (N, P).
        labels: v. Shape (N,).
        test_features: Features of other samples. Shape (M, P).
        test_labels: Their v. Shape (M,).
        epochs: Most passes over the training samples.
        seed: Of the critic's weights and batches.

    Cost: (P + 256) 256 + 256 V parameters while it is fitted.

    Raises:
        ValueError: Shapes do not fit, numbers are not finite, or there are too few samples.

    Note: A bound: I may be larger, by all that the critic does not find. Compare blocks under one critic. H(v) from
        frequencies of M samples is too small by about (V - 1) / (2 M).
    """
    _check(features, test_features, epochs)
    check_target("labels", labels, len(features))
    check_target("test_labels", test_labels, len(test_features))
    num_labels = 1 + int(max(labels.max(), test_labels.max()))
    shares = torch.bincount(test_labels).double() / len(test_labels)
    entropy = float(torch.special.entr(shares).sum())

    def loss(outputs: Tensor, v: Tensor) -> Tensor:
        return F.cross_entropy(outputs, v)

    found, train, converged = _fit(features, labels, test_features, test_labels, num_labels, loss, epochs, seed)
    return _judged(entropy - found, entropy, entropy - train, converged)


def gaussian_information(
    features: Tensor,
    values: Tensor,
    test_features: Tensor,
    test_values: Tensor,
    *,
    epochs: int = 60,
    seed: int = 0,
) -> Information:
    """Estimate I(h; v) of frozen features with real numbers v, both conditional and marginal taken as Gaussian.

    I(h; v) = h(v) - h(v|h), estimated by E[-log g(v)] - E[-log q(v|h)] on test samples: q has the mean that a
    perceptron of two hidden layers of 256 gives, plus a linear map, and one variance a dimension; g is the Gaussian of
    the training values' mean and covariance.

    Args:
        features: Training features. Shape (N, P).
        values: v. Shape (N, V).
        test_features: Features of other samples. Shape (M, P).
        test_values: Their v. Shape (M, V).
        epochs: Most passes over the training samples.
        seed: Of the critic's weights and batches.

    Raises:
        ValueError: Shapes do not fit, numbers are not finite, there are too few samples, or the values' covariance is
            singular.

    Note: For Gaussian v it is a lower bound. For other v, h(v) is below the Gaussian's, so it can be too large: compare
        blocks only. The errors of q are taken as independent between dimensions of v, which makes the bound looser.
    """
    _check(features, test_features, epochs)
    check_features("values", values)
    check_features("test_values", test_values, fewest=2)
    if len(values) != len(features) or test_values.shape != (len(test_features), values.shape[1]):
        raise ValueError(
            f"values, test_values: need one row a sample, got {tuple(values.shape)} and {tuple(test_values.shape)} for "
            f"{len(features)} and {len(test_features)} samples"
        )
    values, test_values = values.detach(), test_values.detach()
    mean, std = values.mean(0), values.std(0, correction=0)
    if float(std.min()) == 0:
        raise ValueError(
            f"values: dimension {int(std.argmin())} is constant, so nothing can be known of it; leave it out"
        )
    v, test_v = (((value - mean) / std).float() for value in (values, test_values))
    factor, failed = torch.linalg.cholesky_ex(v.T.double().cov(correction=0).view(v.shape[1], v.shape[1]))
    if int(failed):
        raise ValueError("values: their covariance is singular; leave dependent dimensions out")
    whitened = torch.linalg.solve_triangular(factor, test_v.double().T, upper=False)
    log_determinant = 2 * float(factor.diagonal().log().sum())
    marginal_nats = 0.5 * (
        float(whitened.square().sum(0).mean()) + log_determinant + v.shape[1] * math.log(2 * math.pi)
    )

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        drawn, log_variance = outputs.chunk(2, 1)
        each = F.gaussian_nll_loss(drawn, target, log_variance.exp(), full=True, reduction="none", eps=1e-12)
        return each.sum(1).mean()

    found, train, converged = _fit(features, v, test_features, test_v, 2 * v.shape[1], loss, epochs, seed)
    return _judged(marginal_nats - found, math.log(len(test_features)), marginal_nats - train, converged)


class _Critic(nn.Module):
    """A perceptron of two hidden layers, and a linear map beside it."""

    def __init__(self, num_features: int, num_outputs: int) -> None:
        super().__init__()
        layers = [nn.Linear(num_features, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
        last = nn.Linear(WIDTH, num_outputs)
        self.deep = nn.Sequential(*layers, last)
        self.linear = nn.Linear(num_features, num_outputs, bias=False)
        for layer in (last, self.linear):
            nn.init.zeros_(layer.weight)  # it begins as a guess that knows nothing of h

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.deep(z) + self.linear(z)
        return out


@torch.enable_grad()
def _fit(
    features: Tensor,
    v: Tensor,
    test_features: Tensor,
    test_v: Tensor,
    num_outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    epochs: int,
    seed: int,
) -> tuple[float, float, bool]:
    """Return the critic's loss on test and on training samples, and whether it had stopped getting better."""
    device = features.device
    features, test_features = features.detach().float(), test_features.detach().float()
    mean, std = features.mean(0), features.std(0, correction=0)
    std = torch.where(std > 1e-6 * features.abs().amax(0), std, 1.0)
    z, test_z = ((h - mean) / std for h in (features, test_features))
    test_z = test_z.clamp(-10, 10)  # what lies that far out was not seen in training, and would decide the mean
    with seeded(derive(seed, "critic"), device):
        order = torch.randperm(len(z), device=device)
        held_out, rest = order.tensor_split([max(1, round(_HELD_OUT * len(z)))])
        critic = _Critic(z.shape[1], num_outputs).to(device)
        optimizer = torch.optim.AdamW(critic.parameters(), lr=2e-3, weight_decay=1e-2)
        best, gained, last_gain, kept = math.inf, math.inf, 0, critic.state_dict()
        for epoch in range(epochs):
            for batch in torch.split(rest[torch.randperm(len(rest), device=device)], _BATCH_SIZE):
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss(critic(z[batch]), v[batch]))
                optimizer.step()
            with torch.no_grad():
                now = float(loss(critic(z[held_out]), v[held_out]))
            if now < best:
                best, kept = now, copy.deepcopy(critic.state_dict())
            if best < gained - _GAIN_NATS:
                gained, last_gain = best, epoch
            elif epoch - last_gain >= _PATIENCE:
                break
        critic.load_state_dict(kept)
        with torch.no_grad():
            found = float(loss(critic(test_z), test_v))
            train = float(loss(critic(z[rest]), v[rest]))
    return found, train, epoch - last_gain >= _PATIENCE


def _judged(bound: float, most: float, train: float, converged: bool) -> Information:
    flags = []
    if bound < 0:
        flags.append("negative")
    if most > 0 and bound >= (1 - _NEAR) * most:
        flags.append("saturated")
    if not converged:
        flags.append("not converged")
    return Information(max(0.0, bound), bound, most, train, tuple(flags))


def _check(features: Tensor, test_features: Tensor, epochs: int) -> None:
    if epochs < 1:
        raise ValueError(f"epochs: must be at least 1, got {epochs}")
    check_features("features", features, fewest=5)
    check_features("test_features", test_features)
    if features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"test_features: need {features.shape[1]} features as in training, got {test_features.shape[1]}"
        )
