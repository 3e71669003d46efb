"""Bytes of the tensors that are alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call] # PyTorch gives it no types
    """Count the bytes of tensors that are made inside and still alive; a storage with many views counts once.

    It sees what operations return: not the scratch memory that an operation takes and gives back by itself.

    Args:
        but: Tensors that were there before, which operations may return or view.

    Attributes:
        now_bytes: Alive now.
        peak_bytes: The most that was alive at once.
        kept_bytes: Set this to the part of `now_bytes` that outlives the step; `peak_beyond_kept_bytes` leaves it out.
        peak_beyond_kept_bytes: The most that was alive at once beyond what is kept.
    """

    def __init__(self, but: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # as above
        self.now_bytes = self.peak_bytes = self.kept_bytes = self.peak_beyond_kept_bytes = 0
        self._watched: dict[int, weakref.ref[UntypedStorage]] = {}
        for tensor in but:
            self._watch(tensor.untyped_storage(), count=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it returns."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._watch(leaf.untyped_storage(), count=True)
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)
        self.peak_beyond_kept_bytes = max(self.peak_beyond_kept_bytes, self.now_bytes - self.kept_bytes)
        return out

    def _watch(self, storage: UntypedStorage, *, count: bool) -> None:
        key = id(storage)  # one object stands for a storage as long as it lives
        if key in self._watched:
            return
        num_bytes = storage.nbytes() if count else 0

        def ended(_: weakref.ref[UntypedStorage]) -> None:
            del self._watched[key]
            self.now_bytes -= num_bytes

        self._watched[key] = weakref.ref(storage, ended)
        self.now_bytes += num_bytes
