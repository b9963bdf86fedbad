"""A GGUF's tokenizer and metadata as llama.cpp reads them, without its weights. Inside a worker only."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput, OctavoError
from octavo.runtimes.llama import capi, native
from octavo.runtimes.llama.tokenizer import END_KEYS

NO_TOKENIZER = 0  # llama_vocab_type


class Vocabulary:
    """The tokenizer of a GGUF. Opening it makes llama.cpp check the whole file's tensor bounds, and maps no weights."""

    def __init__(self, path: Path) -> None:
        self.lib = capi.library()
        self.path = path
        self.model: int | None = native.load(path, vocab_only=True)
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.n_vocab = int(self.lib.llama_vocab_n_tokens(self.vocab))
        self.has_tokenizer = self.lib.llama_vocab_type(self.vocab) != NO_TOKENIZER

    def close(self) -> None:
        if self.model:
            self.lib.llama_model_free(self.model)
        self.model = None

    def metadata(self, key: str) -> str | None:
        """A metadata value as text, or None where the file has no such key."""
        buffer = ctypes.create_string_buffer(4096)
        n = self.lib.llama_model_meta_val_str(self.model, key.encode(), buffer, len(buffer))
        return None if n < 0 else buffer.value.decode(errors="replace")

    @property
    def trained_context(self) -> int:
        """Positions the model was trained for, from the file's metadata (512 where it does not say)."""
        return int(self.metadata(f"{self.metadata('general.architecture')}.context_length") or 512)

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a text, as the file's metadata says, whether or not it has a tokenizer."""
        found = (self.metadata(f"tokenizer.ggml.{key}_token_id") for key in END_KEYS)
        return frozenset(int(value) for value in found if value is not None)

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> NDArray[Any]:
        """Return token ids int32 [n]. `add_special` adds BOS/EOS as the file says; `parse_special` reads `<s>` etc."""
        self._need_tokenizer()
        capacity = len(text) + 16
        for _ in range(2):
            ids = np.empty(capacity, np.int32)
            n = self.lib.llama_tokenize(
                self.vocab, text, len(text), ids.ctypes.data, capacity, add_special, parse_special
            )
            if n >= 0:
                return ids[:n].copy()
            capacity = -n
        raise OctavoError(f"llama.cpp cannot tokenise a text of {len(text)} bytes.")

    def detokenize(self, ids: NDArray[Any], *, remove_special: bool, unparse_special: bool) -> bytes:
        """Return the text of ids [n] as bytes, since ids may end in the middle of a character.

        The space that the tokenizer puts before a text is taken away again. llama.cpp forgets that when it removes the
        BOS itself, so the BOS is removed here.
        """
        self._need_tokenizer()
        if remove_special and len(ids) and ids[0] == self.lib.llama_vocab_bos(self.vocab):
            ids = ids[1:]
        if not np.asarray(ids).size:
            return b""
        ids = native.checked_ids(ids, self.n_vocab, self.path.name)
        capacity = 16 * len(ids) + 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(capacity)
            n = self.lib.llama_detokenize(
                self.vocab, ids.ctypes.data, len(ids), buffer, capacity, remove_special, unparse_special
            )
            if n >= 0:
                return buffer.raw[:n]
            capacity = -n
        raise OctavoError(f"llama.cpp cannot detokenise {len(ids)} ids.")

    def _need_tokenizer(self) -> None:
        if not self.has_tokenizer:
            raise BadInput(f"{self.path} carries no tokenizer.", "Give token ids instead of text (--ids).")
