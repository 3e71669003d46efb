"""Float64 scalar arithmetic that torch.autograd can follow through plain Python loops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NORM_FLOOR = 1e-12


def total(terms: Sequence[Tensor]) -> Tensor:
    result = torch.zeros((), dtype=torch.float64)
    for term in terms:
        result = result + term
    return result


def mean(terms: Sequence[Tensor]) -> Tensor:
    return total(terms) / len(terms)


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    if len(a) != len(b):
        raise ValueError(f"a and b must have one length, got {len(a)} and {len(b)}")
    return total([a[c] * b[c] for c in range(len(a))])


def matrix_vector(matrix: Tensor, vector: Sequence[Tensor]) -> list[Tensor]:
    rows, columns = matrix.shape
    return [dot([matrix[r, c] for c in range(columns)], vector) for r in range(rows)]


def largest(terms: Sequence[Tensor]) -> Tensor:
    """Return the largest term, the first one on ties."""
    best = terms[0]
    for term in terms[1:]:
        if term.item() > best.item():
            best = term
    return best


def logsumexp(terms: Sequence[Tensor]) -> Tensor:
    shift = largest(terms).detach()
    return shift + torch.log(total([torch.exp(term - shift) for term in terms]))


def l2_normalised(vector: Sequence[Tensor]) -> list[Tensor]:
    """Divide by the Euclidean norm, or by 1e-12 where the norm is smaller, so that 0 stays 0."""
    square = dot(vector, vector)
    norm = torch.sqrt(square) if square.item() > NORM_FLOOR**2 else square.new_tensor(NORM_FLOOR)
    return [value / norm for value in vector]
