"""Load a trained network for use: from a run, or from a folder that `localprop export --to safetensors` wrote."""

from __future__ import annotations

import os
from pathlib import Path

from localprop.infer.trained import TrainedNetwork
from localprop.train.stored import load_run


def load(directory: str | os.PathLike[str], *, allow_imports: bool = False) -> TrainedNetwork:
    """Load a trained network, on the CPU and in evaluation mode; nothing is executed that a file names.

    What lies on the Hugging Face Hub is a folder once `huggingface_hub.snapshot_download("USER/NAME")` has brought it.

    Args:
        directory: A run directory, of which the newest checkpoint is taken; or a folder with model.safetensors.
        allow_imports: Whether import paths in its settings, which execute code, may be imported.

    Returns:
        A module: images in [0, 1], shape (N, C, H, W), to the logits of its answer, shape (N, Z). Of a run, and of what
        was exported with `--exit all`, it has the exits of all blocks too.

    Raises:
        ValueError: It is neither, is damaged, or needs code or a package that is not there.
    """
    path = Path(directory)
    if (path / "model.safetensors").exists():
        from localprop.export.hub import read_folder

        return read_folder(path, allow_imports=allow_imports)
    if not path.is_dir():
        raise ValueError(
            f"{path}: no such directory; name a run or an exported folder, and get what lies on the Hugging Face Hub "
            "by huggingface_hub.snapshot_download first"
        )
    run = load_run(path, device="cpu", allow_imports=allow_imports)
    return TrainedNetwork(run.rule, run.facts)
