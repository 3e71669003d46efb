"""Super-label inference: answers in groups of classes, from a network trained on the classes.

References:
    Choi et al., "Dictionary Contrastive Learning for Efficient Local Supervision without Auxiliary Networks",
    ICLR 2024 (the three rules, on the 20 super-classes of CIFAR-100).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from localprop.analysis.checks import check_features, check_target
from localprop.analysis.figures import depth_figure
from localprop.analysis.subject import Finding, Subject


@dataclass(frozen=True)
class SuperLabelErrors:
    """Errors in percent of one block.

    Attributes:
        naive: Of the class, among all classes: argmax_z s_z against y. The published baseline, a harder task.
        super: Of the super-class of the best class: g(argmax_z s_z) against g(y).
        mean: Of the super-class whose mean score is best: argmax_g mean_{z in g} s_z against g(y).
        chance: Of always answering the super-class with the most classes, were all classes equally frequent.
    """

    naive: float
    super: float
    mean: float
    chance: float


def super_label_errors(scores: Tensor, target: Tensor, super_of: Sequence[int]) -> SuperLabelErrors:
    """Measure the three rules of inference of super-labels.

    Scores are dot products s_z = <hbar, t_z> with label embeddings, whose mean over a super-class is the dot product
    with its mean embedding; any logits can be given.

    "Super" takes the largest score of each super-class, max_{z in g} s_z. That is the super-class of the class with the
    largest score of all: the answer is the class's own, read on a coarser scale. So `super` is never above `naive`, and
    the gap between them says that classes are mixed up within super-classes, not that embeddings help.

    Args:
        scores: Scores of the classes. Shape (N, Z).
        target: Classes, not super-classes. Shape (N,).
        super_of: The super-class of each class, Z indices.

    Raises:
        ValueError: Shapes or labels do not fit, or there are fewer than two super-classes.

    Note: The paper calls its baseline naive without a definition. Its VGG8B entry, 31.75, is the error on all 100
        classes, so that is what `naive` is here.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[3.0, 0.0, 2.0, 2.0]])
        >>> found = super_label_errors(scores, torch.tensor([0]), super_of=(0, 0, 1, 1))
        >>> found.naive, found.super, found.mean
        (0.0, 0.0, 100.0)
    """
    check_features("scores", scores, fewest=1)
    check_target("target", target, len(scores), scores.shape[1])
    groups = torch.as_tensor(super_of, device=scores.device)
    check_target("super_of", groups, scores.shape[1])
    sizes = torch.bincount(groups)
    if int((sizes > 0).sum()) < 2:
        raise ValueError(f"super_of: need at least 2 super-classes to tell apart, got {int((sizes > 0).sum())}")
    member = torch.nn.functional.one_hot(groups, len(sizes)).to(scores.dtype)
    mean = (scores @ member) / sizes.clamp_min(1)
    mean = mean.masked_fill(sizes == 0, -torch.inf)  # a super-class without classes is no answer
    best = scores.argmax(1)

    def error(answers: Tensor, truth: Tensor) -> float:
        return 100 * float((answers != truth).double().mean())

    return SuperLabelErrors(
        error(best, target),
        error(groups[best], groups[target]),
        error(mean.argmax(1), groups[target]),
        100 * (1 - float(sizes.max()) / len(groups)),
    )


def super_labels_of_run(subject: Subject) -> Finding:
    """Infer super-labels of the test images by every block that makes a prediction, one row a block.

    The scores are the block's logits. Those of several embeddings a class are combined as in training.

    Raises:
        ValueError: The data have no super-classes, or no block makes a prediction.
    """
    groups = subject.data.super_of
    if not groups:
        raise ValueError(f"{subject.run.config.data.name} has no super-classes; cifar100 has")
    test = subject.test_features
    rows = [
        {"block": index, "name": name, **asdict(super_label_errors(logits, test.target, groups))}
        for index, (name, logits) in enumerate(zip(subject.names, test.logits, strict=True))
        if logits is not None
    ]
    return Finding(rows, {"super_names": list(subject.data.super_names)})


def super_labels_figure(finding: Finding) -> Figure:
    """Draw the errors over depth."""
    names = {"naive": "class", "super": "super-class of the class", "mean": "super-class by mean score"}
    curves = {label: [row[key] for row in finding.rows] for key, label in names.items()}
    return depth_figure([row["name"] for row in finding.rows], {"error (%)": curves})
