"""Random views, and rules that train on several rows an image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import localprop
from localprop.functional.views import random_view
from localprop.types import Normalisation


def images(count: int = 64, channels: int = 3, size: int = 8) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def view(x: Tensor, seed: int = 0, *, smallest_crop: float = 0.25, jitter: float = 0.4) -> Tensor:
    return random_view(x, torch.Generator().manual_seed(seed), smallest_crop=smallest_crop, jitter=jitter)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_is_an_image_that_depends_on_the_seed_alone(channels: int):
    x = images(channels=channels)
    state = torch.get_rng_state()
    found = view(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.shape == x.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    torch.manual_seed(7)
    assert torch.equal(view(x), found)
    assert not torch.equal(view(x, 1), found)
    assert (found - x).flatten(1).abs().amax(1).min() > 0.01  # no image stayed as it was


def test_half_of_the_views_are_mirrored_and_an_even_image_stays_as_it_is():
    x = images(400)
    found = view(x, smallest_crop=1.0, jitter=0.0)
    # A crop of the whole area still changes the aspect ratio a little, so the nearer of the two is asked for.
    nearer_plain = ((found - x) ** 2).flatten(1).sum(1) < ((found - x.flip(-1)) ** 2).flatten(1).sum(1)
    assert 150 < int(nearer_plain.sum()) < 250
    even = torch.full((10, 3, 4, 4), 0.5)
    torch.testing.assert_close(view(even, smallest_crop=0.1, jitter=0.0), even)


def test_jitter_alone_changes_brightness_and_contrast():
    x = torch.full((500, 1, 4, 4), 0.5)
    found = view(x, jitter=0.4)[:, 0, 0, 0]
    assert 0.29 < float(found.min()) < 0.33
    assert 0.67 < float(found.max()) < 0.71


def network() -> localprop.LocalNetwork:
    torch.manual_seed(0)
    return localprop.LocalNetwork(
        [
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
        ]
    )


def build(method: str) -> localprop.Rule:
    return localprop.methods.build(method, network(), num_classes=3, example=torch.zeros(2, 3, 16, 16))


def batch() -> tuple[Tensor, Tensor]:
    return images(6, size=16), torch.tensor([0, 1, 2, 0, 1, 2])


def test_inputs_are_made_of_images_and_back():
    rule = build("simclr-local")
    rule.normalisation = Normalisation((0.1, 0.2, 0.3), (0.5, 2.0, 1.5))
    x = images(2)
    torch.testing.assert_close(rule.from_image(rule.image(x)), x)


def test_views_of_the_users_own_are_taken():
    rule = build("simclr-local")
    x, y = batch()
    losses = [float(step.loss) for step in rule.steps((x, x.flip(-1)), y)]
    rule.clear_gradients()
    again = [float(step.loss) for step in rule.steps((x, x.flip(-1)), y)]
    assert losses == again  # nothing is drawn
    with pytest.raises(ValueError, match="takes samples of shape"):
        next(rule.steps((x, x[..., :8]), y))


@pytest.mark.parametrize("method", ["simclr-local", "infomax"])
def test_a_stretch_of_blocks_goes_on_with_the_rows_of_the_block_before(method: str):
    whole, parts = build(method), build(method)
    x, y = batch()
    steps = list(whole.steps(x, y))
    first = list(parts.steps(x, y, blocks=range(0, 2)))
    parts.begin(0)
    second = list(parts.steps(first[-1].output, y, blocks=range(2, 3)))
    assert [float(s.loss) for s in [*first, *second]] == [float(s.loss) for s in steps]
    assert all(s.logits.shape == (6, 3) for s in steps)


@pytest.mark.parametrize("method", ["simclr-local", "infomax"])
def test_hidden_blocks_learn_the_same_whatever_the_labels(method: str):
    x, y = batch()
    found = []
    for labels in (y, y.roll(1)):
        rule = build(method)
        for step in rule.steps(x, labels):
            if step.key[0] == 1:
                found.append([p.grad.clone() for p in rule.net.blocks[1].parameters()])
            rule.clear_gradients()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("method", ["infomax", "cpc"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 0}, "patch: must be 1 .. 16"),
        ({"patch": 17}, "patch: must be 1 .. 16"),
        ({"stride": 0}, "stride: must be at least 1"),
        ({"patch": 8, "stride": 8}, "less than the 2 rows of patches"),
        ({"negatives": 0}, "negatives: must be at least 1"),
        ({"skipped_rows": -1}, "predicted_rows: at least 1"),
    ],
)
def test_patches_that_cannot_be_are_refused(method: str, settings: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        localprop.methods.build(method, network(), num_classes=3, example=torch.zeros(2, 3, 16, 16), **settings)


def test_networks_that_do_not_take_patches_are_refused():
    net = localprop.models.vgg8b((1, 28, 28), 10, width=0.03)
    with pytest.raises(ValueError, match=r"must also take patches of 7x7 pixels.*conv, vgg11"):
        localprop.methods.build("infomax", net, num_classes=10, example=torch.zeros(2, 1, 28, 28))
    flat = localprop.LocalNetwork([nn.Sequential(nn.Linear(4, 5), nn.ReLU()), nn.Linear(5, 3)])
    with pytest.raises(ValueError, match="must take images"):
        localprop.methods.build("simclr-local", flat, num_classes=3, example=torch.zeros(2, 4))
