"""Words <-> ids, and documents -> the pairs that a next-word predictor is trained and judged on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.keyboard.corpus import NOT_A_WORD, Document

START, UNKNOWN = 0, 1
"""Ids of the sentence's start and of whatever is no word of the vocabulary."""

_MARKS = ("<s>", "<unk>")

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Vocabulary:
    """`words[id]` is the word; the first two are `<s>` and `<unk>`, the others the most frequent first."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, documents: list[Document], size: int) -> Vocabulary:
        """The `size` - 2 most frequent words; ties go by the alphabet, so that the ids never depend on chance."""
        counts = Counter(word for document in documents for sentence in document for word in sentence)
        counts.pop(NOT_A_WORD, None)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(_MARKS + tuple(ranked[: size - len(_MARKS)]))

    @cached_property
    def ids(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    def encode(self, words: list[str] | tuple[str, ...]) -> list[int]:
        return [self.ids.get(word, UNKNOWN) for word in words]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"words": self.words}, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        return cls(tuple(json.loads(path.read_text(encoding="utf-8"))["words"]))


@dataclass(frozen=True)
class Pairs:
    """What was typed before, and the word that came.

    x         int64 [N, context], the last ids before the word, padded on the left with <s>
    y         int64 [N], the word, or <unk> where the vocabulary lacks it (then nobody can be right)
    letters   int64 [N], the letters of the word as the user types it
    sentence  int64 [N], which sentence it is from: words of one sentence are not independent samples
    """

    x: Ids
    y: Ids
    letters: Ids
    sentence: Ids

    def __len__(self) -> int:
        return len(self.y)

    @property
    def out_of_vocabulary(self) -> float:
        return float(np.mean(self.y == UNKNOWN))

    def take(self, rows: Ids | slice) -> Pairs:
        return Pairs(self.x[rows], self.y[rows], self.letters[rows], self.sentence[rows])

    def save(self, folder: Path, name: str) -> None:
        """`NAME.npz` (x, y: what any tool can evaluate) and `NAME_facts.npz` (what keystrokes are counted from)."""
        np.savez_compressed(folder / f"{name}.npz", x=self.x, y=self.y)
        np.savez_compressed(folder / f"{name}_facts.npz", letters=self.letters, sentence=self.sentence)

    @classmethod
    def load(cls, folder: Path, name: str) -> Pairs:
        with np.load(folder / f"{name}.npz") as asked, np.load(folder / f"{name}_facts.npz") as facts:
            return cls(asked["x"], asked["y"], facts["letters"], facts["sentence"])


def stream(document: Document, vocabulary: Vocabulary) -> list[tuple[int, int]]:
    """(id, letters) of every token of a document, each sentence opened by <s>; letters is 0 where no word is asked."""
    tokens: list[tuple[int, int]] = []
    for sentence in document:
        tokens.append((START, 0))
        tokens += [(vocabulary.ids.get(word, UNKNOWN), len(word)) for word in sentence]
    return tokens


def pairs(documents: list[Document], vocabulary: Vocabulary, context: int) -> Pairs:
    """Every word of `documents` with the `context` ids before it; a context crosses sentences, never documents."""
    xs, ys, letters, sentence = [], [], [], []
    count = 0
    for document in documents:
        tokens = np.array(stream(document, vocabulary), np.int64)
        padded = np.concatenate([np.full(context, START, np.int64), tokens[:, 0]])
        windows = np.lib.stride_tricks.sliding_window_view(padded, context)[:-1]
        asked = tokens[:, 1] > 0
        xs.append(windows[asked])
        ys.append(tokens[asked, 0])
        letters.append(tokens[asked, 1])
        sentence.append(count + np.cumsum(tokens[:, 0] == START)[asked])
        count += len(document)
    return Pairs(*(np.concatenate(column) for column in (xs, ys, letters, sentence)))
