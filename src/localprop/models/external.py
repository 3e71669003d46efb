"""Networks of timm and torchvision by name."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from localprop.errors import nearest


class Declared(NamedTuple):
    """What a package says of a network's input.

    Attributes:
        image_size: Pixels a side of the images that it was made for.
        is_fixed: Whether it is built for that size alone, unless told another.
    """

    image_size: int
    is_fixed: bool


def factory(name: str, *, pretrained: bool = False) -> Callable[..., nn.Module]:
    """Return the factory of `timm:NAME` or `torchvision:NAME`.

    The network reads as many channels as the images have, and is built for their size if its parameters depend on it.

    Args:
        name: The name with its package.
        pretrained: Whether networks of timm get timm's weights; else they are drawn.

    Raises:
        ValueError: The package is not installed, or has no such model.
    """
    source, _, model_name = name.partition(":")
    package = _package(name)
    names = _names(package)
    if model_name.partition(".")[0] not in names:  # timm's names may end in those of weights, after a dot
        raise ValueError(f"model: {source} has no model {model_name!r}{nearest(model_name, names)}")
    declared = _declared(package, model_name)
    is_timm = source == "timm"
    create = package.create_model if is_timm else package.get_model

    def build(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        channels, *size = image_shape
        settings: dict[str, Any] = {"in_chans": channels, "pretrained": pretrained} if is_timm else {}
        if declared and declared.is_fixed and size != [declared.image_size] * 2:
            settings["img_size" if is_timm else "image_size"] = tuple(size) if is_timm else size[0]
        try:
            model = create(model_name, num_classes=num_classes, **settings)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            cure = f"; its own size is --image-size {declared.image_size}" if declared else ""
            raise ValueError(
                f"model: {name} cannot be built for images of shape {image_shape}: {error}{cure}"
            ) from error
        assert isinstance(model, nn.Module)
        if not is_timm:
            _read_channels(model, channels)
        return model

    return build


def pretrained(name: str, image_shape: tuple[int, int, int], num_classes: int) -> dict[str, Tensor]:
    """Return the pretrained weights of `timm:NAME` or `torchvision:NAME`, which that package downloads once.

    Those of timm are fitted by timm itself to the channels, the size and the number of classes.

    Raises:
        ValueError: The package is not installed, has no such model or no weights of it, or cannot get them.
    """
    source, _, model_name = name.partition(":")
    package = _package(name)
    try:
        if source == "timm":
            weights = factory(name, pretrained=True)(image_shape, num_classes).state_dict()
        else:
            factory(name)  # says which names there are
            weights = package.get_model_weights(model_name).DEFAULT.get_state_dict(progress=False)
    except (AttributeError, OSError, RuntimeError) as error:  # RuntimeError: timm has no weights of a network
        raise ValueError(f"model: cannot get pretrained weights of {name}: {' '.join(str(error).split())}") from error
    return dict(weights)


def image_size(name: str) -> int | None:
    """Return the pixels a side of the images that `timm:NAME` or `torchvision:NAME` was made for, if they are known.

    Raises:
        ValueError: The package is not installed.
    """
    declared = _declared(_package(name), name.partition(":")[2])
    return declared.image_size if declared else None


def _package(name: str) -> Any:
    source = name.partition(":")[0]
    extra = "'localprop[timm]'" if source == "timm" else source
    try:
        return importlib.import_module("timm" if source == "timm" else "torchvision.models")
    except ImportError as error:
        raise ValueError(f"model: needs the package {source}; pip install {extra}") from error


def _names(package: Any) -> list[str]:
    """Return the names of the networks that classify images; torchvision's others take or return something else."""
    names = package.list_models() if package.__name__ == "timm" else package.list_models(module=package)
    return list(names)


def _declared(package: Any, model_name: str) -> Declared | None:
    if package.__name__ == "timm":
        config = package.models.get_pretrained_cfg(model_name, allow_unregistered=True)
        return Declared(config.input_size[-1], config.fixed_input_size) if config else None
    if model_name not in _names(package):
        return None
    weights = next(iter(package.get_model_weights(model_name)), None)
    if weights is None:
        return None
    size = weights.transforms.keywords["crop_size"]
    return Declared(size, weights.meta["min_size"] == (size, size))


def _read_channels(model: nn.Module, channels: int) -> None:
    """Give the first convolution as many input channels as the images have.

    Its weights repeat those that were drawn, scaled so that the sum over channels keeps its variance.
    """
    name, old = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    if old.in_channels == channels:
        return
    new = nn.Conv2d(
        channels,
        old.out_channels,
        (old.kernel_size[0], old.kernel_size[1]),
        (old.stride[0], old.stride[1]),
        old.padding if isinstance(old.padding, str) else (old.padding[0], old.padding[1]),
        bias=old.bias is not None,
    )
    index = [channel % old.in_channels for channel in range(channels)]
    new.weight.data.copy_(old.weight.data[:, index] * math.sqrt(old.in_channels / channels))
    if old.bias is not None and new.bias is not None:
        new.bias.data.copy_(old.bias.data)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)
