import math

import pytest
import torch

from localprop.analysis.information import gaussian_information, label_information


def correlated(num: int, rho: float, width: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and values, each pair of dimensions with correlation rho: I = -(width / 2) log(1 - rho^2)."""
    h = torch.randn(num, width)
    return h, rho * h + math.sqrt(1 - rho**2) * torch.randn(num, width)


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_information__of_gaussians_is_known(rho: float) -> None:
    torch.manual_seed(0)
    h, v = correlated(3000, rho)
    test_h, test_v = correlated(3000, rho)
    found = gaussian_information(h, v, test_h, test_v)
    assert found.nats == pytest.approx(-math.log(1 - rho**2), abs=0.06)
    assert "not converged" not in found.flags
    assert "saturated" not in found.flags


def two_bumps(num: int, distance: float) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(2, (num,))
    return torch.randn(num, 1) + distance * (2 * labels[:, None] - 1), labels


def exact_nats(distance: float) -> float:
    """I of a fair coin with a unit Gaussian at plus or minus `distance`: log 2 - H(coin | h), integrated."""
    h = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    p = torch.sigmoid(2 * distance * h)  # of heads, given h
    density = torch.exp(-0.5 * (h - distance) ** 2) + torch.exp(-0.5 * (h + distance) ** 2)
    entropy = torch.special.entr(p) + torch.special.entr(1 - p)
    return math.log(2) - float(torch.trapezoid(entropy * density, h) / torch.trapezoid(density, h))


@pytest.mark.parametrize("distance", [0.5, 1.0])
def test_information__of_a_coin_in_two_bumps_is_known(distance: float) -> None:
    torch.manual_seed(0)
    found = label_information(*two_bumps(4000, distance), *two_bumps(4000, distance))
    assert found.bound_nats == pytest.approx(exact_nats(distance), abs=0.04)
    assert found.most_nats == pytest.approx(math.log(2), abs=1e-3)
    assert found.flags == ()


def test_information__sees_what_no_linear_probe_does() -> None:
    torch.manual_seed(0)
    h, test_h = torch.randn(2000, 2), torch.randn(2000, 2)
    found = label_information(h, (h.prod(1) > 0).long(), test_h, (test_h.prod(1) > 0).long())
    assert found.nats > 0.5  # of 0.69


def test_information__of_independent_labels_is_negative_and_says_so() -> None:
    torch.manual_seed(0)
    found = label_information(
        torch.randn(200, 50), torch.randint(10, (200,)), torch.randn(500, 50), torch.randint(10, (500,))
    )
    assert found.nats == 0
    assert found.bound_nats < 0
    assert "negative" in found.flags


def test_information__at_its_ceiling_is_flagged() -> None:
    torch.manual_seed(0)
    found = label_information(*two_bumps(2000, 20.0), *two_bumps(2000, 20.0))
    assert "saturated" in found.flags
    values = torch.randn(400, 30)
    more = gaussian_information(values[:200], values[:200], values[200:220], values[200:220], epochs=200)
    assert more.most_nats == math.log(20)  # twenty samples cannot vouch for more
    assert "saturated" in more.flags


def test_information__of_a_critic_cut_short_is_flagged() -> None:
    torch.manual_seed(0)
    h, v = correlated(400, 0.9)
    assert "not converged" in gaussian_information(h, v, h, v, epochs=3).flags


def test_information__of_constant_features_is_none() -> None:
    torch.manual_seed(0)
    labels = torch.arange(200) % 2
    found = label_information(torch.full((200, 3), 0.1), labels, torch.full((50, 3), 0.1), labels[:50])
    assert found.nats == pytest.approx(0, abs=0.05)


def test_information__of_one_label_is_none() -> None:
    one = torch.zeros(20, dtype=torch.int64)
    found = label_information(torch.randn(20, 3), one, torch.randn(20, 3), one)
    assert (found.nats, found.most_nats) == (pytest.approx(0), 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: label_information(h, torch.zeros(3).long(), h, torch.zeros(10).long()), "labels"),
        (lambda h: label_information(h[:2], torch.zeros(2).long(), h, torch.zeros(10).long()), "at least 5"),
        (lambda h: label_information(h, torch.zeros(10).long(), h[:, :2], torch.zeros(10).long()), "need 3 features"),
        (lambda h: gaussian_information(h, h[:4], h, h), "one row a sample"),
        (lambda h: gaussian_information(h, torch.ones(10, 2), h, torch.ones(10, 2)), "dimension 0 is constant"),
        (lambda h: gaussian_information(h / 0, h, h, h), "finite"),
    ],
)
def test_information__refuses(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.randn(10, 3))


def test_information__does_not_reach_back_into_what_made_the_features() -> None:
    torch.manual_seed(0)
    h = torch.randn(20, 3, requires_grad=True)
    labels = torch.arange(20) % 2
    label_information(h, labels, h, labels, epochs=1)
    gaussian_information(h, h, h, h, epochs=1)
    assert h.grad is None
