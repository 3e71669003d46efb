import math
import sys

import pytest
import torch

from localprop.analysis.confusion import confusion_rates, rank_correlation
from localprop.analysis.embeddings import cosine_matrix, neighbourhood, principal_components, spectrum, t_sne


def grouped(num_groups: int = 4, size: int = 5, width: int = 32, spread: float = 0.1) -> torch.Tensor:
    """Embeddings around orthonormal centres, group by group."""
    centres = torch.linalg.qr(torch.randn(width, num_groups))[0].T
    return centres.repeat_interleave(size, 0) + spread * torch.randn(num_groups * size, width) / width**0.5


def test_neighbourhood__finds_groups() -> None:
    torch.manual_seed(0)
    groups = torch.arange(4).repeat_interleave(5).tolist()
    found = neighbourhood(grouped(), groups)
    assert found.purity == 1
    assert found.chance == pytest.approx(4 / 19)
    assert found.within_cosine > 0.95
    assert abs(found.between_cosine) < 0.1


def test_neighbourhood__is_at_chance_without_groups() -> None:
    torch.manual_seed(0)
    groups = torch.arange(20).repeat_interleave(5).tolist()
    found = [neighbourhood(torch.randn(100, 64), groups) for _ in range(20)]
    assert sum(one.purity for one in found) / 20 == pytest.approx(4 / 99, abs=0.01)


def test_neighbourhood__of_one_group_has_nothing_between() -> None:
    torch.manual_seed(0)
    found = neighbourhood(torch.randn(3, 4), [0, 0, 0], neighbours=2)
    assert (found.purity, found.chance, found.between_cosine) == (1, 1, None)
    assert neighbourhood(torch.randn(3, 4), [0, 1, 2], neighbours=2).within_cosine is None


def test_spectrum__knows_orthogonal_and_repeated_embeddings() -> None:
    torch.manual_seed(0)
    frame = 3 * torch.linalg.qr(torch.randn(16, 5))[0].T
    found = spectrum(frame)
    assert found.effective_rank == pytest.approx(5, rel=1e-5)
    assert found.mean_norm == pytest.approx(3, rel=1e-5)
    assert found.std_norm == pytest.approx(0, abs=1e-5)
    assert found.mean_cosine == pytest.approx(0, abs=1e-5)
    same = spectrum(frame[:1].repeat(5, 1))
    assert same.effective_rank == pytest.approx(1, rel=1e-5)
    assert same.mean_cosine == pytest.approx(1)


def test_cosine_matrix__of_a_zero_embedding_is_zero() -> None:
    assert cosine_matrix(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).tolist() == [[0, 0], [0, 1]]


def test_principal_components__recover_a_plane() -> None:
    torch.manual_seed(0)
    flat = torch.randn(30, 2, dtype=torch.float64) * torch.tensor([5.0, 1.0], dtype=torch.float64)
    frame = torch.linalg.qr(torch.randn(9, 2, dtype=torch.float64))[0]
    projected, shares = principal_components(flat @ frame.T + 4)
    assert float(shares.sum()) == pytest.approx(1)
    torch.testing.assert_close(torch.cdist(projected, projected), torch.cdist(flat, flat))
    two, _ = principal_components(torch.randn(2, 1))
    assert two.shape == (2, 2)  # a second component that is not there is zero


def test_t_sne__keeps_groups_together() -> None:
    torch.manual_seed(0)
    layout = t_sne(grouped(), perplexity=5)
    groups = torch.arange(4).repeat_interleave(5)
    distances = torch.cdist(layout, layout).fill_diagonal_(math.inf)
    assert (groups[distances.argmin(1)] == groups).all()


def test_t_sne__says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ValueError, match=r"pip install 'localprop\[explain\]'"):
        t_sne(torch.randn(20, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectrum(torch.zeros(3, 4)), "all zero"),
        (lambda: spectrum(torch.ones(1, 4)), "at least 2"),
        (lambda: neighbourhood(torch.randn(3, 4), [0, 1]), "super_of"),
        (lambda: neighbourhood(torch.randn(3, 4), [0, 0, 1], neighbours=3), r"neighbours: must lie in 1 \.\. 2"),
        (lambda: t_sne(torch.randn(3, 4), perplexity=3), "perplexity"),
        (lambda: cosine_matrix(torch.full((3, 4), math.nan)), "finite"),
    ],
)
def test_embeddings__refuse(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_confusion_rates__are_those_counted_by_hand() -> None:
    target = torch.tensor([0, 0, 0, 0, 1, 1, 3])
    predicted = torch.tensor([0, 1, 1, 3, 1, 0, 3])
    found = confusion_rates(predicted, target, 4)
    assert found[0, 1] == found[1, 0] == (2 / 4 + 1 / 2) / 2
    assert found[0, 3] == (1 / 4 + 0) / 2
    assert found[1, 2].isnan()  # class 2 has no samples
    assert found[0, 0] == 1 / 4


def symmetric(values: torch.Tensor, num_classes: int) -> torch.Tensor:
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.float64)
    rows, columns = torch.triu_indices(num_classes, num_classes, 1)
    matrix[rows, columns] = values.double()
    return matrix + matrix.T


def test_rank_correlation__is_one_for_what_rises_and_minus_one_for_what_falls() -> None:
    values = torch.randperm(45, generator=torch.Generator().manual_seed(0)).double()
    first = symmetric(values, 10)
    rising = rank_correlation(first, symmetric(values.exp(), 10))
    assert (rising.spearman, rising.pairs) == (pytest.approx(1), 45)
    assert rising.low == pytest.approx(1)
    assert rank_correlation(first, symmetric(-(values**3), 10)).spearman == pytest.approx(-1)


def test_rank_correlation__agrees_with_scipy_on_ties() -> None:
    from scipy.stats import spearmanr

    torch.manual_seed(0)
    a, b = torch.randint(6, (45,)), torch.randint(6, (45,))
    found = rank_correlation(symmetric(a, 10), symmetric(b, 10))
    assert found.spearman == pytest.approx(spearmanr(a.numpy(), b.numpy()).statistic)
    assert found.low < found.spearman < found.high


def test_rank_correlation__interval_of_unrelated_matrices_holds_zero() -> None:
    held = 0
    for seed in range(20):
        torch.manual_seed(seed)
        found = rank_correlation(symmetric(torch.randn(45), 10), symmetric(torch.randn(45), 10), seed=seed)
        held += found.low <= 0 <= found.high
    assert held >= 16


def test_rank_correlation__leaves_unknown_pairs_out_and_knows_its_limits() -> None:
    first = symmetric(torch.arange(6.0), 4)
    unknown = first.clone()
    unknown[0] = unknown[:, 0] = math.nan
    found = rank_correlation(first, unknown)
    assert (found.pairs, found.spearman, found.low) == (3, pytest.approx(1), None)  # three classes: no interval
    assert rank_correlation(first, torch.zeros(4, 4)).spearman is None
    assert rank_correlation(torch.zeros(2, 2), torch.zeros(2, 2)).spearman is None
    with pytest.raises(ValueError, match="two"):
        rank_correlation(first, torch.zeros(3, 3))
