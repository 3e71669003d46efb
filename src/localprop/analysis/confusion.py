"""Confusion and similarity: whether classes that are mixed up have like embeddings."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from localprop.analysis.checks import check_target
from localprop.analysis.embeddings import cosine_matrix
from localprop.analysis.figures import scatter_figure
from localprop.analysis.subject import Finding, Subject
from localprop.seed import derive

_RESAMPLES = 1000
_LEVEL = 0.95


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation over pairs of classes.

    Attributes:
        spearman: rho, or None if one of the two is constant.
        low: Lower end of its 95 % interval, or None if there is none.
        high: Upper end.
        pairs: Pairs of classes that it is taken over.
    """

    spearman: float | None
    low: float | None
    high: float | None
    pairs: int


def confusion_rates(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Return how often every two classes are mixed up: (P(predicted j | class i) + P(predicted i | class j)) / 2.

    Args:
        predicted: Predicted classes. Shape (N,).
        target: True classes. Shape (N,).
        num_classes: Z.

    Shape: (Z, Z), float64, symmetric; NaN where one of the two classes has no samples.

    Raises:
        ValueError: Shapes or labels do not fit.

    Example:
        >>> import torch
        >>> confusion_rates(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 1]), 2)[0, 1].item()
        0.25
    """
    check_target("target", target, len(target), num_classes)
    check_target("predicted", predicted, len(target), num_classes)
    counts = torch.bincount(target * num_classes + predicted, minlength=num_classes**2)
    counts = counts.view(num_classes, num_classes).double()
    rates = counts / counts.sum(1, keepdim=True)  # 0 / 0 is NaN: nothing is known of a class without samples
    return (rates + rates.T) / 2


def rank_correlation(first: Tensor, second: Tensor, *, seed: int = 0) -> RankCorrelation:
    """Correlate two symmetric matrices over pairs of classes by ranks, with a bootstrap interval over classes.

    rho is Pearson's correlation of the ranks, ties at their mean rank. The interval is between the 2.5 % and the 97.5 %
    quantile of 1000 resamples. Classes are drawn, not pairs: the pairs of one class are not independent, and resampling
    them would give an interval that is too narrow. Pairs of a class with itself are left out of a resample.

    Args:
        first: Shape (Z, Z); pairs with NaN in either matrix are left out.
        second: Shape (Z, Z).
        seed: Of the resamples.

    Raises:
        ValueError: The matrices do not fit each other.
    """
    if first.dim() != 2 or first.shape[0] != first.shape[1] or first.shape != second.shape:
        raise ValueError(f"first, second: need two (Z, Z) matrices, got {tuple(first.shape)} and {tuple(second.shape)}")
    known = ~(first.isnan() | second.isnan()).cpu()
    rows, columns = torch.triu_indices(len(first), len(first), 1)
    kept = known[rows, columns]
    rows, columns = rows[kept], columns[kept]
    a, b = first.double().cpu()[rows, columns], second.double().cpu()[rows, columns]
    tied = _ties(a), _ties(b)
    rho = _spearman(*tied, torch.ones(len(a), dtype=torch.float64))
    classes = torch.bincount(torch.cat([rows, columns]), minlength=1).nonzero().flatten()
    if rho is None or len(classes) < 4:  # resamples of three classes hold three pairs at most
        return RankCorrelation(rho, None, None, len(rows))
    generator = torch.Generator().manual_seed(derive(seed, "rank correlation"))
    resampled = []
    for _ in range(_RESAMPLES):
        drawn = classes[torch.randint(len(classes), (len(classes),), generator=generator)]
        times = torch.bincount(drawn, minlength=len(first)).double()
        again = _spearman(*tied, times[rows] * times[columns])
        if again is not None:
            resampled.append(again)
    if not resampled:
        return RankCorrelation(rho, None, None, len(rows))
    tail = (1 - _LEVEL) / 2
    ends = torch.tensor(resampled, dtype=torch.float64).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return RankCorrelation(rho, float(ends[0]), float(ends[1]), len(rows))


def _ties(values: Tensor) -> Tensor:
    """Return a number for each value, in their order, the same for equal ones."""
    return torch.searchsorted(values.sort().values, values)


def _spearman(a: Tensor, b: Tensor, weights: Tensor) -> float | None:
    """Correlate ranks of pairs that are counted `weights` times; a and b as `_ties` gives them."""
    total = weights.sum()
    if int((weights > 0).sum()) < 3:
        return None
    ranks = []
    for ties in (a, b):
        counts = torch.bincount(ties, weights, minlength=len(ties))
        rank = (counts.cumsum(0) - counts / 2)[ties]  # those of equal values at their mean
        ranks.append(rank - (weights * rank).sum() / total)
    sizes = [float((weights * rank.square()).sum()) for rank in ranks]
    if min(sizes) <= 1e-12 * float(total) ** 3:
        return None
    return float((weights * ranks[0] * ranks[1]).sum()) / math.sqrt(sizes[0] * sizes[1])


def confusion_of_run(subject: Subject) -> Finding:
    """Correlate how often classes are mixed up with the cosine of their embeddings, one row a block with a dictionary.

    Predictions are each block's own, on the test images; embeddings are those that the block compares with, several of
    a class averaged.

    Raises:
        ValueError: The method has no label embeddings, or no block with them makes a prediction.
    """
    rows, details = [], {}
    dictionaries = subject.dictionaries()
    test = subject.test_features
    names = subject.run.facts.class_names
    for index, objective in sorted(dictionaries.items()):
        logits = test.logits[index]
        if logits is None:
            continue
        t = objective.block_embeddings().detach().cpu()
        t = t.view(len(names), -1, t.shape[1]).mean(1)
        rates, cosines = confusion_rates(logits.argmax(1), test.target, len(names)), cosine_matrix(t)
        found = rank_correlation(rates, cosines, seed=subject.run.config.seed)
        first, second = torch.triu_indices(len(names), len(names), 1)
        pairs = torch.stack([first, second, cosines[first, second], 100 * rates[first, second]]).T
        worst = [row for row in sorted(pairs.tolist(), key=lambda row: -row[3]) if not math.isnan(row[3])][:1]
        mixed = " / ".join(names[int(place)] for place in worst[0][:2]) if worst else None
        rows.append({"block": index, "name": subject.names[index], **asdict(found), "most_confused": mixed})
        details[subject.names[index]] = [
            {"classes": [names[int(i)], names[int(j)]], "cosine": cosine, "confusion_percent": rate}
            for i, j, cosine, rate in pairs.tolist()
        ]
    if not rows:
        raise ValueError("no block with label embeddings makes a prediction of its own")
    return Finding(rows, {"pairs": details})


def confusion_figure(finding: Finding) -> Figure:
    """Draw confusion over cosine for the last block with a dictionary."""
    row = finding.rows[-1]
    points = [pair for pair in finding.details["pairs"][row["name"]] if pair["confusion_percent"] is not None]
    rho = row["spearman"]
    told = "" if rho is None else f", Spearman {rho:.2f}"
    if row["low"] is not None:
        told += f" [{row['low']:.2f}, {row['high']:.2f}]"
    few = len(points) <= 60
    return scatter_figure(
        [pair["cosine"] for pair in points],
        [pair["confusion_percent"] for pair in points],
        "cosine of the two classes' embeddings",
        "confusion (%)",
        f"{row['name']}{told}",
        names=[" / ".join(pair["classes"]) if few and pair["confusion_percent"] >= 5 else "" for pair in points],
    )
