"""How sure a prediction is, and whether it may be believed.

References:
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599.
    Schwartz et al., "The Right Tool for the Job: Matching Model and Instance Complexities", ACL 2020,
    arXiv:2004.07453 (a temperature for every exit).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

Measure = Literal["confidence", "margin", "entropy"]
MEASURES: tuple[Measure, ...] = ("confidence", "margin", "entropy")


def fit_temperature(logits: Tensor, y: Tensor) -> float | None:
    """Return the temperature T > 0 that makes softmax(logits / T) fit held-out labels best.

    T = argmin (1/N) sum_n [ logsumexp(z_n / T) - z_{n,y_n} / T ], by LBFGS on log T in float64. In 1/T this is convex,
    so that there is one minimum or none: none if every label has the largest logit of its sample, for then ever smaller
    T are better, or if labels have no larger logits than other classes on average, for then ever larger ones are.

    Args:
        logits: z, of images that neither the network nor its settings were fitted to. Shape (N, Z).
        y: Class indices. Shape (N,).

    Returns:
        T, or None where there is no best one.

    Raises:
        ValueError: No samples, shapes that do not fit, or logits that are not finite.
    """
    _check(logits, y)
    z = logits.detach().double().cpu()
    y = y.cpu()
    own = z.gather(1, y[:, None])
    z = z - own  # the loss is then mean log sum_k exp(z_k / T), without cancellation
    if bool((z <= 0).all()) or bool(z.mean() >= 0):
        return None
    start = float(z.std(1, correction=0).mean().log())
    log_temperature = torch.full((), start, dtype=torch.float64, requires_grad=True)
    optimizer: Optimizer = torch.optim.LBFGS(
        [log_temperature], max_iter=100, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        optimizer.zero_grad()
        value = (z * (-log_temperature).exp()).logsumexp(1).mean()
        torch.autograd.backward(value)
        return float(value.detach())

    optimizer.step(loss)
    return math.exp(float(log_temperature.detach()))


def expected_calibration_error(logits: Tensor, y: Tensor, *, temperature: float = 1.0, num_bins: int = 15) -> float:
    """Return how far confidences are from accuracies, 0 .. 1.

    ECE = sum_b |B_b| / N |accuracy(B_b) - mean confidence(B_b)|, with confidence c_n = max_k softmax(z_n / T)_k and
    bins B_b of c_n in ((b - 1) / B, b / B].

    Args:
        logits: z. Shape (N, Z).
        y: Class indices. Shape (N,).
        temperature: T > 0.
        num_bins: B, at least 1; 15 is usual.

    Raises:
        ValueError: No samples, shapes that do not fit, logits that are not finite, or a setting out of its range.
    """
    _check(logits, y)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: must be positive and finite, got {temperature}")
    if num_bins < 1:
        raise ValueError(f"num_bins: must be at least 1, got {num_bins}; 15 is usual")
    confidence, predicted = (logits.double() / temperature).softmax(1).max(1)
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gap = (predicted == y).double() - confidence
    gaps = torch.zeros(num_bins, dtype=torch.float64, device=gap.device).index_add_(0, bins, gap)
    return float(gaps.abs().sum()) / len(y)


def certainty(logits: Tensor, measure: Measure, temperature: float = 1.0) -> Tensor:
    """Return how sure predictions are, from 0, all classes alike, or little more, to 1, one class alone.

    With p = softmax(logits / T), sorted p_(1) >= p_(2) >= ..: confidence p_(1); margin p_(1) - p_(2); entropy
    1 - H(p) / log Z with H(p) = -sum_k p_k log p_k.

    Args:
        logits: Shape (N, Z), Z >= 2.
        measure: Which one.
        temperature: T > 0.

    Shape: (N,). NaN where a logit is.

    Raises:
        ValueError: An unknown measure.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure: must be one of {', '.join(MEASURES)}, got {measure!r}")
    scaled = logits / temperature
    if measure == "entropy":
        entropy: Tensor = torch.special.entr(scaled.softmax(1)).sum(1)
        return (1 - entropy / math.log(logits.shape[1])).clamp(0, 1)  # rounding
    if measure == "margin":
        first, second = scaled.softmax(1).topk(2).values.unbind(1)
        return first - second
    return scaled.softmax(1).amax(1)


def _check(logits: Tensor, y: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[1] < 2 or y.shape != logits.shape[:1] or not len(y):
        raise ValueError(
            "logits: need one row a label, of two classes or more, and at least one, got logits of shape "
            f"{tuple(logits.shape)} and labels of shape {tuple(y.shape)}"
        )
    if not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
        raise ValueError(
            f"y: labels must lie in 0 .. {logits.shape[1] - 1}, one for each logit, "
            f"got {int(y.min())} .. {int(y.max())}"
        )
    if not bool(logits.isfinite().all()):
        raise ValueError("logits: must be finite to be calibrated, got NaN or infinity; the network has diverged")
