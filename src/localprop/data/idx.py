"""The IDX format of the MNIST family: arrays of bytes behind a header of their shape."""

from __future__ import annotations

import math
import struct

import numpy as np
import torch
from torch import Tensor

from localprop.data.store import DataError

_UINT8 = 8


def read_idx(data: bytes, place: str) -> list[Tensor]:
    """Read IDX arrays of unsigned bytes that stand one after another.

    Args:
        data: The arrays; each is two zero bytes, type 8, the number of axes, their lengths (big-endian
            uint32), the values.
        place: What an error calls the data.

    Raises:
        DataError: A header is wrong or values are missing.

    References:
        Y. LeCun, C. Cortes, C. Burges. The MNIST database of handwritten digits, 1998.
    """
    arrays = []
    position = 0
    while position < len(data):
        try:
            zeros, kind, axes = struct.unpack_from(">HBB", data, position)
            shape = struct.unpack_from(f">{axes}I", data, position + 4)
            start = position + 4 + 4 * axes
            values = np.frombuffer(data, np.uint8, math.prod(shape), start)
        except (struct.error, ValueError) as error:
            raise DataError(f"{place} ends too early ({error}); get the file again") from error
        if zeros != 0 or kind != _UINT8:
            raise DataError(f"{place} holds no IDX array of bytes at offset {position}; get the file again")
        arrays.append(torch.from_numpy(values.copy()).view(shape))
        position = start + len(values)
    return arrays
