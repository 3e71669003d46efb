"""Patch dictionaries (Thiry et al. 2021): whitened patches, and which of them are nearest to every window of an image.

Everything is a number here: nothing is differentiated. A patch is flattened as (C, k, k).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Vector = list[float]
Matrix = list[list[float]]


# ---------------------------------------------------------------- patches


def extract_patches(images: Tensor, kernel: int, stride: int = 1) -> Tensor:
    """(N, C, H, W) -> (N, rows, columns, C k k): every window, without padding."""
    samples, channels, height, width = images.shape
    result = []
    for n in range(samples):
        grid = []
        for top in range(0, height - kernel + 1, stride):
            line = []
            for left in range(0, width - kernel + 1, stride):
                line.append(
                    [
                        images[n, c, top + i, left + j].item()
                        for c in range(channels)
                        for i in range(kernel)
                        for j in range(kernel)
                    ]
                )
            grid.append(line)
        result.append(grid)
    return torch.tensor(result, dtype=torch.float64)


def choose_patches(images: Tensor, kernel: int, places: Sequence[tuple[int, int, int]]) -> Tensor:
    """(D, C k k): the windows whose (image, top, left) are given."""
    windows = extract_patches(images, kernel)
    return torch.stack([windows[n, top, left] for n, top, left in places])


# ---------------------------------------------------------------- whitening


def _multiply(a: Matrix, b: Matrix) -> Matrix:
    return [[sum(a[i][k] * b[k][j] for k in range(len(b))) for j in range(len(b[0]))] for i in range(len(a))]


def _transform(matrix: Matrix, vector: Sequence[float]) -> Vector:
    return [sum(row[d] * vector[d] for d in range(len(vector))) for row in matrix]


def mean_and_covariance(patches: Tensor) -> tuple[Vector, Matrix]:
    """Mean m and Sigma = (1/D) sum_d (p_d - m)(p_d - m)^T of the rows: divided by D, not by D - 1."""
    rows = patches.tolist()
    count, size = len(rows), len(rows[0])
    m = [sum(row[a] for row in rows) / count for a in range(size)]
    sigma = [[sum((row[a] - m[a]) * (row[b] - m[b]) for row in rows) / count for b in range(size)] for a in range(size)]
    return m, sigma


def symmetric_eigen(matrix: Matrix, sweeps: int = 50) -> tuple[Vector, Matrix]:
    """Jacobi's rotations: eigenvalues, and a matrix whose columns are the eigenvectors."""
    size = len(matrix)
    a = [list(row) for row in matrix]
    vectors = [[1.0 if i == j else 0.0 for j in range(size)] for i in range(size)]
    for _ in range(sweeps):
        for p in range(size):
            for q in range(p + 1, size):
                if abs(a[p][q]) < 1e-300:
                    continue
                angle = math.atan2(2 * a[p][q], a[q][q] - a[p][p]) / 2
                c, s = math.cos(angle), math.sin(angle)
                for k in range(size):
                    a[k][p], a[k][q] = c * a[k][p] - s * a[k][q], s * a[k][p] + c * a[k][q]
                for k in range(size):
                    a[p][k], a[q][k] = c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]
                for k in range(size):
                    vectors[k][p], vectors[k][q] = (
                        c * vectors[k][p] - s * vectors[k][q],
                        s * vectors[k][p] + c * vectors[k][q],
                    )
    return [a[i][i] for i in range(size)], vectors


def whitening_matrix(sigma: Matrix, regularisation: float = 1e-3) -> Matrix:
    """W = (lambda I + Sigma)^(-1/2), symmetric; lambda is added before the square root."""
    values, vectors = symmetric_eigen(sigma)
    size = len(values)
    scaled = [[vectors[i][k] / math.sqrt(values[k] + regularisation) for k in range(size)] for i in range(size)]
    return _multiply(scaled, [[vectors[j][k] for j in range(size)] for k in range(size)])


def whiten(vectors: Tensor, mean: Sequence[float], whitening: Matrix) -> Tensor:
    """W (x - m) of every row."""
    rows = [_transform(whitening, [row[a] - mean[a] for a in range(len(row))]) for row in vectors.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


# ---------------------------------------------------------------- nearest patches


def squared_distances(windows: Tensor, dictionary: Tensor) -> Tensor:
    """(K, P), (D, P) -> (K, D): ||x_k - d||^2, one difference at a time; both sides whitened already."""
    xs, ds = windows.tolist(), dictionary.tolist()
    return torch.tensor([[sum((x[a] - d[a]) ** 2 for a in range(len(x))) for d in ds] for x in xs], dtype=torch.float64)


def convolution_scores(windows: Tensor, dictionary: Tensor, mean: Sequence[float], whitening: Matrix) -> Tensor:
    """(K, D): -<x - m, W^T W (d - m)> + 1/2 ||W (d - m)||^2 of raw windows and raw dictionary patches.

    Ranks as the whitened distances do: 1/2 ||W (x - m) - W (d - m)||^2 less what does not depend on d.
    """
    size = len(mean)
    gram = _multiply([[whitening[k][i] for k in range(size)] for i in range(size)], whitening)
    rows = []
    for x in windows.tolist():
        row = []
        for d in dictionary.tolist():
            centred = [d[a] - mean[a] for a in range(size)]
            kernel = _transform(gram, centred)
            whitened = _transform(whitening, centred)
            inner = sum((x[a] - mean[a]) * kernel[a] for a in range(size))
            row.append(-inner + sum(value**2 for value in whitened) / 2)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def nearest_indicator(scores: Tensor, neighbours: int) -> Tensor:
    """(K, D) -> 1 where the score is strictly smaller than the row's (Q + 1)-th smallest, else 0.

    Ties with the (Q + 1)-th are left out, so a row may hold fewer than Q ones. Q >= D marks everything.
    """
    rows = []
    for row in scores.tolist():
        if neighbours >= len(row):
            rows.append([1.0] * len(row))
            continue
        bound = sorted(row)[neighbours]
        rows.append([1.0 if value < bound else 0.0 for value in row])
    return torch.tensor(rows, dtype=torch.float64)


def encode(
    images: Tensor,
    dictionary: Tensor,
    mean: Sequence[float],
    whitening: Matrix,
    kernel: int,
    neighbours: int,
    *,
    negated: bool = False,
) -> Tensor:
    """(N, C, H, W) -> (N, D, rows, columns): the indicator of the Q nearest dictionary patches of every window.

    The dictionary is raw. The second branch (`negated`) asks for the nearest among -W (d - m).
    """
    grid = extract_patches(images, kernel)
    samples, rows, columns, size = grid.shape
    whitened_dictionary = whiten(dictionary, mean, whitening)
    if negated:
        whitened_dictionary = -whitened_dictionary
    windows = whiten(grid.reshape(-1, size), mean, whitening)
    indicator = nearest_indicator(squared_distances(windows, whitened_dictionary), neighbours)
    result = torch.zeros(samples, dictionary.shape[0], rows, columns, dtype=torch.float64)
    for n in range(samples):
        for i in range(rows):
            for j in range(columns):
                result[n, :, i, j] = indicator[(n * rows + i) * columns + j]
    return result


# ---------------------------------------------------------------- pooling


def _window_mean(h: Tensor, n: int, c: int, rows: range, columns: range) -> float:
    values = [h[n, c, i, j].item() for i in rows for j in columns]
    return sum(values) / len(values)


def average_pool(h: Tensor, kernel: int, stride: int) -> Tensor:
    """Average windows in ceil mode: a last window that overhangs averages the entries it has.

    Windows start at 0, stride, ... as long as the start lies inside and the window before did not reach the end.
    """
    samples, channels, height, width = h.shape

    def starts(size: int) -> list[int]:
        count = math.ceil(max(size - kernel, 0) / stride) + 1
        return [k * stride for k in range(count) if k * stride < size]

    return torch.tensor(
        [
            [
                [
                    [
                        _window_mean(h, n, c, range(i, min(i + kernel, height)), range(j, min(j + kernel, width)))
                        for j in starts(width)
                    ]
                    for i in starts(height)
                ]
                for c in range(channels)
            ]
            for n in range(samples)
        ],
        dtype=torch.float64,
    )


def adaptive_average_pool(h: Tensor, size: int) -> Tensor:
    """Output i averages the inputs floor(i H / size) .. ceil((i + 1) H / size) - 1, in both directions."""
    samples, channels, height, width = h.shape

    def window(i: int, length: int) -> range:
        return range((i * length) // size, -((-(i + 1) * length) // size))

    return torch.tensor(
        [
            [
                [[_window_mean(h, n, c, window(i, height), window(j, width)) for j in range(size)] for i in range(size)]
                for c in range(channels)
            ]
            for n in range(samples)
        ],
        dtype=torch.float64,
    )
