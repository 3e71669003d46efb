"""`localprop export`: a trained network as files that others can run."""

from __future__ import annotations

import argparse
from pathlib import Path

from localprop import streams
from localprop.commands.arguments import Command, add_directory, refuse, show_facts


def _export(arguments: argparse.Namespace, rest: list[str]) -> int:
    refuse(arguments.parser, rest)
    from localprop.export.run import export_run

    found = export_run(
        arguments.directory,
        to=arguments.to,
        exit=arguments.exit,
        out=arguments.out,
        allow_imports=arguments.allow_imports,
        say=streams.say,
    )
    return show_facts(found, arguments.json)


def _add_export(parser: argparse.ArgumentParser) -> None:
    add_directory(parser)
    parser.add_argument(
        "--to",
        metavar="FORMAT",
        required=True,
        help="onnx; pt2, a program of torch.export; or safetensors, a folder for the Hugging Face Hub",
    )
    parser.add_argument(
        "--exit",
        metavar="BLOCK",
        default="last",
        help="a block by its name or number from 0, without the blocks after it; last, the network's answer; or all, "
        "an output a block (default: %(default)s)",
    )
    parser.add_argument(
        "--out", metavar="PATH", type=Path, help="file or folder to write (default: in DIR/export, named by the exit)"
    )


EXPORT = Command(_export, _add_export, "write a trained network as ONNX, as a PyTorch program or for the Hub")
