import math

import pytest
import torch

from localprop.analysis.retained import reconstructed_share


def test_share__is_one_for_features_that_are_the_image_turned() -> None:
    torch.manual_seed(0)
    images = torch.rand(300, 1, 5, 5)
    h = 3 * images.flatten(1) @ torch.linalg.qr(torch.randn(25, 25))[0] + 7
    assert reconstructed_share(h[:200], images[:200], h[200:], images[200:]) == pytest.approx(1, abs=1e-4)


def test_share__of_independent_pixels_is_the_part_that_was_kept() -> None:
    torch.manual_seed(0)
    images = torch.randn(4000, 20)
    found = reconstructed_share(images[:2000, :5], images[:2000], images[2000:, :5], images[2000:])
    assert found == pytest.approx(5 / 20, abs=0.02)


def test_share__of_features_that_know_nothing_is_zero() -> None:
    torch.manual_seed(0)
    h, images = torch.randn(300, 1000), torch.randn(300, 30)
    assert reconstructed_share(h[:200], images[:200], h[200:], images[200:]) == pytest.approx(0, abs=0.03)
    constant = torch.full((300, 3), 0.1)
    assert reconstructed_share(constant[:200], images[:200], constant[200:], images[200:]) == pytest.approx(0, abs=1e-9)


def test_share__is_ridge_regression() -> None:
    torch.manual_seed(0)
    h, noise = torch.randn(150, 4).double(), torch.randn(150, 3).double()
    images = h @ torch.randn(4, 3).double() + noise
    z = torch.cat([h, torch.ones(150, 1).double()], 1)
    weights = torch.linalg.lstsq(z[:100], images[:100]).solution
    left = (images[100:] - z[100:] @ weights).square().sum()
    expected = 1 - left / (images[100:] - images[:100].mean(0)).square().sum()
    found = reconstructed_share(h[:100], images[:100], h[100:], images[100:])
    assert found == pytest.approx(float(expected), abs=0.02)


def test_share__of_one_image_is_not_defined() -> None:
    assert reconstructed_share(torch.randn(5, 2), torch.ones(5, 9), torch.randn(3, 2), torch.ones(3, 9)) is None


@pytest.mark.parametrize(
    ("h", "images", "message"),
    [
        (torch.randn(2, 3), torch.rand(2, 4), "at least 3"),
        (torch.randn(5, 3), torch.rand(4, 4), "one image"),
        (torch.full((5, 3), math.nan), torch.rand(5, 4), "finite"),
    ],
)
def test_share__refuses(h: torch.Tensor, images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reconstructed_share(h, images, torch.randn(2, 3), torch.rand(2, 4))
