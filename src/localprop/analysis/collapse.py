"""Neural collapse: how far the features of a class have become one point, and the classes a simplex.

References:
    Papyan, Han and Donoho, "Prevalence of Neural Collapse during the terminal phase of deep learning training",
    PNAS 2020, arXiv:2008.08186.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from localprop.analysis.checks import check_features, check_target, class_means
from localprop.analysis.figures import depth_figure
from localprop.analysis.subject import Finding, Subject, label_weights
from localprop.objectives.dictionary import DictionaryContrast

_RELATIVE_RANK = 1e-6


@dataclass(frozen=True)
class NeuralCollapse:
    """How collapsed features are; 0 is full collapse in every number. None where a number is not defined.

    Attributes:
        num_classes: C, the classes that have samples.
        nc1: Spread within classes beside the spread between them.
        nc2_equinorm: How unequal the distances of the class means from their centre are.
        nc2_equiangular: How unequal the angles between them are.
        nc2_max_angle: How far the angles are from those of a simplex.
        nc3: Distance of the classifier from the class means.
        nc4_train: Share of the training samples that the classifier and the nearest class mean disagree on.
        nc4_test: The same of the test samples.
    """

    num_classes: int
    nc1: float | None
    nc2_equinorm: float | None
    nc2_equiangular: float | None
    nc2_max_angle: float | None
    nc3: float | None = None
    nc4_train: float | None = None
    nc4_test: float | None = None


def neural_collapse(
    features: Tensor,
    target: Tensor,
    *,
    classifier: Tensor | None = None,
    predicted: Tensor | None = None,
    test_features: Tensor | None = None,
    test_predicted: Tensor | None = None,
) -> NeuralCollapse:
    """Measure NC1 to NC4 of one layer.

    With class means mu_c, their mean mu_G, and C classes that have samples:
        Sigma_W = (1/N) sum_i (h_i - mu_{y_i})(h_i - mu_{y_i})^T,   Sigma_B = (1/C) sum_c (mu_c - mu_G)(mu_c - mu_G)^T
        NC1 = (1/C) tr(Sigma_W pinv(Sigma_B)), directions below 1e-6 of Sigma_B's largest left out
        NC2 equinorm    = std_c |mu_c - mu_G| / mean_c |mu_c - mu_G|
        NC2 equiangular = std over pairs of cos(mu_c - mu_G, mu_c' - mu_G)
        NC2 max angle   = mean over pairs of |cos + 1 / (C - 1)|
        NC3 = | W / |W|_F - M / |M|_F |_F with M the centred means, W the classifier centred over classes; at most 2
        NC4 = share of samples where the predicted class is not argmin_c |h - mu_c|, with mu_c of `features`.

    Args:
        features: Training features, one vector a sample (averaged over positions). Shape (N, P).
        target: Their classes. Shape (N,).
        classifier: Weights of the classes in feature space, a linear layer's or a block's label embeddings. Shape
            (Z, P). Only rows of classes with samples are compared.
        predicted: The classes that the layer's own classifier predicts for `features`. Shape (N,).
        test_features: Features of other samples. Shape (M, P).
        test_predicted: The classes predicted for them. Shape (M,).

    Raises:
        ValueError: A shape does not fit, a number is not finite, or fewer than two classes have samples.

    Note: mu_G is the mean of the class means, which is the mean of the samples where classes are balanced, as in the
        paper. NC1 is None where all means are one, and so are NC2 and NC3, which divide by their distances. With fewer
        samples than features or few samples a class, the means carry the samples' noise: NC1 comes out too small.

    Example:
        >>> import torch
        >>> target = torch.tensor([0, 1, 2, 0, 1, 2])
        >>> found = neural_collapse(torch.eye(3)[target], target)
        >>> round(found.nc1, 6), round(found.nc2_max_angle, 6)
        (0.0, 0.0)
    """
    check_features("features", features)
    check_target("target", target, len(features))
    features = features.detach().double()
    present, means = class_means(features, target)
    if len(present) < 2:
        raise ValueError(f"target: need samples of at least 2 classes to compare, got {len(present)}")
    num_classes = len(present)
    centred = means - means.mean(0)
    scale = features.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    if float(centred.norm(dim=1).max()) <= 1e-12 * float(scale):  # one point but for rounding
        nc1 = equinorm = equiangular = max_angle = None
    else:
        within = features - means[torch.searchsorted(present, target)]
        nc1 = _spread_ratio(within, centred)
        equinorm, equiangular, max_angle = _simplex(centred)
    return NeuralCollapse(
        num_classes,
        nc1,
        equinorm,
        equiangular,
        max_angle,
        None if classifier is None or nc1 is None else _self_duality(classifier, centred, present),
        _disagreement(features, predicted, present, means, "predicted"),
        _disagreement(test_features, test_predicted, present, means, "test_predicted"),
    )


def _spread_ratio(within: Tensor, centred: Tensor) -> float:
    """Return (1/C) tr(Sigma_W pinv(Sigma_B)) without forming a matrix of P x P: U S^2 U^T is Sigma_B."""
    num_classes = len(centred)
    _, singular, directions = torch.linalg.svd(centred / num_classes**0.5, full_matrices=False)
    variances = singular.square()
    kept = variances > _RELATIVE_RANK * variances[0]
    projected = (within @ directions[kept].T).square().mean(0)
    return float((projected / variances[kept]).sum()) / num_classes


def _simplex(centred: Tensor) -> tuple[float, float | None, float | None]:
    norms = centred.norm(dim=1)
    equinorm = float(norms.std(correction=0) / norms.mean())
    if float(norms.min()) <= 1e-12 * float(norms.max()):  # a mean at the centre has no direction
        return equinorm, None, None
    unit = centred / norms[:, None]
    first, second = torch.triu_indices(len(unit), len(unit), 1)
    cosines = (unit @ unit.T)[first, second]
    ideal = -1 / (len(unit) - 1)
    return equinorm, float(cosines.std(correction=0)), float((cosines - ideal).abs().mean())


def _self_duality(classifier: Tensor, centred: Tensor, present: Tensor) -> float | None:
    if classifier.dim() != 2 or classifier.shape[1] != centred.shape[1] or len(classifier) <= int(present.max()):
        raise ValueError(
            f"classifier: need one row of {centred.shape[1]} weights for each of the {int(present.max()) + 1} or more "
            f"classes, got shape {tuple(classifier.shape)}"
        )
    check_features("classifier", classifier)
    weights = classifier.detach().double()[present]
    weights = weights - weights.mean(0)
    size = weights.norm()
    return None if float(size) == 0 else float((weights / size - centred / centred.norm()).norm())


def _disagreement(
    features: Tensor | None, predicted: Tensor | None, present: Tensor, means: Tensor, name: str
) -> float | None:
    if features is None or predicted is None:
        return None
    check_features("features", features, fewest=1)
    check_target(name, predicted, len(features))
    nearest = present[torch.cdist(features.detach().double(), means).argmin(1)]
    return float((nearest != predicted).double().mean())


def collapse_of_run(subject: Subject) -> Finding:
    """Measure the neural collapse of every block's averaged features, one row a block.

    NC3 compares with a block's label embeddings, or, for the last hidden block, with the linear classifier that reads
    it; it is None where nothing of the kind reads the block's averaged features. NC4 takes the block's own prediction,
    and the network's for the last hidden block.
    """
    train, test = subject.train_features, subject.test_features
    rows = []
    for index, name in enumerate(subject.names):
        source = index + 1 if train.logits[index] is None and index == len(subject.names) - 2 else index
        logits, test_logits = train.logits[source], test.logits[source]
        found = neural_collapse(
            train.averaged[index],
            train.target,
            classifier=block_classifier(subject, index),
            predicted=None if logits is None else logits.argmax(1),
            test_features=test.averaged[index],
            test_predicted=None if test_logits is None else test_logits.argmax(1),
        )
        rows.append({"block": index, "name": name, "width": train.averaged[index].shape[1], **asdict(found)})
    return Finding(rows)


def block_classifier(subject: Subject, index: int) -> Tensor | None:
    """Return the weights by which classes read a block's averaged features, shape (Z, C), or None if nothing does."""
    objectives = {part.spec.index: part for part in subject.rule.modules() if isinstance(part, DictionaryContrast)}
    width = subject.train_features.averaged[index].shape[1]
    objective = objectives.get(index)
    if objective is not None:
        if objective.dictionary.embeddings_per_class > 1:
            return None
        weights = label_weights(objective).cpu()
        return weights.repeat(1, width // weights.shape[1])  # of a flat output all K chunks are read alike
    if index != len(subject.names) - 2:
        return None
    layers = [part for part in subject.rule.net.blocks[-1].modules() if any(True for _ in part.parameters(False))]
    last = layers[0]
    if len(layers) != 1 or not isinstance(last, nn.Linear) or last.in_features != width:
        return None
    return last.weight.detach().cpu()


def collapse_figure(finding: Finding) -> Figure:
    """Draw NC1 to NC4 over depth."""

    def curve(key: str) -> list[float | None]:
        return [row[key] for row in finding.rows]

    return depth_figure(
        [row["name"] for row in finding.rows],
        {
            "NC1, within / between": {"NC1": curve("nc1")},
            "NC2, 0 for a simplex": {
                "norms": curve("nc2_equinorm"),
                "angles": curve("nc2_equiangular"),
                "largest angles": curve("nc2_max_angle"),
            },
            "NC3, classifier and means": {"NC3": curve("nc3")},
            "NC4, not the nearest mean": {"train": curve("nc4_train"), "test": curve("nc4_test")},
        },
    )
