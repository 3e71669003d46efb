"""From settings to parts: data, network, rule, executor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from localprop import data, methods, models
from localprop.data.loader import BatchLoader, evaluation_batches
from localprop.data.store import ImageData, ImageSet
from localprop.network import LocalNetwork
from localprop.rules import Rule
from localprop.rules.base import has_batch_norm
from localprop.seed import derive, seeded
from localprop.splitting import WORDS, split
from localprop.train.components import optimizer_class
from localprop.train.config import RunConfig
from localprop.train.executor import LocalExecutor
from localprop.train.phases import takes_steps
from localprop.types import Normalisation, Phase

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class DataFacts:
    """What has to be known of a data set to use a network that was trained on it.

    Attributes:
        class_names: Names of the classes, in the order of the labels.
        image_shape: (C, H, W).
        mean: Mean of every channel, pixels scaled to 0..1.
        std: Standard deviation of every channel.
    """

    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: ImageData) -> DataFacts:
        """Read the facts off a data set."""
        return cls(images.class_names, images.image_shape, images.mean, images.std)

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> DataFacts:
        """Make the facts of what `dataclasses.asdict` made of them.

        Raises:
            KeyError: One is missing.
            TypeError: One is of another type.
        """
        channels, height, width = map(int, stored["image_shape"])
        mean, std = (tuple(map(float, stored[name])) for name in ("mean", "std"))
        return cls(tuple(map(str, stored["class_names"])), (channels, height, width), mean, std)


@dataclass(frozen=True)
class RunData:
    """The splits of a run.

    Attributes:
        data: Training and test images.
        validation: Images held out of the training images, or None.
    """

    data: ImageData
    validation: ImageSet | None


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the accelerator if there is one.

    Raises:
        ValueError: PyTorch knows no such device, or cannot use it here.
    """
    if name == "auto":
        name = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}; use auto or cpu") from error
    if device.type == "meta":
        raise ValueError(f"--device {name}: holds no numbers, so nothing can be trained on it; use auto or cpu")
    return device


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was told to do; a CPU always has."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def load_data(config: RunConfig) -> RunData:
    """Load the run's data, in its network's size unless told another, and hold out its validation images.

    Raises:
        ValueError: The data cannot be found, read or split.
    """
    image_size = config.image_size or models.image_size(config.model.name)
    is_directory = config.data.name not in data.CATALOGUE  # its images may differ in size: they are resized as read
    images = data.load(config.data.name, image_size=image_size if is_directory else None, **config.data.settings)
    images = images if image_size is None else images.presented(image_size)
    if not config.validation:
        return RunData(images, None)
    try:
        return RunData(*images.hold_out(config.validation, derive(config.seed, "validation")))
    except ValueError as error:
        raise ValueError(f"--validation {config.validation}: {error}") from error


def build_model(config: RunConfig, facts: DataFacts) -> nn.Module:
    """Build the network in one piece; its weights are drawn from the run's seed, for all methods alike.

    Raises:
        ValueError: The model refuses its settings or the data.
    """
    factory = models.get(config.model.name)
    with seeded(derive(config.seed, "network"), torch.device("cpu")):  # on the host: every device starts from the same
        return factory(facts.image_shape, len(facts.class_names), **config.model.settings)


def build_rule(config: RunConfig, facts: DataFacts, device: torch.device, model: nn.Module | None = None) -> Rule:
    """Build the rule of a network; what it draws comes from the run's seed.

    Args:
        config: The run's settings.
        facts: Its data.
        device: Where the rule goes.
        model: The network, which becomes part of the rule; default a new one, as `build_model` draws it.

    Raises:
        ValueError: The model, the method or the cut points do not fit each other or the data.
    """
    model = build_model(config, facts) if model is None else model
    net = split(model, _cuts(model, config.at), example=torch.zeros(1, *facts.image_shape))
    net.freeze(config.freeze)
    with seeded(derive(config.seed, "method"), torch.device("cpu")):
        example = torch.zeros(2, *facts.image_shape)
        method = methods.get(config.method.name)
        rule = method.build(net, num_classes=len(facts.class_names), example=example, **config.method.settings)
    rule.seed = derive(config.seed, "blocks")
    rule.normalisation = Normalisation(facts.mean, facts.std)
    rule.autocast_dtype = PRECISIONS[config.precision]
    rule.to(device)
    if is_convolutional(rule):
        rule.to(memory_format=torch.channels_last)  # 0.7 to 0.85 of the step time with oneDNN and cuDNN alike
    return rule


def _cuts(model: nn.Module, at: tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    """Return what `split` is told: one name alone may be a list of blocks, or a word for them.

    The names in an `nn.Sequential` are those of modules that end a block.
    """
    if at is None or len(at) > 1:
        return at
    is_plain = isinstance(model, nn.Sequential | LocalNetwork)
    return at if is_plain and at[0] not in WORDS else at[0]


def build_executor(config: RunConfig, rule: Rule) -> LocalExecutor:
    """Build the executor with the run's optimisers."""
    make = optimizer_factory(config.optimizer.name, dict(config.optimizer.settings))
    return LocalExecutor(
        rule,
        make,
        accumulate=config.accumulate,
        clip_norm=config.clip_norm,
        offload_optimizer=config.offload_optimizer,
    )


def build_loader(config: RunConfig, images: ImageData, rule: Rule, device: torch.device) -> BatchLoader:
    """Build the loader of training batches.

    Raises:
        ValueError: Some batch of an epoch would hold a single image, which batch normalisation cannot train on; or
            batches cannot be limited to so few classes.
    """
    loader = BatchLoader(
        images.train,
        batch_size=config.batch_size,
        mean=images.mean,
        std=images.std,
        augmentation=images.augmentation,
        seed=derive(config.seed, "batches"),
        device=device,
        classes_per_batch=images.classes_per_batch,
        limited_epochs=-(-config.epochs // 2),
    )
    if has_batch_norm(rule):
        num_images = len(images.train)
        last = num_images - (len(loader) - 1) * config.batch_size
        for size in {min(config.batch_size, num_images), last}:
            part = min(len(part) for part in torch.zeros(size).chunk(config.accumulate))
            if part == 1:
                raise ValueError(
                    f"--batch-size {config.batch_size}: with {num_images} training images and --accumulate "
                    f"{config.accumulate} some batch holds a single image, which batch normalisation cannot train on; "
                    "choose another --batch-size"
                )
    return loader


def num_steps(config: RunConfig, phases: Sequence[Phase], loader: BatchLoader) -> int:
    """Return the steps of a run, 0 if no phase takes any."""
    return config.epochs * steps_per_epoch(config, loader) if takes_steps(phases) else 0


def steps_per_epoch(config: RunConfig, loader: BatchLoader) -> int:
    """Return the steps of an epoch."""
    return len(loader) if config.limit_batches is None else min(config.limit_batches, len(loader))


def evaluation_pairs(
    config: RunConfig, images: ImageSet, facts: DataFacts, rule: Rule, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches that a run evaluates on, in the layout of its network."""
    batches = evaluation_batches(images, config.batch_size, facts.mean, facts.std, device)
    for number, (x, y) in enumerate(batches):
        if number == config.limit_batches:
            return
        yield in_layout(x, rule), y


def in_layout(x: Tensor, rule: Rule) -> Tensor:
    """Lay a batch out in memory as the rule's network wants it."""
    return x.contiguous(memory_format=torch.channels_last) if is_convolutional(rule) and x.dim() == 4 else x


def is_convolutional(rule: Rule) -> bool:
    """Tell whether the network has convolutions, which run faster with the channels last in memory."""
    return any(isinstance(module, _ConvNd) for module in rule.net.modules())


def optimizer_factory(name: str, settings: dict[str, Any]) -> Callable[[list[nn.Parameter]], Optimizer]:
    """Return what builds the optimiser of a parameter group; its fused form where PyTorch has one.

    Raises:
        ValueError: On use, if the class refuses its settings.
    """
    cls = optimizer_class(name)
    can_fuse = "fused" in inspect.signature(cls).parameters and not {"fused", "foreach"} & set(settings)

    def make(parameters: list[nn.Parameter]) -> Optimizer:
        try:
            if can_fuse:
                try:
                    return cls(parameters, **settings, fused=True)
                except RuntimeError:  # no fused form for this device, data type or setting: same numbers, slower
                    pass
            return cls(parameters, **settings)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"--optimizer {name}: {error}; change --optimizer.SETTING or --optimizer") from error

    return make
