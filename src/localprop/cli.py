"""The command line: reads the words, runs the command, answers mistakes. The library is imported when a command runs.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 2 the user's mistake,
3 training failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from localprop import streams
from localprop.commands.arguments import Command, Parser, normalised, refuse
from localprop.commands.bench import BENCH
from localprop.commands.catalogues import CITE, DATA, METHODS, MODELS
from localprop.commands.exits import EXITS
from localprop.commands.explain import EXPLAIN
from localprop.commands.export import EXPORT
from localprop.commands.predict import EVALUATE, PREDICT
from localprop.commands.report import REPORT
from localprop.commands.train import COMPARE, TRAIN
from localprop.errors import nearest
from localprop.train.config import ConfigError
from localprop.train.errors import is_out_of_memory, memory_ran_out
from localprop.train.interrupt import answering_signals

COMMANDS: Mapping[str, Command] = {
    "methods": METHODS,
    "models": MODELS,
    "data": DATA,
    "cite": CITE,
    "train": TRAIN,
    "compare": COMPARE,
    "bench": BENCH,
    "evaluate": EVALUATE,
    "predict": PREDICT,
    "explain": EXPLAIN,
    "exits": EXITS,
    "export": EXPORT,
    "report": REPORT,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: The words after `localprop`; by default those of the process.
    """
    streams.open_all()
    try:
        # SIGTERM ends a command as Ctrl-C does.
        with answering_signals(signal.default_int_handler), streams.saying_warnings():
            code = _run(normalised(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
    except SystemExit as end:  # argparse, after --help and --version
        return int(end.code or 0)
    except KeyboardInterrupt:
        streams.say("interrupted")
        return 130
    except BrokenPipeError:  # the reader has seen enough, as in `localprop methods | head -1`
        streams.lead_nowhere(sys.stdout)
        return 0
    except (ValueError, OSError) as error:
        streams.say(*(f"error: {line}" for line in (str(error) or repr(error)).splitlines()))
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        streams.say(f"error: {memory_ran_out(error)}")
        return 2
    return code


def _run(words: list[str]) -> int:
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise ConfigError([f"{words[0]}: no such command{nearest(words[0], COMMANDS)}; there are {known}"])
    if any(":" in word for word in words) or "--allow-imports" in words:
        sys.path.append(os.getcwd())  # `--method my_file:METHOD` means the file beside the user
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    if "command" not in arguments:
        refuse(parser, rest)
        parser.print_help(sys.stderr)
        return 2
    command: Command = arguments.command
    return command.run(arguments, rest)


def _parser() -> Parser:
    from localprop import __version__

    parser = Parser(prog="localprop", description="Train deep networks by local learning.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"localprop {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=command.text,
            description=f"{command.text[0].upper()}{command.text[1:]}.",
            allow_abbrev=False,
            add_help=not command.own_help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(one)
        one.set_defaults(command=command, parser=one)
    return parser
