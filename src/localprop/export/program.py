"""A trained network as a program of `torch.export`: a graph that needs PyTorch alone, for any number of images."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from localprop.infer.trained import TrainedNetwork
from localprop.train.errors import is_out_of_memory

INPUT = "images"
FACTS = "localprop.json"
"""Name of the extra file of a .pt2 that says what the program is."""


class Outputs(nn.Module):
    """Return all outputs of a network by name, as an exported graph does."""

    def __init__(self, network: TrainedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Run the network."""
        return self.network.outputs(images)


def trace(network: TrainedNetwork) -> ExportedProgram:
    """Record the network's operations, without contexts and writes in place: images -> {name: logits}.

    Raises:
        ValueError: The network does something that no graph can hold, such as deciding by what it computes.
    """
    example = torch.zeros(2, *network.image_shape)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's about its own future
            program = torch.export.export(Outputs(network), (example,), dynamic_shapes=({0: Dim("batch", min=1)},))
            functional: ExportedProgram = program.run_decompositions({})
            return functional
    except Exception as error:  # the tracer raises what the traced code, or any of PyTorch's own layers, raises
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"--to: torch.export cannot record this network ({reason}); --to safetensors needs no recording"
        ) from error


def program_bytes(program: ExportedProgram, facts: Mapping[str, Any]) -> bytes:
    """Return the content of a .pt2 file, with the facts as JSON in its extra file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's about weights that stand in several places
        torch.export.save(program, buffer, extra_files={FACTS: json.dumps(facts)})
    return buffer.getvalue()


def run_program(path: Path, images: Tensor) -> dict[str, Tensor]:
    """Load a .pt2 file and run it."""
    with path.open("rb") as file, torch.no_grad():
        found: dict[str, Tensor] = torch.export.load(file).module()(images)
    return found
