"""The formats of an export: how each is written, and how what was written is run again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from localprop.export import hub, onnx_graph, program
from localprop.export.card import model_card
from localprop.export.facts import published_settings
from localprop.infer.trained import TrainedNetwork
from localprop.methods import get
from localprop.report.runs import Final
from localprop.train.stored import StoredRun


@dataclass(frozen=True)
class Exported:
    """What is exported.

    Attributes:
        run: The run that it is of.
        network: Its network, cut down to the exit.
        facts: What the file says of it.
        final: The numbers of the run, None if it has not finished.
        allow_imports: Whether import paths in the run's settings may be imported, to read back what needs them.
    """

    run: StoredRun
    network: TrainedNetwork
    facts: Mapping[str, Any]
    final: Final | None
    allow_imports: bool


class Format(ABC):
    """One format.

    Attributes:
        ending: What the names of its files end in; nothing for a folder.
        packages: What it needs beside PyTorch.
        extra: The extra of localprop that these belong to.
    """

    ending = ""
    packages: tuple[str, ...] = ()
    extra = ""

    @abstractmethod
    def write(self, path: Path, exported: Exported) -> None:
        """Write an export to a path at which nothing lies."""

    @abstractmethod
    def run(self, path: Path, images: Tensor, exported: Exported) -> Mapping[str, Tensor]:
        """Run what was written: images in [0, 1] to its outputs by name."""


class Onnx(Format):
    """An ONNX file, run by ONNX Runtime."""

    ending = ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"

    def write(self, path: Path, exported: Exported) -> None:
        """Write the graph."""
        traced = program.trace(exported.network)
        path.write_bytes(onnx_graph.onnx_bytes(traced, exported.facts["outputs"], exported.facts))

    def run(self, path: Path, images: Tensor, exported: Exported) -> Mapping[str, Tensor]:
        """Run the graph."""
        return onnx_graph.run_onnx(path, images)


class Pt2(Format):
    """A program of `torch.export`, run by PyTorch."""

    ending = ".pt2"

    def write(self, path: Path, exported: Exported) -> None:
        """Write the program."""
        path.write_bytes(program.program_bytes(program.trace(exported.network), exported.facts))

    def run(self, path: Path, images: Tensor, exported: Exported) -> Mapping[str, Tensor]:
        """Run the program."""
        return program.run_program(path, images)


class Safetensors(Format):
    """A folder in the layout of the Hugging Face Hub, run by a network that is rebuilt from it."""

    packages = ("safetensors", "huggingface_hub")
    extra = "hub"

    def write(self, path: Path, exported: Exported) -> None:
        """Write the folder."""
        config, facts = exported.run.config, exported.run.facts
        settings = published_settings(config)
        card = model_card(
            exported.facts, settings, get(config.method.name), exported.final, exported.network.block_names
        )
        content = {**exported.facts, "mean": list(facts.mean), "std": list(facts.std)}
        path.mkdir()
        hub.write_folder(path, exported.network, content, settings, card)

    def run(self, path: Path, images: Tensor, exported: Exported) -> Mapping[str, Tensor]:
        """Rebuild the network and run it."""
        return hub.read_folder(path, allow_imports=exported.allow_imports).outputs(images)


FORMATS: Mapping[str, Format] = {"onnx": Onnx(), "pt2": Pt2(), "safetensors": Safetensors()}
