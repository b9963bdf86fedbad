"""A GGUF opened with llama.cpp itself: token ids, and logits at all positions with a KV cache. Inside a worker only."""

from __future__ import annotations

import ctypes
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from octavo.errors import BadInput, OctavoError, nearest
from octavo.runtimes.llama import capi

LOGITS_FROM = "llama.cpp C API"
UBATCH = 512
KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}  # ggml_type
WARNING, CONTINUED = 3, 5  # ggml_log_level: 3 warning, 4 error; 5 continues the previous line

_complaints: deque[str] = deque(maxlen=8)


@capi.LOG_CALLBACK  # type: ignore[untyped-decorator]
def _listen(level: int, line: bytes, _: object) -> None:
    """Keep llama.cpp's warnings and errors: a failed load says why only there."""
    if WARNING <= level < CONTINUED and line and line.strip(b". \n"):
        _complaints.append(line.decode(errors="replace").strip())


def complaints() -> str:
    """What llama.cpp complained of since the last call, on one line."""
    text = " | ".join(_complaints)
    _complaints.clear()
    return text


class Model:
    """A loaded GGUF with one context (one sequence). Not thread-safe.

    `context` is the number of positions the KV cache holds (default: the model's training length, at most 4096);
    `threads` for both prefill and decode. `kv_type`: how the cache stores keys and values; f32 shows what the weights
    do, f16 is llama.cpp's own default and costs some 1e-2 in the logits of small models.
    Raises BadInput when llama.cpp cannot load the file.
    """

    def __init__(
        self, path: Path, *, context: int | None = None, threads: int = 2, kv_type: str = "f32", repack: bool = True
    ) -> None:
        if kv_type not in KV_TYPES:
            raise BadInput(f"unknown KV cache type {kv_type!r}.", nearest(kv_type, KV_TYPES))
        self.lib = capi.library()
        self.lib.llama_log_set(_listen, None)
        complaints()
        self.path = path
        self.model = self.context = None
        params = self.lib.llama_model_default_params()
        capi.put(params, capi.MODEL_PARAMS, n_gpu_layers=0, use_extra_bufts=repack)
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise BadInput(
                f"{path} ({path.stat().st_size} bytes): llama.cpp cannot load it: {complaints() or 'no reason given'}.",
                "Export it again.",
            )
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.n_vocab = int(self.lib.llama_vocab_n_tokens(self.vocab))
        self.has_tokenizer = self.lib.llama_vocab_type(self.vocab) != 0
        self.trained_context = int(self.lib.llama_model_n_ctx_train(self.model))
        self._open_context(context or min(self.trained_context, 4096), threads, KV_TYPES[kv_type])
        self.n_past = 0

    def _open_context(self, n_ctx: int, threads: int, kv: int) -> None:
        wanted = {"n_ctx": n_ctx, "n_batch": UBATCH, "n_ubatch": UBATCH, "n_threads": threads, "n_threads_batch": threads}
        params = self.lib.llama_context_default_params()
        outputs = {"n_outputs_max": UBATCH, "n_outputs_max_per_seq": UBATCH}
        capi.put(params, capi.CONTEXT_PARAMS, **wanted, **outputs, type_k=kv, type_v=kv)
        self.context = self.lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise OctavoError(f"{self.path}: llama.cpp cannot make a context of {n_ctx} positions: {complaints()}.")
        got = {name: int(getattr(self.lib, f"llama_{name}")(self.context)) for name in wanted}
        # llama.cpp rounds n_ctx up to a multiple of 256 and caps the batches at it: nothing else may differ.
        rounded = wanted | {"n_ctx": -(-n_ctx // 256) * 256}
        rounded |= {name: min(UBATCH, rounded["n_ctx"]) for name in ("n_batch", "n_ubatch")}
        if any(got[name] not in (wanted[name], rounded[name]) for name in wanted):
            raise capi.LayoutMismatch(f"llama.cpp read the context parameters {wanted} as {got}.")
        self.n_ctx, self.n_ubatch = got["n_ctx"], got["n_ubatch"]

    def close(self) -> None:
        if self.context:
            self.lib.llama_free(self.context)
        if self.model:
            self.lib.llama_model_free(self.model)
        self.context = self.model = None

    def tokenize(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> np.ndarray:
        """Return token ids int32 [n]. `add_special` adds BOS/EOS as the file says; `parse_special` reads `<s>` etc."""
        self._need_tokenizer()
        raw = text.encode() if isinstance(text, str) else text
        capacity = len(raw) + 16
        for _ in range(2):
            ids = np.empty(capacity, np.int32)
            n = self.lib.llama_tokenize(
                self.vocab, raw, len(raw), ids.ctypes.data, capacity, add_special, parse_special
            )
            if n >= 0:
                return ids[:n].copy()
            capacity = -n
        raise OctavoError(f"llama.cpp cannot tokenise a text of {len(raw)} bytes.")

    def detokenize(self, ids: np.ndarray, *, remove_special: bool = False, unparse_special: bool = True) -> bytes:
        """Return the text of ids [n] as bytes, since ids may end in the middle of a character."""
        self._need_tokenizer()
        ids = self._checked(ids)
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

    def step(self, ids: np.ndarray, n_past: int) -> np.ndarray:
        """Return logits float32 [n, vocab] for ids [n] placed after the first `n_past` positions of the cache.

        Positions from `n_past` on are forgotten first, so 0 starts afresh and a smaller number goes back.
        Raises BadInput for ids outside the vocabulary, positions beyond the context or beyond what is cached.
        """
        ids = self._checked(ids)
        if not 0 <= n_past <= self.n_past:
            raise BadInput(f"n_past {n_past}: the cache holds {self.n_past} positions.")
        if n_past + len(ids) > self.n_ctx:
            raise BadInput(
                f"{n_past} + {len(ids)} positions exceed the context of {self.n_ctx}.", "Open it with a larger context."
            )
        self.truncate(n_past)
        logits = np.empty((len(ids), self.n_vocab), np.float32)
        for start in range(0, len(ids), self.n_ubatch):
            part = ids[start : start + self.n_ubatch]
            logits[start : start + len(part)] = self._decode(part)
        return logits

    def truncate(self, n_past: int) -> None:
        """Forget all cached positions from `n_past` on."""
        memory = self.lib.llama_get_memory(self.context)
        if n_past == 0:
            self.lib.llama_memory_clear(memory, True)
        elif n_past < self.n_past and not self.lib.llama_memory_seq_rm(memory, 0, n_past, -1):
            raise OctavoError(f"{self.path}: this model's cache cannot go back to position {n_past}.", "Start afresh.")
        self.n_past = n_past

    def _decode(self, ids: np.ndarray) -> np.ndarray:
        n = len(ids)
        with capi.batch_of(self.lib, n) as batch:
            fill_batch(batch, ids, self.n_past)
            status = self.lib.llama_decode(self.context, batch)
        if status != 0:
            raise OctavoError(f"{self.path}: llama_decode returned {status} for {n} ids: {complaints()}.")
        self.n_past += n
        address = self.lib.llama_get_logits(self.context)
        rows = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (n, self.n_vocab))
        last = self.lib.llama_get_logits_ith(self.context, -1)
        if last != address + (n - 1) * self.n_vocab * 4:
            raise capi.LayoutMismatch(f"llama.cpp did not return logits for all {n} positions.")
        return rows.copy()

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        flat = np.asarray(ids)
        if flat.ndim != 1 or flat.dtype.kind not in "iu" or flat.size == 0:
            raise BadInput(f"token ids must be integers of shape [n], n >= 1; got {flat.dtype} {list(flat.shape)}.")
        if (outside := flat[(flat < 0) | (flat >= self.n_vocab)]).size:
            raise BadInput(f"token id {outside[0]} is outside the vocabulary of {self.n_vocab} ({self.path.name}).")
        return np.ascontiguousarray(flat, np.int32)


def fill_batch(batch: Any, ids: np.ndarray, first: int) -> None:
    """Write ids int32 [n] into a llama_batch: positions first, first + 1, ..., sequence 0, all logits wanted."""
    n = len(ids)

    def array(name: str, kind: Any) -> Any:
        return np.ctypeslib.as_array((kind * n).from_address(capi.get(batch, capi.BATCH[name], "Q")))

    array("token", ctypes.c_int32)[:] = ids
    array("pos", ctypes.c_int32)[:] = np.arange(first, first + n)
    array("n_seq_id", ctypes.c_int32)[:] = 1
    for pointer in array("seq_id", ctypes.c_uint64):
        ctypes.c_int32.from_address(int(pointer)).value = 0
    array("logits", ctypes.c_int8)[:] = 1
    ctypes.c_int32.from_buffer(batch).value = n
