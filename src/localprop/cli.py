"""The command line: thin functions over the library, which is imported when a command needs it.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 2 the user's mistake,
3 training failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from localprop import arguments as accepted
from localprop import streams
from localprop.errors import nearest
from localprop.train.components import find
from localprop.train.config import DEFAULT_NAMES, ConfigError, Resolved, resolve
from localprop.train.errors import Interrupted, TrainingError, is_out_of_memory
from localprop.train.interrupt import answering_signals
from localprop.train.settings import coerce, field_types


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: The words after `localprop`; by default those of the process.
    """
    streams.open_all()
    try:
        with answering_signals(signal.default_int_handler):  # SIGTERM ends a command as Ctrl-C does
            code = _run(accepted.normalised(sys.argv[1:] if argv is None else argv))
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
        streams.say(f"error: {_memory_ran_out(error)}")
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
        accepted.refuse(parser, rest)
        parser.print_help(sys.stderr)
        return 2
    command: Callable[[argparse.Namespace, list[str]], int] = arguments.command
    return command(arguments, rest)


def _parser() -> accepted.Parser:
    from localprop import __version__

    parser = accepted.Parser(prog="localprop", description="Train deep networks by local learning.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"localprop {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, (command, add_arguments, text) in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            allow_abbrev=False,
            add_help=command not in (_train, _compare, _bench),  # theirs depends on the other flags
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_arguments(one)
        one.set_defaults(command=command, parser=one)
    return parser


def _methods(arguments: argparse.Namespace, rest: list[str]) -> int:
    accepted.refuse(arguments.parser, rest)
    from localprop.methods import catalogue

    return _show([method.row() for method in catalogue().values()], ("name", "year", "title"), arguments.json)


def _models(arguments: argparse.Namespace, rest: list[str]) -> int:
    accepted.refuse(arguments.parser, rest)
    from localprop.models import CATALOGUE

    rows = []
    for name, factory in CATALOGUE.items():
        defaults = {key: parameter.default for key, parameter in find("model", name).settings.items()}
        rows.append({"name": name, "title": (inspect.getdoc(factory) or "").partition("\n")[0], "settings": defaults})
    return _show(rows, ("name", "title"), arguments.json)


def _data(arguments: argparse.Namespace, rest: list[str]) -> int:
    accepted.refuse(arguments.parser, rest)
    from localprop.data import CATALOGUE

    columns = ("title", "image_shape", "num_train", "num_test", "class_names", "terms", "source")
    rows = [{"name": name, **{key: getattr(entry, key) for key in columns}} for name, entry in CATALOGUE.items()]
    return _show(rows, ("name", "num_train", "num_test", "title"), arguments.json)


def _cite(arguments: argparse.Namespace, rest: list[str]) -> int:
    accepted.refuse(arguments.parser, rest)
    from localprop.methods import get

    print(get(arguments.method).citation.strip())
    return 0


def _train(arguments: argparse.Namespace, rest: list[str]) -> int:
    flags, problems = accepted.run_flags(arguments, rest)
    if arguments.help:
        return _show_help(arguments.parser, flags)
    resolved = _resolved(arguments, flags, problems)
    config = resolved.config
    if arguments.print_config:
        streams.say(*resolved.notes)
        print(config.to_yaml(), end="")
        return 0
    default = f"{config.method.name}-{config.model.name}-{config.data.name}-seed{config.seed}"
    directory = arguments.out or _default_directory(default)

    from localprop.train.fit import fit

    notes = (*resolved.notes, f"run: {directory}")
    resume = arguments.resume == "auto"
    return _trained(lambda: fit(config, directory, resume=resume, stream=sys.stderr, notes=notes))


def _compare(arguments: argparse.Namespace, rest: list[str]) -> int:
    flags, problems = accepted.run_flags(arguments, rest)
    if arguments.help:
        return _show_help(arguments.parser, flags)
    num_seeds = 0
    try:
        num_seeds = coerce(field_types()["epochs"], arguments.seeds)
    except ValueError as error:
        problems.append(f"--seeds {arguments.seeds}: {error}")
    found, notes = _resolve_methods(arguments, flags, problems)
    configs = [resolved.config for resolved in found]
    directory = arguments.out or _default_directory(f"compare-{configs[0].model.name}-{configs[0].data.name}")

    from localprop.train.compare import compare

    shown = (
        *dict.fromkeys([note for resolved in found for note in resolved.notes] + notes),
        f"comparison: {directory}",
    )
    resume = arguments.resume == "auto"
    return _trained(lambda: compare(configs, directory, seeds=range(num_seeds), resume=resume, notes=shown))


def _bench(arguments: argparse.Namespace, rest: list[str]) -> int:
    flags, problems = accepted.run_flags(arguments, rest)
    if arguments.help:
        return _show_help(arguments.parser, flags)
    from localprop.bench.rows import bench_rows
    from localprop.bench.subjects import BASELINES
    from localprop.report.bench import bench_figure, cells

    baselines = accepted.listed(arguments.baselines)
    problems += [
        f"--baselines {name}: no such baseline{nearest(name, BASELINES)}; there are {', '.join(list(BASELINES)[1:])}"
        for name in baselines
        if name not in BASELINES
    ]
    depths = accepted.counts("--blocks", arguments.blocks, problems)
    found, notes = _resolve_methods(arguments, flags, problems)
    streams.say(*notes)
    rows = bench_rows(arguments.what, [one.config for one in found], baselines=baselines, depths=depths)
    shown = rows if arguments.json else cells(arguments.what, rows)
    if arguments.picture is not None:
        bench_figure(arguments.what, rows, arguments.picture)
    return _show(shown, tuple(shown[0]), arguments.json, header=True)


def _evaluate(arguments: argparse.Namespace, rest: list[str]) -> int:
    accepted.refuse(arguments.parser, rest)
    from localprop.train.evaluate import evaluate_run

    found = evaluate_run(arguments.directory, allow_imports=arguments.allow_imports)
    print(json.dumps(found) if arguments.json else "\n".join(f"{key}  {value}" for key, value in found.items()))
    return 0


def _predict(arguments: argparse.Namespace, rest: list[str]) -> int:
    accepted.refuse(arguments.parser, rest)
    from localprop.infer.predict import predict

    rows = predict(arguments.directory, arguments.images, allow_imports=arguments.allow_imports)
    return _show(rows, tuple(rows[0]), arguments.json)


def _explain(arguments: argparse.Namespace, rest: list[str]) -> int:
    accepted.refuse(arguments.parser, rest)
    from localprop.analysis.explain import explain_run

    out = arguments.out or arguments.directory / "explain"
    try:
        found = explain_run(
            arguments.directory,
            only=accepted.listed(arguments.only),
            out=out,
            images=arguments.images,
            allow_imports=arguments.allow_imports,
            say=streams.say,
        )
    except TrainingError as error:  # a file could not be written
        streams.say(f"error: {error}")
        return 3
    streams.say(f"rows and pictures: {out}")
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, analysis in found["analyses"].items():
        print(f"{name}: {analysis['title']}")
        streams.print_numbers(analysis["rows"])
        print()
    return 0


def _exits(arguments: argparse.Namespace, rest: list[str]) -> int:
    accepted.refuse(arguments.parser, rest)
    from localprop.report.exits import check_picture, exits_figure, print_exits
    from localprop.train.exits import exits_run

    check_picture(arguments.picture)
    found = exits_run(
        arguments.directory,
        measure=arguments.by,
        max_error_increase=arguments.max_error_increase,
        batch_size=arguments.batch_size,
        allow_imports=arguments.allow_imports,
    )
    if arguments.picture is not None:
        exits_figure(found, arguments.picture)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        print_exits(found)
    return 0


Command = Callable[[argparse.Namespace, list[str]], int]
COMMANDS: Mapping[str, tuple[Command, Callable[[argparse.ArgumentParser], None], str]] = {
    "methods": (_methods, accepted.add_list, "list the methods"),
    "models": (_models, accepted.add_list, "list the networks"),
    "data": (_data, accepted.add_list, "list the data sets"),
    "cite": (_cite, accepted.add_cite, "print the BibTeX entry of a method"),
    "train": (_train, accepted.add_train, "train a network"),
    "compare": (_compare, accepted.add_compare, "train a network by several methods, into one table"),
    "bench": (_bench, accepted.add_bench, "measure time and memory of training steps beside hand-written backprop"),
    "evaluate": (_evaluate, accepted.add_evaluate, "measure the errors of a trained network again"),
    "predict": (_predict, accepted.add_predict, "classify images with a trained network"),
    "explain": (_explain, accepted.add_explain, "analyse what the blocks of a trained network know"),
    "exits": (_exits, accepted.add_exits, "measure what a trained network gains by answering at its first sure block"),
}


def _resolved(arguments: argparse.Namespace, flags: Mapping[str, str], problems: Sequence[str]) -> Resolved:
    """Resolve the settings; mistakes in the command line's form are reported with those in its content."""
    try:
        resolved = resolve(flags, arguments.config, allow_imports=arguments.allow_imports)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return resolved


def _resolve_methods(
    arguments: argparse.Namespace, flags: Mapping[str, str], problems: list[str]
) -> tuple[list[Resolved], list[str]]:
    """Resolve the settings for every method of --methods; also says which flags some of them do not have.

    Raises:
        ConfigError: All mistakes, `problems` among them.
    """
    methods = accepted.listed(arguments.methods)
    if not methods:
        problems.append("--methods: name the methods to compare, such as --methods bp,dcl")
    found: list[Resolved] = []
    notes: list[str] = []
    for method in methods or [DEFAULT_NAMES["method"]]:
        own = {**accepted.flags_of(method, methods, flags), "method": method, "seed": "0"}
        try:
            found.append(_resolved(arguments, own, problems))
        except ConfigError as error:
            problems += error.problems
        for key in flags.keys() - own.keys():
            notes.append(f"{accepted.spelled(key)} {flags[key]}: not a setting of {method}")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return found, notes


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
        streams.say(f"error: {_memory_ran_out(error)}, a smaller --batch-size, or --accumulate 2")
        return 3
    except BrokenPipeError:  # nobody reads the progress any more, as in `localprop train 2>&1 | head`: not done
        streams.lead_nowhere(sys.stderr)
        return 130
    return 0


def _memory_ran_out(error: BaseException) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"not enough memory ({reason}); try smaller images (--image-size), a smaller network (--model.width)"


def _show_help(parser: argparse.ArgumentParser, flags: Mapping[str, str]) -> int:
    accepted.add_component_settings(parser, flags)
    parser.print_help()
    return 0


def _default_directory(name: str) -> Path:
    return Path("runs") / re.sub(r"[^\w.-]+", "-", name)


def _show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_json: bool, *, header: bool = False) -> int:
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        streams.print_table([dict(zip(columns, columns, strict=True)), *rows] if header else rows, columns)
    return 0
