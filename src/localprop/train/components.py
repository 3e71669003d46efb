"""The exchangeable parts of a run: finds their builders by name and reads their settings off the signatures.

A part's settings are the keyword-only parameters of the function that builds it, so a new hyperparameter is a
flag, a YAML key and a line of help as soon as it is written.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from localprop.errors import nearest

if TYPE_CHECKING:
    from torch.optim import Optimizer

KINDS = ("method", "model", "data", "optimizer", "schedule")
SCHEMES: Mapping[str, tuple[str, ...]] = {"model": ("timm", "torchvision"), "data": ("folder", "parquet", "hf")}


@dataclass(frozen=True)
class Component:
    """One exchangeable part of a run.

    Attributes:
        name: Its name in the catalogue, `scheme:NAME`, or an import path `package.module:ATTRIBUTE`.
        settings: Keyword arguments of its builder.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """What a component's name stands for.

    Attributes:
        builder: The function or class that makes it.
        settings: What users may set: name -> parameter with its type and default.
    """

    builder: Callable[..., Any]
    settings: Mapping[str, inspect.Parameter]

    def documentation(self) -> dict[str, str]:
        """Return the first sentence that the builder's docstring says of each setting."""
        section = (inspect.getdoc(self.builder) or "").partition("Args:")[2]
        entry = r"^ +(\w+)(?: \([^)]*\))?:"
        entries = re.findall(rf"{entry}((?:.|\n(?!{entry}|\n))*)", section, re.MULTILINE)
        return {found[0]: re.split(r"(?<=\.)\s", " ".join(found[1].split()))[0] for found in entries}


def is_import_path(kind: str, name: str) -> bool:
    """Tell whether looking up `name` would execute code that is named by it."""
    return kind != "data" and ":" in name and name.partition(":")[0] not in SCHEMES.get(kind, ())


def find(kind: str, name: str) -> Part:
    """Find a component.

    Args:
        kind: One of `KINDS`.
        name: Name, `scheme:NAME` or import path. An import path is imported: vet it first.

    Raises:
        ValueError: If there is no such component; names the nearest.
    """
    return _FINDERS[kind](name)


def optimizer_class(name: str) -> Callable[..., Optimizer]:
    """Find an optimiser class by its name in `torch.optim` or by import path.

    Raises:
        ValueError: If there is none, or its step needs a closure, as that of LBFGS does, or sparse gradients.
    """
    import torch

    known = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    found = import_attribute(name) if ":" in name else known.get(name)
    if found is None:
        raise ValueError(f"no class {name!r} in torch.optim{nearest(name, known)}; there are {', '.join(known)}")
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ValueError("must be a torch.optim.Optimizer class")
    if issubclass(found, torch.optim.SparseAdam):
        raise ValueError("steps sparse gradients alone, and the gradients of blocks are dense; choose Adam")
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError("evaluates the loss several times a step, which a block's step cannot; choose another")
    return found


def import_attribute(path: str) -> Callable[..., Any]:
    """Import the function or class `package.module:ATTRIBUTE`. Executes the module.

    Raises:
        ValueError: If there is none.
    """
    _check_import_path(path)
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"there is no module {error.name} on the Python path") from error
    found: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(found):
        what = "is not a function or class" if found else f"does not exist{nearest(attribute, vars(module))}"
        raise ValueError(f"{attribute} of module {module_name} {what}")
    return found


def _check_import_path(path: str) -> None:
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", path):
        raise ValueError("an import path has the form package.module:ATTRIBUTE")


def _keyword_only(builder: Callable[..., Any], *arguments: str, but: str | None = None) -> Part:
    """Read the settings off a builder that is called with `arguments` before them."""
    try:
        signature = inspect.signature(builder, eval_str=True)
    except NameError as error:
        raise _unreadable(error) from error
    settings = {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY and p.name != but}
    try:
        signature.bind(*arguments, **settings)
    except TypeError as error:
        form = ", ".join([*arguments, "*, settings"])
        raise ValueError(f"must be callable as ({form}), its signature is {signature}: {error}") from None
    return Part(builder, settings)


def _unreadable(error: NameError) -> ValueError:
    advice = "import the types of settings outside `if TYPE_CHECKING`"
    return ValueError(f"the types of its settings cannot be read: {error}; {advice}")


def _method(name: str) -> Part:
    from localprop import methods

    if ":" in name:
        _check_import_path(name)
    method = methods.get(name)
    try:
        return Part(method.builder, method.settings())
    except NameError as error:
        raise _unreadable(error) from error


def _model(name: str) -> Part:
    from localprop import models

    if is_import_path("model", name):
        _check_import_path(name)
    return _keyword_only(models.get(name), "image_shape", "num_classes", but="at")  # the run's --at


def _data(name: str) -> Part:
    from localprop import data

    if name not in data.CATALOGUE and name.partition(":")[0] not in SCHEMES["data"]:
        known = ", ".join(data.CATALOGUE)
        raise ValueError(
            f"no data set {name!r}{nearest(name, data.CATALOGUE)}; there are {known}, folder:DIR, parquet:DIR, hf:DIR"
        )
    return _keyword_only(data.load, "name", but="image_size")  # the run's --image-size


def _optimizer(name: str) -> Part:
    found = optimizer_class(name)
    parameters = inspect.signature(found, eval_str=True).parameters
    return Part(found, {key: parameter for key, parameter in parameters.items() if key != "params"})


def _schedule(name: str) -> Part:
    from localprop.train.schedule import CATALOGUE

    if ":" in name:
        return _keyword_only(import_attribute(name))
    if name not in CATALOGUE:
        raise ValueError(f"no schedule {name!r}{nearest(name, CATALOGUE)}; there are {', '.join(CATALOGUE)}")
    return _keyword_only(CATALOGUE[name])


_FINDERS: Mapping[str, Callable[[str], Part]] = {
    "method": _method,
    "model": _model,
    "data": _data,
    "optimizer": _optimizer,
    "schedule": _schedule,
}
