"""`localprop train` and `compare`: they train networks."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from localprop import streams
from localprop.commands.arguments import Command
from localprop.commands.settings import add_run, resolve_methods, resolved, run_flags, show_help
from localprop.train.components import KINDS
from localprop.train.errors import Interrupted, TrainingError, is_out_of_memory, memory_ran_out
from localprop.train.settings import coerce, field_types


def _train(arguments: argparse.Namespace, rest: list[str]) -> int:
    flags, problems = run_flags(arguments, rest)
    if arguments.help:
        return show_help(arguments.parser, flags)
    found = resolved(arguments, flags, problems)
    config = found.config
    if arguments.print_config:
        streams.say(*found.notes)
        print(config.to_yaml(), end="")
        return 0
    default = f"{config.method.name}-{config.model.name}-{config.data.name}-seed{config.seed}"
    directory = arguments.out or _default_directory(default)

    from localprop.train.fit import fit

    notes = (*found.notes, f"run: {directory}")
    resume = arguments.resume == "auto"
    allow_imports = arguments.allow_imports
    return _trained(
        lambda: fit(config, directory, resume=resume, stream=sys.stderr, notes=notes, allow_imports=allow_imports)
    )


def _add_train(parser: argparse.ArgumentParser) -> None:
    add_run(parser, [*KINDS, *field_types()], "runs/METHOD-MODEL-DATA-seedN")
    parser.add_argument("--print-config", action="store_true", help="print the settings as YAML and stop")


def _compare(arguments: argparse.Namespace, rest: list[str]) -> int:
    flags, problems = run_flags(arguments, rest)
    if arguments.help:
        return show_help(arguments.parser, flags)
    num_seeds = 0
    try:
        num_seeds = coerce(field_types()["epochs"], arguments.seeds)
    except ValueError as error:
        problems.append(f"--seeds {arguments.seeds}: {error}")
    found, notes = resolve_methods(arguments, flags, problems)
    configs = [one.config for one in found]
    directory = arguments.out or _default_directory(f"compare-{configs[0].model.name}-{configs[0].data.name}")

    from localprop.train.compare import compare

    shown = (
        *dict.fromkeys([note for one in found for note in one.notes] + notes),
        f"comparison: {directory}",
    )
    resume = arguments.resume == "auto"
    allow = arguments.allow_imports
    return _trained(
        lambda: compare(configs, directory, seeds=range(num_seeds), resume=resume, notes=shown, allow_imports=allow)
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    settings = [name for name in (*KINDS, *field_types()) if name not in ("method", "seed")]
    add_run(parser, settings, "runs/compare-MODEL-DATA")
    parser.add_argument("--methods", metavar="NAME,NAME", default="", help="methods to compare, with commas")
    parser.add_argument("--seeds", metavar="N", default="1", help="runs of each method: seeds 0 to N-1 (default: 1)")


def _trained(train: Callable[[], object]) -> int:
    try:
        train()
    except TrainingError as error:
        streams.say(f"error: {error}")
        return 3
    except Interrupted as error:
        streams.say(str(error))
        return 130
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        streams.say(f"error: {memory_ran_out(error)}, a smaller --batch-size, or --accumulate 2")
        return 3
    except BrokenPipeError:  # nobody reads the progress any more, as in `localprop train 2>&1 | head`: not done
        streams.lead_nowhere(sys.stderr)
        return 130
    return 0


def _default_directory(name: str) -> Path:
    return Path("runs") / re.sub(r"[^\w.-]+", "-", name)


TRAIN = Command(_train, _add_train, "train a network", own_help=True)
COMPARE = Command(_compare, _add_compare, "train a network by several methods, into one table", own_help=True)
