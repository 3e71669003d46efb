"""Where a number comes from: hardware, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def versions() -> dict[str, str]:
    """Return the versions of Python, localprop and what it computes with."""
    found = {"python": platform.python_version()}
    for package in ("localprop", "torch", "torchvision", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree
            found[package] = "not installed"
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """Return the processor, its usable cores, PyTorch's threads, and the device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = str(device) if device.type == "cpu" else torch.get_device_module(device).get_device_name(device)
    return {"cpu": _processor(), "cores": cores, "threads": torch.get_num_threads(), "device": name}


def commit() -> str | None:
    """Return the commit of the source tree that this package runs from, "-dirty" if changed; None outside of one."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        # A package installed inside somebody else's repository must not report that repository's commit.
        tracked = subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name],
            capture_output=True,
            timeout=10,
        )
        if tracked.returncode:
            return None
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
