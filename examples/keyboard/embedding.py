"""Where the embedding starts: words that keep the same company start close together.

A network that must find out by gradient descent which words are alike needs more than a minute. Their neighbours say
it at once: positive pointwise mutual information with the words one and two places to either side, reduced by a
truncated singular value decomposition, is the classic word embedding (Levy, Goldberg & Dagan 2015, "Improving
Distributional Similarity with Lessons Learned from Word Embeddings", TACL 3; context counts to the power 0.75,
singular values to the power 1/2). The decomposition is the randomised one of Halko, Martinsson & Tropp 2011 (SIAM
Review 53, algorithm 4.4 with two rounds).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from examples.keyboard.vocabulary import Ids

_DISTANCES = (1, 2)
_SPARE = 16  # columns beyond the wanted ones, for the decomposition's accuracy
_ROUNDS = 2


def neighbours_embedding(text: Ids, vocabulary: int, width: int) -> Tensor:
    """float32 [vocabulary, width], rows of length one; `text` int64 [N] is all of it. Draws from torch's seed."""
    matrix = _neighbours(text, vocabulary)
    transposed = matrix.t().coalesce()
    basis = matrix @ torch.randn(matrix.shape[1], width + _SPARE)
    for _ in range(_ROUNDS):
        basis = matrix @ (transposed @ torch.linalg.qr(basis).Q)
    basis = torch.linalg.qr(basis).Q
    small = (transposed @ basis).t()  # [width + spare, columns]
    left, squares, _ = torch.linalg.svd(small @ small.t())
    embedding = (basis @ left)[:, :width] * squares[:width] ** 0.25  # squares holds the singular values squared
    return embedding / embedding.norm(dim=1, keepdim=True).clamp(min=1e-6)


def _neighbours(text: Ids, vocabulary: int) -> Tensor:
    """Sparse float32 [vocabulary, 4 * vocabulary]: the information for each distance and side, next to each other."""
    columns = 2 * len(_DISTANCES) * vocabulary
    parts = []
    for index, distance in enumerate(_DISTANCES):
        for side, (word, other) in enumerate(
            ((text[:-distance], text[distance:]), (text[distance:], text[:-distance]))
        ):
            row, column, value = _information(word, other, vocabulary)
            parts.append((row, column + (2 * index + side) * vocabulary, value))
    rows, cols, values = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
    matrix: Tensor = torch.sparse_coo_tensor(
        torch.stack([rows, cols]), values.float(), (vocabulary, columns), check_invariants=True
    ).coalesce()
    return matrix


def _information(word: Ids, other: Ids, vocabulary: int) -> tuple[Ids, Ids, npt.NDArray[np.float64]]:
    """(rows, columns, values) of max(0, log p(word, other) / p(word) p(other)) for the pairs that occur."""
    keys, counts = np.unique(word * vocabulary + other, return_counts=True)
    row, column = np.divmod(keys, vocabulary)
    of_word = np.bincount(row, weights=counts, minlength=vocabulary)
    of_other = np.bincount(column, weights=counts, minlength=vocabulary) ** 0.75
    value = np.log(counts * of_other.sum() / (of_word[row] * of_other[column]))
    return row, column, np.maximum(value, 0.0)
