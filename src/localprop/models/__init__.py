"""Reference networks with the papers' exact widths: ONE table, name -> factory."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import Tensor, nn

from localprop.errors import nearest
from localprop.models.cnn import cnn
from localprop.models.conv import conv
from localprop.models.fc import fc
from localprop.models.mixer import mixer
from localprop.models.mlp import mlp
from localprop.models.patches import patches
from localprop.models.resnet import resnet32, resnet110
from localprop.models.vgg import vgg8b, vgg11, vgg11b, vgg11c, vgg13, vgg16, vgg19
from localprop.models.vit import vit

Factory = Callable[..., nn.Module]

CATALOGUE: dict[str, Factory] = {
    "fc": fc,
    "mlp": mlp,
    "conv": conv,
    "cnn": cnn,
    "vgg8b": vgg8b,
    "vgg11b": vgg11b,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "vgg11c": vgg11c,
    "resnet32": resnet32,
    "resnet110": resnet110,
    "vit": vit,
    "mixer": mixer,
    "patches": patches,
}

__all__ = [
    "CATALOGUE",
    "Factory",
    "cnn",
    "conv",
    "fc",
    "get",
    "image_size",
    "mixer",
    "mlp",
    "patches",
    "pretrained",
    "resnet32",
    "resnet110",
    "vgg8b",
    "vgg11",
    "vgg11b",
    "vgg11c",
    "vgg13",
    "vgg16",
    "vgg19",
    "vit",
]


def get(name: str) -> Factory:
    """Return the factory of a network: `factory(image_shape, num_classes, **settings) -> nn.Module`.

    Args:
        name: A name of the catalogue, or an import path `package.module:ATTRIBUTE` (this imports and runs that code).

    Raises:
        ValueError: No such network.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    if name.startswith(("timm:", "torchvision:")):
        from localprop.models.external import factory

        return factory(name)
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"model: cannot import {name!r}: {error}") from error
        if not callable(found):
            raise ValueError(
                f"model: {name!r} is a {type(found).__name__}, not a function (image_shape, num_classes) -> model"
            )
        return found  # type: ignore[no-any-return] # a third party's callable: its result is checked when it is used
    raise ValueError(
        f"model: no network {name!r}{nearest(name, CATALOGUE)}; there are {', '.join(CATALOGUE)}, "
        "timm:NAME, torchvision:NAME and package.module:FUNCTION"
    )


def pretrained(name: str, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, Tensor]:
    """Return the pretrained weights of a network of timm or torchvision, by the names of its parameters and buffers.

    Args:
        name: A name that `get` takes.
        image_shape: (C, H, W) of the images.
        num_classes: Z.

    Raises:
        ValueError: There are none, or they cannot be had.
    """
    if not name.startswith(("timm:", "torchvision:")):
        raise ValueError(f"model: there are no pretrained weights of {name}; timm:NAME and torchvision:NAME have some")
    from localprop.models import external

    return external.pretrained(name, image_shape, num_classes)


def image_size(name: str) -> int | None:
    """Return the pixels a side of the images that a network declares to be made for; None for those that take any.

    Args:
        name: A name that `get` takes.

    Raises:
        ValueError: The package of the network is not installed.
    """
    if name.startswith(("timm:", "torchvision:")):
        from localprop.models import external

        return external.image_size(name)
    return None
