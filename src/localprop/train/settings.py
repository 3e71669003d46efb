"""The settings of a run as one frozen record, and how text and YAML become values of the right type."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from localprop.errors import nearest
from localprop.train.components import KINDS, Component

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0)]
Logger = Literal["tensorboard", "wandb"]
Weights = Literal["uniform", "linear", "exponential", "learned"]


_LARGEST_FILE_VALUES = 10_000


class ConfigError(ValueError):
    """Mistakes in the settings of a run, all of them.

    Attributes:
        problems: One line each: the setting, the value, what is allowed, the nearest match.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides how a run goes. Each field is a flag, a YAML key and a line of help.

    Raises:
        ConfigError: If a field is of the wrong type or out of its range.
    """

    method: Component
    model: Component
    data: Component
    optimizer: Component
    schedule: Component
    epochs: Annotated[Count, "passes over the training set; the recipe that is printed names the published number"] = 5
    batch_size: Annotated[Count, "images a step; unless given, the recipe's"] = 128
    seed: Annotated[int, Field(ge=0), "seed of weights, data order, augmentation and dropout"] = 0
    precision: Annotated[Literal["fp32", "bf16"], "arithmetic of the forward pass: fp32 or bf16"] = "fp32"
    validation: Annotated[float, Field(ge=0, lt=1), "fraction of the training images held out, stratified"] = 0.0
    accumulate: Annotated[
        Count, "equal parts that a batch is cut into; their gradients are added up before the step"
    ] = 1
    clip_norm: Annotated[Positive | None, "largest gradient norm of a parameter group"] = None
    offload_optimizer: Annotated[
        bool, "keep the state of an accelerator's optimisers in host memory while they do not step: true or false"
    ] = False
    at: Annotated[
        tuple[str, ...] | None,
        "modules to cut the network after, with commas; or one list of modules to cut after each of, such as "
        "encoder.layers; or blocks, stages; unless given, a network that is no list of modules is cut into stages",
    ] = None
    freeze: Annotated[
        tuple[str, ...], "blocks that are not trained, with commas: names, or numbers from 0; they stay as they are"
    ] = ()
    weights: Annotated[
        str | None,
        "weights to start from: the directory of a run, a file (state dict of PyTorch, or safetensors), or "
        "pretrained: those of timm or torchvision; unless given, they are drawn",
    ] = None
    warmup_epochs: Annotated[
        Count | None, "epochs of backprop before the method's own, as a run in DIR/warm-up; unless given, none"
    ] = None
    curriculum: Annotated[
        str | None,
        "directory of a run whose loss says how hard each training image is; training begins with a fifth of the "
        "images, and has all of them from its middle on; unless given, all are drawn from the start",
    ] = None
    curriculum_order: Annotated[Literal["easy", "hard"], "which images a curriculum begins with: easy or hard"] = "easy"
    pacing: Annotated[
        Literal["linear", "exponential"], "how the images of a curriculum grow in number: linear or exponential"
    ] = "linear"
    limit_batches: Annotated[Count | None, "most batches of a training epoch, and of an evaluation"] = None
    image_size: Annotated[
        Count | None,
        "pixels a side that all images are resized to; unless given, what the network declares, or the data's own",
    ] = None
    feature_cache_mb: Annotated[
        Count | None,
        "megabytes on disk for features of blocks that are trained already; unless given, they are computed each step",
    ] = None
    checkpoint_every: Annotated[Count | None, "steps between checkpoints; unless given, each epoch"] = None
    keep: Annotated[Count, "checkpoints kept on disk"] = 2
    log: Annotated[tuple[Logger, ...], "live loggers, with commas: tensorboard, wandb"] = ()
    log_every: Annotated[Count, "steps between two rows of metrics"] = 10
    threads: Annotated[
        Annotated[int, Field(ge=1, le=1024)] | None, "threads of PyTorch; unless given, its own choice"
    ] = None
    device: Annotated[str, "a torch device, or auto: the accelerator if there is one"] = "auto"
    ensemble: Annotated[
        Weights,
        "weights of the sum over blocks: uniform, linear, exponential, or learned on what --validation holds out",
    ] = "uniform"

    def __post_init__(self) -> None:
        problems = []
        for name, annotation in field_types().items():
            try:
                object.__setattr__(self, name, coerce(annotation, getattr(self, name)))
            except ValueError as error:
                problems.append(f"{name} {getattr(self, name)}: {error}")
        if self.ensemble == "learned" and not self.validation:
            problems.append("--ensemble learned: there are no held-out images to learn on; add --validation 0.1")
        if problems:
            raise ConfigError(problems)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that replays the run; fields that are None are left out."""
        parts = {kind: {"name": getattr(self, kind).name, **getattr(self, kind).settings} for kind in KINDS}
        rest = {name: getattr(self, name) for name in field_types() if getattr(self, name) is not None}
        return {key: plain(value) for key, value in {**parts, **rest}.items()}

    def to_yaml(self) -> str:
        """Return the text of a file that replays the run."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)


class Loader(yaml.SafeLoader):
    """Read YAML as `yaml.safe_load` does, but refuse a key that is set twice, and read numbers as people do.

    `1e-3` is a number; `010` is not 8, and `1:30` is not 90.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; each key may stand in it once."""
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, key in enumerate(keys):
            if key.value in [earlier.value for earlier in keys[:index]]:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is set twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _integer(loader: Loader, node: yaml.ScalarNode) -> int | str:
    digits = node.value.replace("_", "")
    return int(digits, 0) if re.fullmatch(r"[-+]?(0|[1-9]\d*|0x[\da-fA-F]+|0b[01]+)", digits) else str(node.value)


Loader.add_constructor("tag:yaml.org,2002:int", _integer)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def field_types() -> dict[str, Any]:
    """Return the types of the settings that are the run's own, each annotated with its line of help."""
    hints = typing.get_type_hints(RunConfig, include_extras=True)
    return {item.name: hints[item.name] for item in dataclasses.fields(RunConfig) if item.name not in KINDS}


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: If it cannot be read; names file and line.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError([f"{file}: cannot be read: {reason}"]) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError([f"{file}, line {line}: not valid YAML: {error.problem}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{file}: not valid YAML: {' '.join(str(error).split())}"]) from None
    except RecursionError:
        raise ConfigError([f"{file}: nested too deeply for settings"]) from None
    if _is_larger(content, _LARGEST_FILE_VALUES):  # aliases can stand for more than any memory holds
        raise ConfigError([f"{file}: holds more than {_LARGEST_FILE_VALUES} values with its aliases written out"])
    if content is not None and not isinstance(content, dict):
        raise ConfigError([f"{file}: must hold settings as `name: value`, not a {type(content).__name__}"])
    return {str(key): value for key, value in (content or {}).items()}


def _is_larger(content: Any, limit: int) -> bool:
    """Tell whether more than `limit` values stand in nested mappings and lists; those that hold themselves do."""
    waiting, count = [content], 0
    while waiting and count <= limit:
        value = waiting.pop()
        count += 1
        if isinstance(value, list | dict):
            waiting += list(value.values() if isinstance(value, dict) else value)[: limit + 1]
    return count > limit


def coerce(annotation: Any, value: Any) -> Any:
    """Turn a value, or text from a command line, into what an annotation asks for.

    Text is read as YAML, as itself, or as a list without its brackets: the first that fits.
    Truth values are not numbers.

    Raises:
        ValueError: Says what the value must be.
    """
    if annotation is Parameter.empty:
        annotation = Any
    adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
    complaints = []
    for candidate in _readings(value) if isinstance(value, str) else [value]:
        try:
            result = adapter.validate_python(candidate)
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False)
            complaints.append([detail for detail in details if detail["type"] != "is_instance_of"] or details)
            continue
        if isinstance(candidate, bool) and not isinstance(result, bool):
            raise ValueError("must be a number, not yes or no")
        return result
    # The reading that got furthest knows best: "tensorbord" in a list of names, rather than "not a list".
    details = max(complaints, key=lambda found: max(len(detail["loc"]) for detail in found))
    messages = (
        detail["msg"].replace("Input should", "must") + nearest(str(detail["input"]), _literals(annotation))
        for detail in details
    )
    raise ValueError(" or ".join(dict.fromkeys(message[0].lower() + message[1:] for message in messages)))


def _readings(text: str) -> list[Any]:
    return [*_yaml(text), text, *_yaml(f"[{text}]"), text.split(",")]


def _yaml(text: str) -> list[Any]:
    try:
        return [yaml.load(text, Loader)]
    except (yaml.YAMLError, RecursionError):
        return []


def _literals(annotation: Any) -> set[str]:
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return {part for part in parts if isinstance(part, str)}
    return {choice for part in parts for choice in _literals(part)}


def plain(value: Any) -> Any:
    """Return a value as YAML and JSON know it: sequences as lists, what they do not know as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
