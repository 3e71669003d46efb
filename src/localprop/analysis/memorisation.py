"""What blocks have learned by heart: errors on the images they were trained on, on others, and on wrong labels."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from localprop.analysis.figures import depth_figure
from localprop.analysis.subject import Finding, Subject
from localprop.infer.evaluate import percent


def memorisation_of_run(subject: Subject) -> Finding:
    """Compare the errors of each block's own prediction, one row a block and one for the network's answer, percent.

    train_error and test_error are those on training and test images. Where labels were drawn at random
    (`--data.random-labels`), two columns speak of the training images whose label is not the true one:
    by_heart_error is the error in telling the label that was given, which is chance unless it was learned by heart, and
    true_error that in telling the true one, which was never shown.

    References: Zhang et al., "Understanding deep learning requires rethinking generalization", ICLR 2017,
        arXiv:1611.03530.
    """
    train, test = subject.train_features, subject.test_features
    said = [None if logits is None else logits.argmax(1) for logits in train.logits]
    said_of_test = [None if logits is None else logits.argmax(1) for logits in test.logits]
    true = subject.train.attributes.get("true_label")
    rows: list[dict[str, Any]] = []
    named = [*zip(subject.names, said, said_of_test, strict=True), ("network", train.answers, test.answers)]
    for name, seen, unseen in named:
        row = {"name": name, "train_error": _error(seen, train.target), "test_error": _error(unseen, test.target)}
        if true is not None:
            wrong = train.target != true
            row["by_heart_error"] = None if seen is None else _error(seen[wrong], train.target[wrong])
            row["true_error"] = None if seen is None else _error(seen[wrong], true[wrong])
        rows.append(row)
    return Finding(rows, {"wrong_labels": 0 if true is None else int((train.target != true).sum())})


def memorisation_figure(finding: Finding) -> Figure:
    """Draw the errors over depth."""
    columns = {key: key.removesuffix("_error").replace("_", " ") for key in finding.rows[0] if key != "name"}
    curves = {label: [row[key] for row in finding.rows] for key, label in columns.items()}
    return depth_figure([row["name"] for row in finding.rows], {"error, %": curves})


def _error(said: Tensor | None, target: Tensor) -> float | None:
    if said is None or not len(target):
        return None
    return percent(int((said != target).sum()), len(target))
