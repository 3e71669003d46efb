"""What was learned by heart, on a network whose memory is known."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch.nn.functional import one_hot

from localprop.analysis.memorisation import memorisation_figure, memorisation_of_run
from localprop.analysis.subject import BlockFeatures


def subject(given: list[int], true: list[int] | None) -> SimpleNamespace:
    """Make two blocks: the first says the given label by heart, the second the true one or nothing."""
    labels = torch.tensor(given)
    truth = labels if true is None else torch.tensor(true)
    features = BlockFeatures((), (), (one_hot(labels, 4).float(), one_hot(truth, 4).float()), truth, labels)
    test = BlockFeatures((), (), (one_hot((truth + 1) % 4, 4).float(), None), truth, truth)
    images = SimpleNamespace(attributes={} if true is None else {"true_label": truth})
    return SimpleNamespace(names=("parrot", "sage"), train_features=features, test_features=test, train=images)


def test_what_was_learned_by_heart_is_told_from_what_was_understood():
    finding = memorisation_of_run(subject([0, 1, 2, 3, 0], [0, 1, 2, 0, 1]))
    parrot, sage, network = finding.rows
    assert parrot == {
        "name": "parrot",
        "train_error": 0,
        "test_error": 100,
        "by_heart_error": 0,
        "true_error": 100,
    }
    assert sage == {"name": "sage", "train_error": 40, "test_error": None, "by_heart_error": 100, "true_error": 0}
    assert network == {**sage, "name": "network", "test_error": 0}
    assert finding.details == {"wrong_labels": 2}
    assert len(memorisation_figure(finding).axes) == 1


def test_true_labels_leave_the_columns_of_wrong_ones_out():
    finding = memorisation_of_run(subject([0, 1, 2, 3, 0], None))
    assert set(finding.rows[0]) == {"name", "train_error", "test_error"}
    assert finding.details == {"wrong_labels": 0}
