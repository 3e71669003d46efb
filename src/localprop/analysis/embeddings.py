"""Label embeddings: which classes a dictionary puts near each other, and whether these belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from localprop.analysis.checks import check_features, check_target
from localprop.analysis.figures import matrix_figure, scatter_figure
from localprop.analysis.subject import Finding, Subject
from localprop.functional.dictionary import effective_rank
from localprop.train.rows import dictionaries

_FEW_CLASSES = 12


@dataclass(frozen=True)
class Spectrum:
    """Size and spread of a dictionary.

    Attributes:
        mean_norm: Mean length of an embedding.
        std_norm: Standard deviation of the lengths.
        effective_rank: exp of the entropy of the normalised singular values; at most min(Z, C).
        mean_cosine: Mean cosine over pairs.
    """

    mean_norm: float
    std_norm: float
    effective_rank: float
    mean_cosine: float


@dataclass(frozen=True)
class Neighbourhood:
    """Whether embeddings of one super-class lie together.

    Attributes:
        purity: Mean share of an embedding's nearest neighbours, by cosine, that are of its super-class.
        chance: The same of neighbours drawn at random.
        neighbours: k.
        within_cosine: Mean cosine over pairs of one super-class; None if there is no such pair.
        between_cosine: Mean cosine over pairs of two.
    """

    purity: float
    chance: float
    neighbours: int
    within_cosine: float | None
    between_cosine: float | None


def cosine_matrix(embeddings: Tensor) -> Tensor:
    """Return the cosines of every two embeddings, shape (Z, C) -> (Z, Z), float64; zero for one of length 0."""
    check_features("embeddings", embeddings)
    unit = F.normalize(embeddings.detach().double(), dim=1, eps=1e-300)
    return unit @ unit.T


def spectrum(embeddings: Tensor) -> Spectrum:
    """Measure the lengths of embeddings, and how many directions they take up.

    For the effective rank see `localprop.functional.dictionary.effective_rank`.

    Args:
        embeddings: T, at least two. Shape (Z, C).

    Raises:
        ValueError: Fewer than two embeddings, numbers that are not finite, or all of them zero.
    """
    cosines = cosine_matrix(embeddings)
    rank = effective_rank(embeddings)
    if not rank:
        raise ValueError("embeddings: are all zero, so they have no direction; train the dictionary first")
    norms = embeddings.detach().double().norm(dim=1)
    return Spectrum(
        float(norms.mean()),
        float(norms.std(correction=0)),
        rank,
        float(_pairs(cosines).mean()),
    )


def neighbourhood(embeddings: Tensor, super_of: Sequence[int], *, neighbours: int = 4) -> Neighbourhood:
    """Measure how far embeddings group by super-class.

    Purity = (1/Z) sum_z (1/k) |{nearest k of z by cosine} of z's super-class|; chance = (1/Z) sum_z (m_z - 1) / (Z - 1)
    with m_z the size of z's super-class.

    Args:
        embeddings: Shape (Z, C).
        super_of: The super-class of each class.
        neighbours: k, 1 .. Z - 1; CIFAR-100 has four others in each super-class.

    Raises:
        ValueError: A setting or a shape does not fit.
    """
    cosines = cosine_matrix(embeddings)
    num_classes = len(cosines)
    groups = torch.as_tensor(super_of, device=cosines.device)
    check_target("super_of", groups, num_classes)
    if not 1 <= neighbours < num_classes:
        raise ValueError(f"neighbours: must lie in 1 .. {num_classes - 1} for {num_classes} classes, got {neighbours}")
    same = groups[:, None] == groups
    nearest = cosines.clone().fill_diagonal_(-math.inf).topk(neighbours, dim=1).indices
    together = _pairs(same)
    pairs = _pairs(cosines)
    return Neighbourhood(
        float(same.gather(1, nearest).double().mean()),
        float((same.sum(1) - 1).double().mean()) / (num_classes - 1),
        neighbours,
        float(pairs[together].mean()) if bool(together.any()) else None,
        float(pairs[~together].mean()) if not bool(together.all()) else None,
    )


def principal_components(embeddings: Tensor, num_components: int = 2) -> tuple[Tensor, Tensor]:
    """Project embeddings on their first principal components.

    Args:
        embeddings: Shape (Z, C).
        num_components: At least 1; components beyond min(Z, C) are zero.

    Returns:
        The projections, shape (Z, num_components), each with its largest entry positive; and the shares of the variance
        that the components explain.

    Raises:
        ValueError: Fewer than two embeddings, or numbers that are not finite.
    """
    check_features("embeddings", embeddings)
    t = embeddings.detach().double()
    u, s, _ = torch.linalg.svd(t - t.mean(0), full_matrices=False)
    projected = F.pad(u * s, (0, max(0, num_components - u.shape[1])))[:, :num_components]
    largest = projected.gather(0, projected.abs().argmax(0, keepdim=True))
    total = s.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    shares = F.pad(s.square() / total, (0, max(0, num_components - len(s))))[:num_components]
    return projected * torch.where(largest < 0, -1.0, 1.0), shares


def t_sne(embeddings: Tensor, *, perplexity: float = 15.0, seed: int = 0) -> Tensor:
    """Lay embeddings out in two dimensions by t-SNE on cosine distances, from a PCA start.

    Args:
        embeddings: Shape (Z, C).
        perplexity: Above 0 and below Z.
        seed: Of what is random in it.

    Shape: (Z, 2).

    Raises:
        ValueError: scikit-learn is not installed, or the perplexity does not fit.

    Note: Distances and sizes of clusters in the picture mean little; look at `neighbourhood` too.

    References: van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008.
    """
    check_features("embeddings", embeddings)
    if not 0 < perplexity < len(embeddings):
        raise ValueError(
            f"perplexity: must be above 0 and below the number of embeddings, {len(embeddings)}, got {perplexity}"
        )
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ValueError("t-SNE needs scikit-learn; install it with: pip install 'localprop[explain]'") from error
    start, _ = principal_components(embeddings)
    start = 1e-4 * start / start[:, 0].std(correction=0).clamp_min(1e-300)
    layout = TSNE(
        perplexity=perplexity,
        metric="cosine",
        init=start.float().cpu().numpy(),
        learning_rate="auto",
        random_state=seed,
    ).fit_transform(embeddings.detach().float().cpu().numpy())
    return torch.as_tensor(layout, dtype=torch.float64)


def dictionaries_of_run(subject: Subject) -> dict[str, Tensor]:
    """Return the run's dictionaries: "shared" by several blocks, or a block's by its name.

    Several embeddings of a class are averaged.

    Raises:
        ValueError: The method has no label embeddings.
    """
    subject.dictionaries()
    return {
        name: dictionary.embeddings.detach().cpu().view(-1, dictionary.embeddings_per_class, dictionary.width).mean(1)
        for name, dictionary in dictionaries(subject.rule).items()
    }


def embeddings_of_run(subject: Subject) -> Finding:
    """Analyse the run's label embeddings, one row a dictionary; the details hold cosines and layouts of the first.

    Purity is measured where the data have super-classes; t-SNE is made where scikit-learn is installed and there are
    more than 12 classes.
    """
    named = dictionaries_of_run(subject)
    groups = subject.data.super_of
    rows: list[dict[str, Any]] = []
    for name, t in named.items():
        row: dict[str, Any] = {"dictionary": name, "classes": len(t), "width": t.shape[1], **asdict(spectrum(t))}
        if groups:
            smallest = min(groups.count(group) for group in groups)
            row |= asdict(neighbourhood(t, groups, neighbours=max(1, smallest - 1)))
        rows.append(row)
    t = next(iter(named.values()))
    layout, shares = principal_components(t)
    details: dict[str, Any] = {
        "classes": list(subject.run.facts.class_names),
        "super_of": list(groups),
        "cosines": {name: cosine_matrix(each) for name, each in named.items()},
        "principal_components": layout,
        "explained_variance": shares,
        "t_sne": None,
        "t_sne_missing": None,
    }
    if len(t) <= _FEW_CLASSES:
        return Finding(rows, details)
    try:
        details["t_sne"] = t_sne(t, perplexity=min(15.0, (len(t) - 1) / 3), seed=subject.run.config.seed)
    except ValueError as error:
        details["t_sne_missing"] = str(error)
    return Finding(rows, details)


def embeddings_figure(finding: Finding) -> Figure:
    """Draw the cosines for few classes, else the layout by t-SNE or principal components, coloured by super-class."""
    details = finding.details
    names = details["classes"]
    if len(names) <= _FEW_CLASSES:
        cosines = next(iter(details["cosines"].values()))
        return matrix_figure(cosines, names, names, "cosine of label embeddings", (-1, 1))
    layout = details["t_sne"] or details["principal_components"]
    how = "t-SNE" if details["t_sne"] else "principal components"
    x, y = zip(*layout, strict=True)
    return scatter_figure(x, y, "", "", f"label embeddings, {how}", colors=details["super_of"] or None, names=names)


def _pairs(matrix: Tensor) -> Tensor:
    first, second = torch.triu_indices(len(matrix), len(matrix), 1, device=matrix.device)
    return matrix[first, second]
