"""The order of BPE merges as scores of tokens: what llama.cpp's SentencePiece kind merges by.

BPE does, of all neighbouring pairs that have a merge, the one of the lowest rank first. llama.cpp joins any two
neighbours whose text is a token, the highest score first. The two agree when a token may be joined from *every* pair of
tokens that spells it, and when the merges of one token follow one another without another token's between them; the
score is then minus the rank. tokenizer.json files converted from SentencePiece are so; one trained as BPE is not.
"""

from __future__ import annotations

from collections.abc import Iterable


def merge_scores(
    vocab: Iterable[str], merges: list[tuple[str, str]], added: set[str]
) -> tuple[dict[str, float], list[str]]:
    """Scores by token, and the tokens for which llama.cpp would merge differently (added tokens never merge)."""
    tokens = set(vocab) - added
    ranks: dict[str, list[int]] = {}
    pairs = set(merges)
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, []).append(rank)
    scores = {token: -float(found[0]) for token, found in ranks.items()}
    disagreeing = []
    for token in tokens:
        found = ranks.get(token, ())
        splits = [(token[:at], token[at:]) for at in range(1, len(token))]
        possible = sum(left in tokens and right in tokens for left, right in splits if (left, right) not in pairs)
        if possible or (found and found[-1] - found[0] >= len(found)):
            disagreeing.append(token)
    return scores, sorted(disagreeing)
