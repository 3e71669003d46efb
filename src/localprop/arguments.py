"""What the command line accepts: flags of the run read off `RunConfig`, dotted flags of its components."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from localprop.errors import nearest
from localprop.train.components import KINDS, find
from localprop.train.config import DEFAULT_NAMES, ConfigError, RunConfig
from localprop.train.settings import field_types

SETTINGS_HELP = """\
Components have settings of their own: --method.X, --model.X, --data.X, --optimizer.X, --schedule.X. To see
them, name the components and ask again: localprop train --method dcl --model vgg8b --optimizer SGD --help
Flags go before the --config file, the file before the method's recipe, the recipe before the defaults."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `ConfigError`, so that its complaints look like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`."""
        raise ConfigError([message])


def spelled(key: str) -> str:
    """Return the flag of a setting."""
    return f"--{key.replace('_', '-')}"


def normalised(argv: Sequence[str]) -> list[str]:
    """Spell flags with dashes, and tie negative numbers to the flag before them."""
    words: list[str] = []
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            words.append(flag.replace("_", "-") + equals + value)
        elif re.match(r"-[\d.]", word) and words and words[-1].startswith("--") and "=" not in words[-1]:
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def add_list(parser: argparse.ArgumentParser) -> None:
    """Add what the commands take that list a catalogue."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_cite(parser: argparse.ArgumentParser) -> None:
    """Add what `localprop cite` takes."""
    parser.add_argument("method", metavar="METHOD", help="name of a method")


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add what `localprop evaluate` takes."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="directory of a run")
    parser.add_argument("--allow-imports", action="store_true", help="import the code that the run's settings name")
    add_list(parser)


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Add what `localprop predict` takes."""
    add_evaluate(parser)
    parser.add_argument("images", metavar="IMAGE", type=Path, nargs="+", help="image files of any size and mode")


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Add what `localprop explain` takes."""
    add_evaluate(parser)
    parser.add_argument("--only", metavar="NAME,NAME", default="", help="analyses to make (default: all that fit)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="directory to write (default: DIR/explain)")
    parser.add_argument(
        "--images",
        metavar="N",
        type=int,
        default=5000,
        help="most training and most test images to look at (default: %(default)s)",
    )


def add_exits(parser: argparse.ArgumentParser) -> None:
    """Add what `localprop exits` takes."""
    add_evaluate(parser)
    parser.add_argument(
        "--by",
        metavar="MEASURE",
        default="confidence",
        help="what makes a block sure: confidence, margin or entropy (default: %(default)s)",
    )
    parser.add_argument(
        "--max-error-increase",
        metavar="POINTS",
        type=float,
        default=0.5,
        help="points of error that early exits may cost on the held-out images (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size", metavar="N", type=int, help="images a batch that is timed (default: that of the run)"
    )
    parser.add_argument("--picture", metavar="FILE", type=Path, help="also draw error over arithmetic, as PNG or SVG")


def add_train(parser: argparse.ArgumentParser) -> None:
    """Add what `localprop train` takes."""
    _add_run(parser, [*KINDS, *field_types()], "runs/METHOD-MODEL-DATA-seedN")
    parser.add_argument("--print-config", action="store_true", help="print the settings as YAML and stop")


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Add what `localprop compare` takes: the flags of a run, and its methods and seeds in the plural."""
    settings = [name for name in (*KINDS, *field_types()) if name not in ("method", "seed")]
    _add_run(parser, settings, "runs/compare-MODEL-DATA")
    parser.add_argument("--methods", metavar="NAME,NAME", default="", help="methods to compare, with commas")
    parser.add_argument("--seeds", metavar="N", default="1", help="runs of each method: seeds 0 to N-1 (default: 1)")


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add what `localprop bench` takes: what is measured, and the flags of a run that decide its cost."""
    settings = [*(kind for kind in KINDS if kind not in ("method", "schedule")), "batch_size", "precision", "threads"]
    settings += ["device", "at", "image_size"]
    parser.add_argument("what", choices=("step", "memory", "depth"), help="time, memory, or memory over depth")
    _add_settings(parser, settings, {"data": "cifar10", "batch_size": "128", "threads": "1"})
    parser.add_argument("--methods", metavar="NAME,NAME", default="dcl,dcl-s,dcl-ld,pred", help="default: %(default)s")
    parser.add_argument("--baselines", metavar="NAME,NAME", default="", help="other ways to write backprop, beside it")
    parser.add_argument("--blocks", metavar="N,N", default="8,64,256,1024", help="depths (default: %(default)s)")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="also draw the rows, as PNG, SVG or PDF")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.set_defaults(config=None, allow_imports=False, resume=None)  # a benchmark is given by its flags alone
    parser.add_argument("-h", "--help", action="store_true", help="show this, and the settings of named components")


def _add_run(parser: argparse.ArgumentParser, settings: Sequence[str], out: str) -> None:
    parser.usage = f"{parser.prog} [--FLAG VALUE] [--COMPONENT.SETTING VALUE] ... [--out DIR]"
    _add_settings(parser, settings, {})
    parser.add_argument("-h", "--help", action="store_true", help="show this, and the settings of named components")
    parser.add_argument("--config", metavar="FILE", type=Path, help="YAML file of settings")
    parser.add_argument("--out", metavar="DIR", type=Path, help=f"directory to write (default: {out})")
    parser.add_argument("--resume", metavar="auto", help="auto: start, go on, or leave a finished run as it is")
    parser.add_argument("--allow-imports", action="store_true", help="import the code that the --config file names")


def _add_settings(parser: argparse.ArgumentParser, settings: Sequence[str], own_defaults: Mapping[str, str]) -> None:
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


def listed(text: str) -> list[str]:
    """Split what a flag lists with commas; each name once."""
    return list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))


def counts(flag: str, text: str, problems: list[str]) -> list[int]:
    """Read positive whole numbers with commas; adds what is wrong to the problems."""
    numbers = listed(text)
    if not numbers or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        problems.append(f"{flag} {text}: must be whole numbers of at least 1 with commas, such as 8,64,256")
        return []
    return [int(number) for number in numbers]


def refuse(parser: argparse.ArgumentParser, rest: Sequence[str]) -> None:
    """Refuse words that a command does not take.

    Raises:
        ConfigError: If there are any.
    """
    if rest:
        known = [flag for action in parser._actions for flag in action.option_strings]
        raise ConfigError([f"{word}: {parser.prog} does not take this{nearest(word, known)}" for word in rest])


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
