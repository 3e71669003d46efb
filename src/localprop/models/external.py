"""Networks of timm and torchvision by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import nn

from localprop.errors import nearest


def factory(name: str) -> Callable[..., nn.Module]:
    """Return the factory of `timm:NAME` or `torchvision:NAME`, with fresh weights.

    Raises:
        ValueError: The package is not installed, or has no such model.
    """
    source, _, model_name = name.partition(":")
    try:
        package = importlib.import_module("timm" if source == "timm" else "torchvision.models")
    except ImportError as error:
        raise ValueError(f"model: {name!r} needs the package {source}; pip install {source}") from error
    names = package.list_models()
    if model_name not in names:
        raise ValueError(f"model: {source} has no model {model_name!r}{nearest(model_name, names)}")
    create = package.create_model if source == "timm" else package.get_model

    def build(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        channels = {"in_chans": image_shape[0]} if source == "timm" else {}
        model = create(model_name, num_classes=num_classes, **channels)
        assert isinstance(model, nn.Module)
        return model

    return build
