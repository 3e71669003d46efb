"""What all commands share: the parser, reading of words, and the arguments that several of them take."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from localprop import streams
from localprop.errors import nearest
from localprop.train.config import ConfigError


class Command(NamedTuple):
    """One command of the command line.

    Attributes:
        run: Takes the parsed arguments and the words that the parser does not know; returns the exit code.
        add_arguments: Adds what the command takes to its parser.
        text: What it does, in a line.
        own_help: Whether `--help` is left to the command, because what it shows depends on the other flags.
    """

    run: Callable[[argparse.Namespace, list[str]], int]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    text: str
    own_help: bool = False


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


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_directory(parser: argparse.ArgumentParser) -> None:
    """Add what all commands take that read a run: its directory, leave to import its code, --json."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="directory of a run")
    parser.add_argument("--allow-imports", action="store_true", help="import the code that the run's settings name")
    add_json(parser)


def show_facts(facts: Mapping[str, Any], as_json: bool) -> int:
    """Print named facts on standard output, as JSON or a line each; returns the exit code."""
    print(json.dumps(facts, indent=2) if as_json else "\n".join(f"{key}  {value}" for key, value in facts.items()))
    return 0


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool, *, header: bool = False) -> int:
    """Print rows on standard output, as JSON or as a table of some columns; returns the exit code."""
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        streams.print_table([dict(zip(columns, columns, strict=True)), *rows] if header else rows, columns)
    return 0
