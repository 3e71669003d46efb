import pytest
import torch

from localprop.analysis.super_labels import super_label_errors

SUPER_OF = (0, 0, 1, 1)


def test_super_labels__three_rules_differ_on_a_case_by_hand() -> None:
    target = torch.tensor([0, 0, 0, 2])
    scores = torch.tensor(
        [
            [3.0, 0, 1, 0],  # class 0: all right
            [1.0, 3, 0, 0],  # class 1: wrong class, right super-class
            [3.0, 0, 2, 2],  # class 0 right; the mean of super-class 1 is larger: 1.5 against 2
            [3.0, 0, 2, 2],  # class 0: wrong by both, right by the mean
        ]
    )
    found = super_label_errors(scores, target, SUPER_OF)
    assert (found.naive, found.super, found.mean) == (50, 25, 25)
    assert super_label_errors(scores[:3], target[:3], SUPER_OF).super == 0
    assert super_label_errors(scores[:3], target[:3], SUPER_OF).mean == pytest.approx(100 / 3)
    assert found.chance == 50


def test_super_labels__super_is_the_largest_score_of_a_super_class_and_never_above_naive() -> None:
    torch.manual_seed(0)
    scores, target = torch.randn(500, 12), torch.randint(12, (500,))
    groups = torch.arange(12) % 4
    found = super_label_errors(scores, target, groups.tolist())
    largest = torch.stack([scores[:, groups == g].amax(1) for g in range(4)], 1)
    assert found.super == pytest.approx(100 * float((largest.argmax(1) != groups[target]).double().mean()))
    assert found.super <= found.naive


def test_super_labels__mean_of_scores_is_the_score_of_the_mean_embedding() -> None:
    torch.manual_seed(0)
    h, t = torch.randn(200, 8), torch.randn(6, 8)
    target, groups = torch.randint(6, (200,)), torch.tensor([0, 1, 2, 0, 1, 2])
    means = torch.stack([t[groups == g].mean(0) for g in range(3)])
    expected = 100 * float(((h @ means.T).argmax(1) != groups[target]).double().mean())
    assert super_label_errors(h @ t.T, target, groups.tolist()).mean == pytest.approx(expected)


def test_super_labels__of_one_class_each_are_the_classes() -> None:
    torch.manual_seed(0)
    found = super_label_errors(torch.randn(50, 3), torch.randint(3, (50,)), [2, 0, 1])
    assert found.naive == found.super == found.mean


@pytest.mark.parametrize(
    ("scores", "groups", "message"),
    [
        (torch.randn(3, 4), (0, 0, 0, 0), "at least 2 super-classes"),
        (torch.randn(3, 4), (0, 1), "super_of"),
        (torch.full((3, 4), torch.nan), SUPER_OF, "finite"),
        (torch.randn(3, 2), (0, 1), "target"),
    ],
)
def test_super_labels__refuse(scores, groups, message) -> None:
    with pytest.raises(ValueError, match=message):
        super_label_errors(scores, torch.tensor([0, 1, 3]), groups)


def test_super_labels__a_super_class_without_classes_is_no_answer() -> None:
    found = super_label_errors(torch.tensor([[-1.0, -5.0]]), torch.tensor([0]), (0, 2))
    assert found.mean == 0
