"""`localprop bench`: the cost of training steps."""

from __future__ import annotations

import argparse
from pathlib import Path

from localprop import streams
from localprop.commands.arguments import Command, counts, listed, show
from localprop.commands.settings import add_settings, resolve_methods, run_flags, show_help
from localprop.errors import nearest
from localprop.train.components import KINDS

WHAT = ("step", "memory", "depth")


def _bench(arguments: argparse.Namespace, rest: list[str]) -> int:
    flags, problems = run_flags(arguments, rest)
    if arguments.help:
        return show_help(arguments.parser, flags)
    if arguments.what is None:
        problems.append(f"bench: say what to measure: {', '.join(WHAT)}")
    from localprop.bench.rows import bench_rows
    from localprop.bench.subjects import BASELINES
    from localprop.report.bench import bench_figure, cells

    baselines = listed(arguments.baselines)
    problems += [
        f"--baselines {name}: no such baseline{nearest(name, BASELINES)}; there are {', '.join(list(BASELINES)[1:])}"
        for name in baselines
        if name not in BASELINES
    ]
    depths = counts("--blocks", arguments.blocks, problems)
    found, notes = resolve_methods(arguments, flags, problems)
    streams.say(*notes)
    rows = bench_rows(arguments.what, [one.config for one in found], baselines=baselines, depths=depths)
    shown = rows if arguments.json else cells(arguments.what, rows)
    if arguments.picture is not None:
        bench_figure(arguments.what, rows, arguments.picture)
    return show(shown, tuple(shown[0]), arguments.json, header=True)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    settings = [*(kind for kind in KINDS if kind not in ("method", "schedule")), "batch_size", "precision", "threads"]
    settings += ["device", "at", "image_size"]
    parser.add_argument("what", choices=WHAT, nargs="?", help="time, memory, or memory over depth")
    add_settings(parser, settings, {"data": "cifar10", "batch_size": "128", "threads": "1"})
    parser.add_argument("--methods", metavar="NAME,NAME", default="dcl,dcl-s,dcl-ld,pred", help="default: %(default)s")
    parser.add_argument("--baselines", metavar="NAME,NAME", default="", help="other ways to write backprop, beside it")
    parser.add_argument("--blocks", metavar="N,N", default="8,64,256,1024", help="depths (default: %(default)s)")
    parser.add_argument("--picture", metavar="FILE", type=Path, help="also draw the rows, as PNG, SVG or PDF")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.set_defaults(config=None, allow_imports=False, resume=None)  # a benchmark is given by its flags alone
    parser.add_argument("-h", "--help", action="store_true", help="show this, and the settings of named components")


BENCH = Command(
    _bench, _add_bench, "measure time and memory of training steps beside hand-written backprop", own_help=True
)
