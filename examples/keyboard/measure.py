"""What a keyboard team measures. Every function takes `predict`, whatever is behind it.

    predict(ids int64 [n, context]) -> logits float32 [n, vocabulary]

Suggestions are the three words of the highest logit, never <s> or <unk>. A held-out word that the vocabulary lacks
counts as a miss in every figure: the user had to type it.

**Keystrokes saved.** The user types a word letter by letter. Before the first letter and after each one the keyboard
shows the three likeliest words that begin with the letters typed so far. As soon as the wanted word is among them the
user taps it: one tap, which also inserts the space. A word that is never shown costs its letters and the space. Saved
are

    1 - (letters typed + taps + spaces typed) / (letters + spaces)

over all words. The logits do not depend on the letters typed: the network runs once per word, the rest is a filter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from examples.keyboard.vocabulary import START, UNKNOWN, Ids, Pairs, Vocabulary

Logits = npt.NDArray[np.float32]
Predict = Callable[[Ids], Logits]

SHOWN = 3
_BATCH = 256
_RESAMPLES = 1000


@dataclass(frozen=True)
class Share:
    """A share of words with its 95 % interval, both between 0 and 1."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


@dataclass(frozen=True)
class Judged:
    """Per held-out word, int64 [N]: how many words were rated above it, and the keys pressed for it with its space."""

    rank: Ids
    pressed: Ids


@dataclass(frozen=True)
class Quality:
    """How well a predictor serves: shares over all `words` held-out words; `out_of_vocabulary` of them are unknown."""

    top1: Share
    top3: Share
    saved: Share
    out_of_vocabulary: float
    words: int


@dataclass(frozen=True)
class Latency:
    """Milliseconds from a keystroke to three suggestions: one prediction and one filter, nothing kept from the last."""

    p50: float
    p99: float
    keystrokes: int


class Prefixes:
    """Which words begin with what: with the vocabulary in the alphabet's order they are a range."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        words = vocabulary.words
        self.order = np.array(sorted(range(UNKNOWN + 1, len(words)), key=words.__getitem__), np.int64)
        self._sorted = np.array([words[index] for index in self.order])

    def range(self, prefix: str) -> tuple[int, int]:
        low, high = np.searchsorted(self._sorted, [prefix, prefix + chr(0x10FFFF)])
        return int(low), int(high)

    @cached_property
    def ranges(self) -> npt.NDArray[np.int64]:
        """[vocabulary, longest + 1, 2]: the range of each word's first 0, 1, 2, ... letters; (0, -1) beyond its end."""
        words = self._vocabulary.words
        table = np.tile(np.array([0, -1]), (len(words), max(map(len, words)) + 1, 1))
        known: dict[str, tuple[int, int]] = {}
        for index in self.order:
            word = words[index]
            for typed in range(len(word) + 1):
                prefix = word[:typed]
                if prefix not in known:
                    known[prefix] = self.range(prefix)
                table[index, typed] = known[prefix]
        return table


def suggest(logits: Logits, prefixes: Prefixes, vocabulary: Vocabulary, typed: str = "") -> list[str]:
    """The three likeliest words (fewer if there are fewer) that begin with `typed`; logits float32 [vocabulary]."""
    low, high = prefixes.range(typed)
    candidates = prefixes.order[low:high]
    scores = logits[candidates]
    if len(scores) > SHOWN:
        candidates = candidates[np.argpartition(-scores, SHOWN)[:SHOWN]]
    best = candidates[np.argsort(-logits[candidates], kind="stable")]
    return [vocabulary.words[index] for index in best]


def judge(predict: Predict, heldout: Pairs, prefixes: Prefixes) -> Judged:
    """Asks the predictor for every held-out word."""
    parts = [heldout.take(slice(start, start + _BATCH)) for start in range(0, len(heldout), _BATCH)]
    judged = [_judge(predict(part.x), part, prefixes) for part in parts]
    rank, pressed = (np.concatenate(column) for column in zip(*judged, strict=True))
    return Judged(rank, pressed)


def quality(judged: Judged, heldout: Pairs, seed: int = 0) -> Quality:
    """Top-1, top-3 and keystrokes saved, intervals by resampling whole sentences."""
    full = heldout.letters + 1
    one = np.ones_like(full)
    top1, top3, saved = (
        _share(part, whole, heldout.sentence, seed)
        for part, whole in ((judged.rank < 1, one), (judged.rank < SHOWN, one), (full - judged.pressed, full))
    )
    return Quality(top1, top3, saved, heldout.out_of_vocabulary, len(heldout))


def top1_lost(before: Judged, after: Judged, heldout: Pairs, seed: int = 0) -> Share:
    """Top-1 of `before` minus that of `after`, paired: both saw the same words."""
    lost = (before.rank < 1).astype(np.int64) - (after.rank < 1)
    return _share(lost, np.ones_like(lost), heldout.sentence, seed)


def _judge(logits: Logits, asked: Pairs, prefixes: Prefixes) -> tuple[Ids, Ids]:
    """`Judged`'s two columns for one batch."""
    known = asked.y > UNKNOWN
    y = asked.y[known]
    scores = logits[known]
    wanted = scores[np.arange(len(y)), y]
    # above[:, i]: how many of the alphabet's first i words beat the wanted one; a prefix is then one subtraction
    above = np.zeros((len(y), len(prefixes.order) + 1), np.int32)
    np.cumsum(scores[:, prefixes.order] > wanted[:, None], axis=1, out=above[:, 1:])
    low, high = prefixes.ranges[y, :, 0], prefixes.ranges[y, :, 1]
    beaten = np.take_along_axis(above, np.maximum(high, 0), 1) - np.take_along_axis(above, low, 1)
    shown = (beaten < SHOWN) & (high >= 0)
    typed = np.where(shown.any(1), shown.argmax(1), asked.letters[known])

    rank = np.full(len(asked), len(prefixes.order), np.int64)
    pressed = asked.letters + 1
    rank[known] = beaten[:, 0]
    pressed[known] = typed + 1
    return rank, pressed


def _share(part: npt.NDArray[np.generic], whole: Ids, cluster: Ids, seed: int) -> Share:
    """sum(part) / sum(whole), 95 % percentile interval of a bootstrap over clusters."""
    _, group = np.unique(cluster, return_inverse=True)
    parts = np.bincount(group, weights=part.astype(np.float64))
    wholes = np.bincount(group, weights=whole)
    draws = np.random.default_rng(seed).integers(len(parts), size=(_RESAMPLES, len(parts)))
    low, high = np.quantile(parts[draws].sum(1) / wholes[draws].sum(1), [0.025, 0.975])
    return Share(float(parts.sum() / wholes.sum()), float(low), float(high))


def latency(
    predict: Predict, heldout: Pairs, vocabulary: Vocabulary, prefixes: Prefixes, keystrokes: int = 1000
) -> Latency:
    """Types the first held-out words and times every keystroke, after fifty that warm up."""
    taken: list[float] = []
    for row in range(len(heldout)):
        word = vocabulary.words[heldout.y[row]] if heldout.y[row] > UNKNOWN else ""
        for typed in range(len(word) + 1):
            start = time.perf_counter()
            suggest(predict(heldout.x[row : row + 1])[0], prefixes, vocabulary, word[:typed])
            taken.append(1000 * (time.perf_counter() - start))
        if len(taken) >= keystrokes + 50:
            break
    timed = taken[50:] or taken
    return Latency(float(np.quantile(timed, 0.5)), float(np.quantile(timed, 0.99)), len(timed))


def one_by_one(predict: Predict) -> Predict:
    """For a runtime's file whose batch is fixed at one."""
    return lambda ids: np.concatenate([predict(ids[row : row + 1]) for row in range(len(ids))])


def context_of(text: str, vocabulary: Vocabulary, context: int) -> Ids:
    """A typed phrase as one row of context ids, int64 [1, context]."""
    ids = [START, *vocabulary.encode(text.lower().split())][-context:]
    return np.array([[START] * (context - len(ids)) + ids], np.int64)
