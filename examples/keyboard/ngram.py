"""The baseline without a network: an interpolated modified Kneser-Ney n-gram model.

Chen & Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (TR-10-98, Harvard 1998), section
3: the highest order counts how often an n-gram occurred, every lower order in how many different left contexts it did
(continuation counts), and each order has three discounts, for counts of 1, 2 and 3 or more.

It is fitted on the very pairs that the network trains on and sees the same context ids, sentence starts included.
Everything is arrays: a context is a row number, found by binary search, and its words lie side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from examples.keyboard.vocabulary import START, UNKNOWN, Ids, Pairs

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Order:
    """The n-grams of one order above the first.

    context_keys  int64 [C], sorted: (row of the context one word shorter) * vocabulary + (its leftmost word)
    first         int64 [C + 1], where each context's words begin
    words         int64 [G], the words seen after each context
    discounted    float64 [G], max(count - D, 0) / total
    backoff       float64 [C], the mass left to the order below
    """

    context_keys: Ids
    first: Ids
    words: Ids
    discounted: Floats
    backoff: Floats


@dataclass(frozen=True)
class KneserNey:
    """`predict` has the signature of every predictor here: context ids [N, context] -> logits [N, vocabulary]."""

    vocabulary: int
    unigram: Floats
    orders: tuple[_Order, ...]

    @classmethod
    def fit(cls, pairs: Pairs, vocabulary: int, order: int = 5) -> KneserNey:
        """Counts every word of the vocabulary; <s> and <unk> are contexts but never predictions, as for the network."""
        asked = pairs.y > UNKNOWN
        x, y = pairs.x[asked], pairs.y[asked]
        contexts, keys = _contexts(x, vocabulary, order - 1)
        grams = [np.unique(rows * vocabulary + y, return_index=True, return_inverse=True) for rows in contexts]
        fitted = []
        for length in range(order):
            gram_keys, _, inverse = grams[length]
            if length == order - 1:
                counts = np.bincount(inverse)
            else:  # one for each different word to the left: the n-grams one longer, without repeats
                longer_once = grams[length + 1][1]
                counts = np.bincount(inverse[longer_once], minlength=len(gram_keys))
            fitted.append(_discount(gram_keys, counts, vocabulary, keys[length]))
        return cls(vocabulary, _unigram(fitted[0], vocabulary), tuple(fitted[1:]))

    def probabilities(self, x: Ids) -> Floats:
        """float64 [N, vocabulary]; each row sums to one, with nothing on <s> and <unk>."""
        result = np.repeat(self.unigram[None], len(x), axis=0)
        rows = np.arange(len(x))
        found = np.zeros(len(x), np.int64)
        for distance, order in enumerate(self.orders, start=1):
            key = found * self.vocabulary + x[rows, -distance]
            place = np.searchsorted(order.context_keys, key)
            known = order.context_keys[np.minimum(place, len(order.context_keys) - 1)] == key
            rows, found = rows[known], place[known]
            result[rows] *= order.backoff[found, None]
            lengths = order.first[found + 1] - order.first[found]
            entries = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths - order.first[found], lengths)
            result[np.repeat(rows, lengths), order.words[entries]] += order.discounted[entries]
        return result

    def predict(self, x: Ids) -> npt.NDArray[np.float32]:
        """Logits float32 [N, vocabulary]: logarithms of the probabilities, the lowest float for <s> and <unk>."""
        probabilities = self.probabilities(x)
        logits = np.full(probabilities.shape, np.finfo(np.float32).min, np.float32)
        np.log(probabilities, out=logits, where=probabilities > 0, casting="same_kind")
        return logits

    @property
    def bytes(self) -> int:
        """What the model takes as compact arrays: 4 bytes per id and per number."""
        return 4 * (
            len(self.unigram) + sum(o.context_keys.size + 2 * o.words.size + o.backoff.size for o in self.orders)
        )


def _contexts(x: Ids, vocabulary: int, longest: int) -> tuple[list[Ids], list[Ids]]:
    """For each length 0..longest the row of every sample's context, and the sorted keys that rows are found by."""
    rows = [np.zeros(len(x), np.int64)]
    keys = [np.zeros(1, np.int64)]
    for length in range(1, longest + 1):
        key, row = np.unique(rows[-1] * vocabulary + x[:, -length], return_inverse=True)
        rows.append(row)
        keys.append(key)
    return rows, keys


def _discount(gram_keys: Ids, counts: Ids, vocabulary: int, context_keys: Ids) -> _Order:
    """One order's discounted probabilities, and by context what was taken away."""
    row, word = np.divmod(gram_keys, vocabulary)
    discount = _discounts(counts)[np.minimum(counts, 3)]
    total = np.bincount(row, weights=counts)
    taken = np.bincount(row, weights=discount)
    first = np.concatenate([[0], np.cumsum(np.bincount(row))])
    return _Order(context_keys, first, word, (counts - discount) / total[row], taken / total)


def _discounts(counts: Ids) -> Floats:
    """[0, D1, D2, D3+] from the numbers of n-grams that were counted once to four times."""
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(np.float64)
    if not n.all():  # too little text for the estimate: absolute discounting by a half is the usual stand-in
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n[0] / (n[0] + 2 * n[1])
    estimated = [k - (k + 1) * y * n[k] / n[k - 1] for k in (1, 2, 3)]
    return np.array([0.0, *np.clip(estimated, 0.0, [1.0, 2.0, 3.0])])


def _unigram(order: _Order, vocabulary: int) -> Floats:
    """Continuation probabilities, interpolated with the uniform distribution over the words."""
    result = np.zeros(vocabulary)
    result[order.words] = order.discounted
    result += order.backoff[0] / (vocabulary - 2)
    result[[START, UNKNOWN]] = 0.0
    return result
