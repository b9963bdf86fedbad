"""The source's own tokenizer (tokenizer.json), through the `tokenizers` library."""

from __future__ import annotations

from typing import Any

from octavo.errors import BadInput


class SourceTokenizer:
    """Text to ids and back. Raises BadInput for a tokenizer.json that cannot be read."""

    def __init__(self, data: bytes, where: str = "tokenizer.json") -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(data.decode("utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise BadInput(f"{where}: not a tokenizer that the tokenizers library reads ({error}).") from error
        self._tokenizer.no_truncation()

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text`; with `special`, what the post-processor adds (a BOS) too."""
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Start and end character of every id of `encode(text)`."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    @property
    def bos(self) -> int | None:
        """The id that the post-processor puts in front, if it does."""
        added: list[Any] = self.encode("", special=True)
        return int(added[0]) if added else None


def tokenizer_of(assets: dict[str, bytes]) -> SourceTokenizer:
    """The tokenizer among a model's assets. Raises BadInput when there is none."""
    if "tokenizer.json" not in assets:
        raise BadInput("The model came without a tokenizer.json.", "Give token ids (--ids) instead of text.")
    return SourceTokenizer(assets["tokenizer.json"])
