"""A trained network as an ONNX graph, and its run by ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from localprop.export.program import INPUT
from localprop.train.errors import is_out_of_memory

MAX_BYTES = 2**31 - 1  # of one message, by the format that ONNX files are written in


def onnx_bytes(program: ExportedProgram, outputs: Sequence[str], facts: Mapping[str, Any]) -> bytes:
    """Return the content of an .onnx file, with each fact as JSON in the model's metadata.

    Raises:
        ValueError: An operation has no counterpart in ONNX, or the weights need more than 2 GiB.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # it tells its progress
            warnings.simplefilter("ignore")
            found = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[INPUT], output_names=list(outputs)
            )
    except Exception as error:  # errors of tracer, translator and onnxscript, which share no class
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"--to onnx: the network cannot be written as ONNX ({reason}); --to pt2 takes every graph"
        ) from error
    assert found is not None
    for number, node in enumerate(found.model.graph):
        for value in node.outputs:
            if value.name in outputs and not value.is_graph_output():  # a block may be named as an operation is
                value.name = f"{value.name} of node {number}"
    model = found.model_proto
    size = model.ByteSize()
    if size > MAX_BYTES:
        raise ValueError(f"--to onnx: the graph takes {size} bytes, one file at most {MAX_BYTES}; use --to pt2")
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    content: bytes = model.SerializeToString()
    return content


def run_onnx(path: Path, images: Tensor) -> dict[str, Tensor]:
    """Load an .onnx file and run it on the CPU.

    Raises:
        ValueError: ONNX Runtime refuses it.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        found = session.run(names, {INPUT: images.numpy()})
    except Exception as error:  # the runtime's errors derive from nothing nearer
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"--to onnx: ONNX Runtime cannot run the graph ({reason}); use --to pt2") from error
    return {name: torch.from_numpy(logits) for name, logits in zip(names, found, strict=True)}
