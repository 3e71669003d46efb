"""Linear probes: what a linear classifier reads in features that it does not change.

References:
    Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016, arXiv:1610.01644.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from localprop.analysis.checks import check_features, check_target
from localprop.analysis.figures import depth_figure
from localprop.analysis.subject import Finding, Subject
from localprop.seed import derive

PENALTIES = (1e-4, 1e-2, 1.0)
_HELD_OUT = 0.2


@dataclass(frozen=True)
class Probe:
    """A linear probe's errors in percent.

    Attributes:
        test_error: On samples that it was not fitted to.
        train_error: On the samples that it was fitted to.
        chance_error: On the test samples, of always answering the most frequent class of the training samples.
        penalty: lambda, chosen on training samples that were held out of the choice's fits.
        converged: Whether the last fit ended at its minimum: a probe that did not may read more than it shows.
    """

    test_error: float
    train_error: float
    chance_error: float
    penalty: float
    converged: bool


def linear_probe(
    features: Tensor,
    target: Tensor,
    test_features: Tensor,
    test_target: Tensor,
    *,
    num_classes: int | None = None,
    penalties: Sequence[float] = PENALTIES,
    iterations: int = 200,
    seed: int = 0,
) -> Probe:
    """Fit a multinomial logistic regression to frozen features, and measure its error on others.

    Minimises (1/N) sum_n -log softmax(W z_n + b)_{y_n} + (lambda / 2) |W|_F^2 by L-BFGS on standardised features z.
    lambda is the penalty with the fewest errors on a fifth of the training samples, held out; the probe is then fitted
    to all of them. The test samples choose nothing.

    Args:
        features: Training features. Shape (N, P).
        target: Their classes. Shape (N,).
        test_features: Shape (M, P).
        test_target: Shape (M,).
        num_classes: Z; default the largest label and one.
        penalties: Values of lambda, above 0; a single one is not chosen, and needs no held-out samples.
        iterations: Most iterations of a fit.
        seed: Chooses the held-out samples.

    Cost: Z (P + 1) parameters; a pass over the features an iteration.

    Raises:
        ValueError: Shapes do not fit, numbers are not finite, there are too few samples, or a setting is out of range.

    Example:
        >>> import torch
        >>> target = torch.arange(20) % 2
        >>> h = target[:, None] + 0.01 * torch.randn(20, 1)
        >>> linear_probe(h, target, h, target).test_error
        0.0
    """
    fewest = 5 if len(penalties) > 1 else 2
    check_features("features", features, fewest=fewest)
    check_features("test_features", test_features, fewest=1)
    if features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"test_features: need {features.shape[1]} features as in training, got {test_features.shape[1]}"
        )
    if not penalties or min(penalties) <= 0:
        raise ValueError(f"penalties: need numbers above 0, got {tuple(penalties)}; without a penalty W has no bound")
    check_target("target", target, len(features), num_classes)
    check_target("test_target", test_target, len(test_features), num_classes)
    if num_classes is None:
        num_classes = 1 + int(max(target.max(), test_target.max()))
    features, test_features = features.detach().float(), test_features.detach().float()
    mean, std = features.mean(0), features.std(0, correction=0)
    std = torch.where(std > 1e-6 * features.abs().amax(0), std, 1.0)  # a constant feature stays one
    z, test_z = ((h - mean) / std for h in (features, test_features))

    start = z.new_zeros(num_classes, z.shape[1]), z.new_zeros(num_classes)
    penalty = penalties[0]
    if len(penalties) > 1:
        generator = torch.Generator().manual_seed(derive(seed, "probe"))
        order = torch.randperm(len(z), generator=generator).to(z.device)
        held_out, rest = order.tensor_split([max(1, round(_HELD_OUT * len(z)))])
        errors = []
        for candidate in sorted(penalties, reverse=True):  # from the easiest fit to the hardest, each from the last
            start, _ = _fit(z[rest], target[rest], start, candidate, iterations)
            errors.append((_error(z[held_out], target[held_out], *start), -candidate))
        penalty = -min(errors)[1]  # of equally good ones the largest
    (weight, bias), converged = _fit(z, target, start, penalty, iterations)
    guess = target.bincount().argmax()
    return Probe(
        _error(test_z, test_target, weight, bias),
        _error(z, target, weight, bias),
        100 * float((test_target != guess).double().mean()),
        penalty,
        converged,
    )


def probes_of_run(subject: Subject) -> Finding:
    """Probe every block's pooled features, fitted to training images and measured on test images, one row a block.

    Beside it stands the error of the block's own prediction, if it makes one, on the same test images.
    """
    train, test = subject.train_features, subject.test_features
    rows = []
    for index, name in enumerate(subject.names):
        found = linear_probe(
            train.pooled[index],
            train.target,
            test.pooled[index],
            test.target,
            num_classes=len(subject.run.facts.class_names),
            seed=subject.run.config.seed,
        )
        logits = test.logits[index]
        own = None if logits is None else 100 * float((logits.argmax(1) != test.target).double().mean())
        features = train.pooled[index].shape[1]
        rows.append({"block": index, "name": name, "features": features, **asdict(found), "own_error": own})
    return Finding(rows)


def probes_figure(finding: Finding) -> Figure:
    """Draw the errors over depth."""
    keys = {"test_error": "probe, test", "train_error": "probe, training", "own_error": "own prediction, test"}
    curves = {label: [row[key] for row in finding.rows] for key, label in keys.items()}
    return depth_figure([row["name"] for row in finding.rows], {"error (%)": curves})


@torch.enable_grad()
def _fit(
    z: Tensor, target: Tensor, start: tuple[Tensor, Tensor], penalty: float, iterations: int
) -> tuple[tuple[Tensor, Tensor], bool]:
    weight, bias = (part.clone().requires_grad_() for part in start)
    fitting = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=1e-4,
        tolerance_change=1e-8,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        fitting.zero_grad()
        loss = F.cross_entropy(F.linear(z, weight, bias), target) + 0.5 * penalty * weight.square().sum()
        torch.autograd.backward(loss)
        return loss

    fitting.step(objective)  # type: ignore[no-untyped-call] # PyTorch gives it no types
    spent = fitting.state[weight]["n_iter"]
    return (weight.detach(), bias.detach()), spent < iterations


def _error(z: Tensor, target: Tensor, weight: Tensor, bias: Tensor) -> float:
    return 100 * float((F.linear(z, weight, bias).argmax(1) != target).double().mean())
