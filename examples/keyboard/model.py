"""The network: the ids of the last sixteen words -> a logit for every word that may come next.

    ids [N, 16] -> embedding -> neighbours -> 2 x (attention, feed-forward) -> last position -> head -> logits [N, 8192]

A transformer, because attention finds what an n-gram cannot (a noun ten words back), cut to what five static runtimes
and an NPU share: fixed shapes, Linear, LayerNorm, softmax, concatenation; no cache, no control flow, no gather but
the embedding.

- **Neighbours**: one Linear over each word beside the two before it. Pairs and triples of words carry most of what
  predicts the next one; attention would first have to learn where to look, and on a phone this is one small MatMul.
- **Position** is a constant penalty that grows with distance (ALiBi, Press et al. 2022, arXiv:2108.12409). Every
  place in the window shares its weights, so that training learns from all sixteen at once while the keyboard only
  asks for the last.
- **Tied** embedding and head (Press & Wolf 2017, arXiv:1608.05859): over two thirds of the weights are this one
  matrix, and so is the file; tying halves it and is also more accurate on little text.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

_MASKED = -40.0  # e^-40 is nothing after the softmax, and a quantised activation can still resolve the scores beside it


@dataclass(frozen=True)
class Config:
    """The trained shape. `create()` builds the defaults, which are what the demo trains."""

    vocabulary: int = 8192
    context: int = 16
    width: int = 128
    layers: int = 2
    heads: int = 4
    hidden: int = 256
    dropout: float = 0.25

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Config:
        """Raises ValueError on a key that is no field."""
        values = json.loads(path.read_text(encoding="utf-8"))
        if unknown := sorted(set(values) - {field.name for field in fields(cls)}):
            raise ValueError(f"{path}: unknown keys {unknown}. Known: {[field.name for field in fields(cls)]}.")
        return cls(**values)


class Dropout(nn.Module):
    """Dropout with one mask for all positions of a window (Gal & Ghahramani 2016), [N, context, width] -> the same.

    Drawing a mask for every position was a seventh of the training time.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.share:
            return x
        kept = torch.rand(x.shape[0], 1, x.shape[2], dtype=x.dtype) >= self.share
        return x * (kept / (1 - self.share))


class Attention(nn.Module):
    """Causal self-attention, [N, context, width] -> the same."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.size = config.heads, config.width // config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)
        self.register_buffer("bias", _distance_bias(config.heads, config.context), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, context, width = x.shape
        query, key, value = (
            part(x).reshape(n, context, self.heads, self.size).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) * self.size**-0.5 + self.bias
        mixed = scores.softmax(-1) @ value
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(n, context, width))
        return result


def _distance_bias(heads: int, context: int) -> Tensor:
    """[1, heads, context, context]: -slope * distance to the left, `_MASKED` to the right; slopes 1/2, 1/4, ..."""
    slope = 0.5 ** torch.arange(1, heads + 1).float()
    distance = torch.arange(context)[:, None] - torch.arange(context)[None, :]
    bias = -slope[:, None, None] * distance
    return bias.masked_fill(distance < 0, _MASKED)[None]


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added to what came in."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.feed_norm = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        fed: Tensor = self.down(functional.relu(self.up(self.feed_norm(x))))
        return x + self.dropout(fed)


class NextWord(nn.Module):
    """ids int64 or int32 [N, context] -> logits float32 [N, vocabulary] of the word after the last."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.neighbours = nn.Linear(3 * config.width, config.width)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.layers)))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary)
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.head.weight = self.embedding.weight

    def hidden(self, ids: Tensor) -> Tensor:
        """[N, context] -> [N, context, width]: what the head sees, at every position (training learns from all)."""
        x = self.dropout(self.embedding(ids))
        before = functional.pad(x, (0, 0, 2, 0))  # two zero words on the left
        triples = torch.cat([x, before[:, 1:-1], before[:, :-2]], dim=-1)
        return self.dropout(self.norm(self.blocks(x + self.neighbours(triples))))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.hidden(ids)[:, -1])


def create(config: Config | None = None) -> tuple[NextWord, tuple[Tensor]]:
    """The network and one example input, int64 [1, context]: `octavo … --module examples.keyboard.model:create`."""
    config = config or Config()
    return NextWord(config).eval(), (torch.zeros(1, config.context, dtype=torch.int64),)


def load(folder: Path) -> NextWord:
    """The trained network of a folder that `train` wrote (config.json, model.safetensors)."""
    from safetensors.torch import load_file

    model, _ = create(Config.load(folder / "config.json"))
    tensors = load_file(folder / "model.safetensors")
    tensors["head.weight"] = tensors["embedding.weight"]  # tied: stored once
    model.load_state_dict(tensors)
    return model
