"""The flags of a run: read off `RunConfig`, with dotted flags for the settings of its components."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path

from localprop.commands.arguments import listed, spelled
from localprop.train.components import KINDS, find
from localprop.train.config import DEFAULT_NAMES, ConfigError, Resolved, RunConfig, resolve
from localprop.train.settings import field_types

SETTINGS_HELP = """\
Components have settings of their own: --method.X, --model.X, --data.X, --optimizer.X, --schedule.X. To see
them, name the components and ask again: localprop train --method dcl --model vgg8b --optimizer SGD --help
Flags go before the --config file, the file before the method's recipe, the recipe before the defaults."""


def add_run(parser: argparse.ArgumentParser, settings: Sequence[str], out: str) -> None:
    """Add the settings of a run, and what else commands take that train: --config, --out, --resume."""
    parser.usage = f"{parser.prog} [--FLAG VALUE] [--COMPONENT.SETTING VALUE] ... [--out DIR]"
    add_settings(parser, settings, {})
    parser.add_argument("-h", "--help", action="store_true", help="show this, and the settings of named components")
    parser.add_argument("--config", metavar="FILE", type=Path, help="YAML file of settings")
    parser.add_argument("--out", metavar="DIR", type=Path, help=f"directory to write (default: {out})")
    parser.add_argument("--resume", metavar="auto", help="auto: start, go on, or leave a finished run as it is")
    parser.add_argument("--allow-imports", action="store_true", help="import the code that the --config file names")


def add_settings(parser: argparse.ArgumentParser, settings: Sequence[str], own_defaults: Mapping[str, str]) -> None:
    """Add flags of components and settings of a run, with the defaults that this command has in place of a run's."""
    parser.epilog = SETTINGS_HELP
    defaults = {item.name: item.default for item in dataclasses.fields(RunConfig)} | dict(own_defaults)
    names = {**DEFAULT_NAMES, **own_defaults}
    components = parser.add_argument_group("components")
    own = parser.add_argument_group("settings of the run")
    for name in settings:
        if name in KINDS:
            group, metavar, text = (
                components,
                "NAME",
                f"default: {names.get(name, 'the recipe of the method')}",
            )
        else:
            group, metavar, text = own, "VALUE", field_types()[name].__metadata__[-1]
            if name in own_defaults or ("unless given" not in text and defaults[name] not in (None, ())):
                text += f" (default: {defaults[name]})"
        default = own_defaults.get(name, argparse.SUPPRESS)
        group.add_argument(spelled(name), metavar=metavar, default=default, help=text)


def run_flags(arguments: argparse.Namespace, rest: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Collect the settings of a run from a command line.

    Returns:
        Setting -> text, unknown settings included; and the mistakes in the form of the command line.
    """
    flags = {key: text for key, text in vars(arguments).items() if key in KINDS or key in field_types()}
    problems = []
    known = {action.dest: spelled(action.dest) for action in arguments.parser._actions}
    words = list(rest)
    while words:
        word = words.pop(0)
        flag, equals, text = word.partition("=")
        key = flag[2:].replace("-", "_")
        if not word.startswith("--"):
            problems.append(f"{word}: not a flag; settings are given as --FLAG VALUE")
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                problems.append(f"{flag}: needs a value")
                continue
            text = words.pop(0)
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
        if key not in known and close and "." not in key:
            problems.append(f"{flag} {text}: no such flag (did you mean {known[close[0]]}?)")
        elif key not in known and key in field_types():
            problems.append(f"{flag} {text}: {arguments.parser.prog} does not take this")
        else:
            flags[key] = text
    if arguments.resume not in (None, "auto"):
        problems.append(f"--resume {arguments.resume}: must be auto")
    return flags, problems


def flags_of(method: str, methods: Sequence[str], flags: Mapping[str, str]) -> dict[str, str]:
    """Leave out the settings that other methods of the comparison have and this one has not."""

    def has(name: str, key: str) -> bool:
        try:
            return key.removeprefix("method.") in find("method", name).settings
        except ValueError:  # an unknown method: reported when its settings are resolved
            return False

    foreign = {key for key in flags if key.startswith("method.") and not has(method, key)}
    return {
        key: text for key, text in flags.items() if key not in foreign or not any(has(name, key) for name in methods)
    }


def resolved(arguments: argparse.Namespace, flags: Mapping[str, str], problems: Sequence[str]) -> Resolved:
    """Resolve the settings; mistakes in the command line's form are reported with those in its content.

    Raises:
        ConfigError: All mistakes, `problems` among them.
    """
    try:
        found = resolve(flags, arguments.config, allow_imports=arguments.allow_imports)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return found


def resolve_methods(
    arguments: argparse.Namespace, flags: Mapping[str, str], problems: list[str]
) -> tuple[list[Resolved], list[str]]:
    """Resolve the settings for every method of --methods; also says which flags some of them do not have.

    Raises:
        ConfigError: All mistakes, `problems` among them.
    """
    methods = listed(arguments.methods)
    if not methods:
        problems.append("--methods: name the methods to compare, such as --methods bp,dcl")
    found: list[Resolved] = []
    notes: list[str] = []
    for method in methods or [DEFAULT_NAMES["method"]]:
        own = {**flags_of(method, methods, flags), "method": method, "seed": "0"}
        try:
            found.append(resolved(arguments, own, problems))
        except ConfigError as error:
            problems += error.problems
        for key in flags.keys() - own.keys():
            notes.append(f"{spelled(key)} {flags[key]}: not a setting of {method}")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return found, notes


def show_help(parser: argparse.ArgumentParser, flags: Mapping[str, str]) -> int:
    """Print the help with the settings of the components that the command line names; returns the exit code."""
    add_component_settings(parser, flags)
    parser.print_help()
    return 0


def add_component_settings(parser: argparse.ArgumentParser, flags: Mapping[str, str]) -> None:
    """Add the settings of the components that a command line names to the help.

    Raises:
        ConfigError: If there is no such component.
    """
    for kind in KINDS:
        if kind not in flags:
            continue
        try:
            part = find(kind, flags[kind])
        except ValueError as error:
            raise ConfigError([f"{spelled(kind)} {flags[kind]}: {str(error).removeprefix(f'{kind}: ')}"]) from None
        documentation = part.documentation()
        group = parser.add_argument_group(f"settings of {spelled(kind)} {flags[kind]}")
        for name, parameter in part.settings.items():
            annotation = "" if parameter.annotation is parameter.empty else parameter.annotation
            kind_of_value = inspect.formatannotation(annotation).replace("typing.", "").replace("torch.", "")
            default = "required" if parameter.default is parameter.empty else f"default: {parameter.default}"
            text = " ".join(filter(None, [documentation.get(name), f"[{kind_of_value}; {default}]"]))
            group.add_argument(spelled(f"{kind}.{name}"), metavar="VALUE", help=text.replace("%", "%%"))
