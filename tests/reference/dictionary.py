"""Dictionary contrastive learning (Choi et al., ICLR 2024), one scalar at a time."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .scalars import dot, l2_normalised, largest, logsumexp, matrix_vector, mean, total

Reduce = Literal["logsumexp", "max"]
Similarity = Literal["dot", "cosine"]
Projection = Literal["pool", "label", "feature"]


def pool_embedding(t: Tensor, width: int) -> Tensor:
    """Average t[floor(i D / width)] .. t[ceil((i + 1) D / width) - 1] for every output i; t has D entries."""
    size = t.shape[0]
    pooled = []
    for i in range(width):
        first = (i * size) // width
        stop = -((-(i + 1) * size) // width)
        pooled.append(mean([t[d] for d in range(first, stop)]))
    return torch.stack(pooled)


def feature_vectors(h: Tensor, chunks: int = 1) -> list[list[list[Tensor]]]:
    """List h as [sample][position][channel].

    h is (N, C, H, W), (N, K, C) or flat (N, D). Position k of a flat output holds the entries
    k C .. (k + 1) C - 1 with C = D / chunks.
    """
    if h.dim() != 2 and chunks != 1:
        raise ValueError(f"chunks must be 1 for an output with positions of its own, got {chunks}")
    if h.dim() == 4:
        samples, channels, height, width = h.shape
        return [
            [[h[n, c, i, j] for c in range(channels)] for i in range(height) for j in range(width)]
            for n in range(samples)
        ]
    if h.dim() == 3:
        samples, tokens, channels = h.shape
        return [[[h[n, k, c] for c in range(channels)] for k in range(tokens)] for n in range(samples)]
    samples, entries = h.shape
    if entries % chunks != 0:
        raise ValueError(f"chunks must divide the {entries} entries of the flat output, got {chunks}")
    channels = entries // chunks
    return [[[h[n, k * channels + c] for c in range(channels)] for k in range(chunks)] for n in range(samples)]


def _average(positions: list[list[Tensor]]) -> list[Tensor]:
    return [mean([vector[c] for vector in positions]) for c in range(len(positions[0]))]


def _average_features(h: Tensor, chunks: int) -> Tensor:
    return torch.stack([torch.stack(_average(positions)) for positions in feature_vectors(h, chunks)])


def average_positions_image(h: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C)."""
    return _average_features(h, 1)


def average_positions_tokens(h: Tensor) -> Tensor:
    """(N, K, C) -> (N, C)."""
    return _average_features(h, 1)


def average_chunks(h: Tensor, chunks: int) -> Tensor:
    """(N, D) -> (N, D / chunks)."""
    return _average_features(h, chunks)


def average_positions(h: Tensor, chunks: int = 1) -> Tensor:
    """Average any block output to (N, C)."""
    return _average_features(h, chunks)


def dictionary_logits(
    h: Tensor,
    embeddings: Tensor,
    *,
    embeddings_per_class: int = 1,
    reduce: Reduce = "logsumexp",
    similarity: Similarity = "dot",
    temperature: float = 1.0,
    projection: Projection = "pool",
    projection_weight: Tensor | None = None,
    chunks: int = 1,
) -> Tensor:
    """Score every sample against every class: (N, Z).

    Rows z M .. z M + M - 1 of `embeddings` (Z M, D) belong to class z. A dot product is averaged over the
    positions after it is taken; a cosine is taken between the averaged features and the embedding.
    """
    samples = feature_vectors(h, chunks)
    rows, dictionary_width = embeddings.shape
    vectors = [[embeddings[r, d] for d in range(dictionary_width)] for r in range(rows)]
    if projection == "pool":
        channels = len(samples[0][0])
        pooled = [pool_embedding(embeddings[r], channels) for r in range(rows)]
        vectors = [[row[c] for c in range(channels)] for row in pooled]
    elif projection_weight is None:
        raise ValueError(f"projection_weight must be given for projection={projection!r}, got None")
    elif projection == "label":
        vectors = [matrix_vector(projection_weight, vector) for vector in vectors]
    else:
        samples = [[matrix_vector(projection_weight, v) for v in positions] for positions in samples]

    logits = []
    for positions in samples:
        scores = []
        for t in vectors:
            if similarity == "dot":
                score = mean([dot(vector, t) for vector in positions])
            else:
                score = dot(l2_normalised(_average(positions)), l2_normalised(t))
            scores.append(score / temperature)
        logits.append(torch.stack(_combine(scores, embeddings_per_class, reduce)))
    return torch.stack(logits)


def _combine(scores: list[Tensor], embeddings_per_class: int, reduce: Reduce) -> list[Tensor]:
    combined = []
    for z in range(len(scores) // embeddings_per_class):
        own = [scores[z * embeddings_per_class + m] for m in range(embeddings_per_class)]
        combined.append(largest(own) if reduce == "max" else logsumexp(own))
    return combined


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Average -log softmax(logits)[n, y_n] over the samples."""
    samples, classes = logits.shape
    losses = []
    for n in range(samples):
        row = [logits[n, z] for z in range(classes)]
        losses.append(logsumexp(row) - row[int(y[n])])
    return mean(losses)


def cross_entropy_gradient(logits: Tensor, y: Tensor) -> Tensor:
    """By hand: (softmax - onehot) / N."""
    samples, classes = logits.shape
    gradient = torch.zeros(samples, classes, dtype=torch.float64)
    for n in range(samples):
        normaliser = logsumexp([logits[n, z] for z in range(classes)])
        for z in range(classes):
            onehot = 1.0 if int(y[n]) == z else 0.0
            gradient[n, z] = (torch.exp(logits[n, z] - normaliser) - onehot) / samples
    return gradient.detach()


def bound(loss: Tensor, num_classes: int) -> Tensor:
    """Lower bound log Z - L, in nats, of the mutual information of features and balanced classes."""
    return math.log(num_classes) - loss


def dictionary_loss(
    h: Tensor,
    embeddings: Tensor,
    y: Tensor,
    *,
    embeddings_per_class: int = 1,
    reduce: Reduce = "logsumexp",
    similarity: Similarity = "dot",
    temperature: float = 1.0,
    projection: Projection = "pool",
    projection_weight: Tensor | None = None,
    chunks: int = 1,
) -> Tensor:
    """Cross-entropy of the dictionary's scores."""
    logits = dictionary_logits(
        h,
        embeddings,
        embeddings_per_class=embeddings_per_class,
        reduce=reduce,
        similarity=similarity,
        temperature=temperature,
        projection=projection,
        projection_weight=projection_weight,
        chunks=chunks,
    )
    return cross_entropy(logits, y)


def dictionary_loss_gradients(h: Tensor, embeddings: Tensor, y: Tensor, *, chunks: int = 1) -> tuple[Tensor, Tensor]:
    """By hand: gradients of the plain loss (dot product, pooled, one embedding a class) in h and embeddings.

    With e = (softmax - onehot) / N: dL/dh[n, k, c] = sum_z e[n, z] t[z, c] / K, and
    dL/dT[z, d] = sum_n sum_i e[n, z] hbar[n, i] / |window i| over the windows i that hold d.
    """
    e = cross_entropy_gradient(dictionary_logits(h, embeddings, chunks=chunks), y)
    averaged = average_positions(h, chunks).detach()
    samples, channels = averaged.shape
    classes, size = embeddings.shape
    pooled = [pool_embedding(embeddings[z], channels).detach() for z in range(classes)]

    by_sample = [
        [total([e[n, z] * pooled[z][c] for z in range(classes)]) for c in range(channels)] for n in range(samples)
    ]
    h_gradient = torch.zeros_like(h)
    if h.dim() == 4:
        height, width = h.shape[2:]
        for n in range(samples):
            for c in range(channels):
                for i in range(height):
                    for j in range(width):
                        h_gradient[n, c, i, j] = by_sample[n][c] / (height * width)
    elif h.dim() == 3:
        for n in range(samples):
            for k in range(h.shape[1]):
                for c in range(channels):
                    h_gradient[n, k, c] = by_sample[n][c] / h.shape[1]
    else:
        for n in range(samples):
            for k in range(chunks):
                for c in range(channels):
                    h_gradient[n, k * channels + c] = by_sample[n][c] / chunks

    embeddings_gradient = torch.zeros(classes, size, dtype=torch.float64)
    for z in range(classes):
        for i in range(channels):
            pooled_gradient = total([e[n, z] * averaged[n, i] for n in range(samples)])
            start, end = i * size / channels, (i + 1) * size / channels
            window = [d for d in range(size) if d + 1 > start and d < end]
            for d in window:
                embeddings_gradient[z, d] += pooled_gradient / len(window)
    return h_gradient.detach(), embeddings_gradient
