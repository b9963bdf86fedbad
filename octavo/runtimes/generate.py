"""The token loop, for any session that takes ids and gives logits: greedy, or sampled with a temperature and top-p."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput
from octavo.runtimes.base import Session


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_p keeps the likeliest tokens that make up that share (Holtzman et al. 2020)."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0.0 and 0.0 < self.top_p <= 1.0):
            raise BadInput(f"temperature {self.temperature} and top-p {self.top_p}: expected ≥ 0, and in (0, 1].")


def generate(
    session: Session,
    ids: Sequence[int],
    *,
    tokens: int,
    sampling: Sampling = Sampling(),
    eos: Iterable[int] = (),
    context: int | None = None,
    on_token: Callable[[int], None] | None = None,
) -> list[int]:
    """Continue `ids` by at most `tokens` ids; the prompt goes in at once, then one id at a time with the state.

    Ends after an `eos` id (which is returned) or when prompt and answer fill `context`. `on_token` is called with each
    id as it is chosen. Raises BadInput for an empty prompt, or one that leaves no room in the context.
    """
    if not len(ids):
        raise BadInput("The prompt has no tokens.", "Give at least one, such as the beginning-of-sequence token.")
    if context is not None and len(ids) >= context:
        raise BadInput(f"The prompt has {len(ids)} tokens, and the model's context is {context}.", "Shorten it.")
    room = tokens if context is None else min(tokens, context - len(ids))
    stops, random = frozenset(eos), np.random.default_rng(sampling.seed)
    made: list[int] = []
    following, state = np.asarray([ids], np.int64), None
    while len(made) < room:
        outputs, state = session.step({"ids": following}, state)
        token = choose(outputs["logits"][0, -1], sampling, random)
        made.append(token)
        if on_token is not None:
            on_token(token)
        if token in stops:
            break
        following = np.asarray([[token]], np.int64)
    return made


def choose(logits: NDArray[np.float32], sampling: Sampling, random: np.random.Generator) -> int:
    """One id from logits float32 [vocab]. Raises BadInput when none of them is finite."""
    if not np.isfinite(logits).any():
        raise BadInput("The model's logits are not finite.", "Its weights are damaged, or overflow.")
    if sampling.temperature == 0.0:
        return int(np.nanargmax(logits))
    scaled = np.nan_to_num(logits.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-weights, kind="stable")
    shares = weights[order] / weights.sum()
    kept = int(np.searchsorted(np.cumsum(shares), sampling.top_p)) + 1  # the one that crosses top_p stays
    shares = shares[:kept] / shares[:kept].sum()
    return int(order[random.choice(len(shares), p=shares)])
