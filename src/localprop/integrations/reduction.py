"""Averages over processes, a parameter group at a time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over all processes; without a process group, leave them.

    All reductions are under way at the same time; on return they are done, or on an accelerator in its queue.

    Args:
        parameters: The same ones, in the same order, with the same gradients missing, in every process.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    gradients = []
    for parameter in parameters:
        if parameter.grad is not None:
            if not _is_packed(parameter.grad):  # a rule may have written a transposed or an expanded one
                parameter.grad = parameter.grad.contiguous()
            gradients.append(parameter.grad)
    _wait(dist.all_reduce(gradient, async_op=True) for gradient in gradients)
    for gradient in gradients:
        gradient /= dist.get_world_size()


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of the first process."""
    _wait(dist.broadcast(tensor.detach(), src=0, async_op=True) for tensor in tensors)


def _wait(works: Iterable[dist.Work | None]) -> None:
    """Begin all of the works, then wait for each."""
    for work in list(works):
        assert work is not None  # every process takes part
        work.wait()


def _is_packed(tensor: Tensor) -> bool:
    """Tell whether a tensor fills its memory in one of the two orders that NCCL takes."""
    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
