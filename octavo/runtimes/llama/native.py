"""A GGUF computed by llama.cpp itself: logits at all positions, with a KV cache. Inside a worker only."""

from __future__ import annotations

import ctypes
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput, OctavoError, nearest
from octavo.runtimes.llama import capi

LOGITS_FROM = "llama.cpp C API"
UBATCH = 512
KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}  # ggml_type
FLASH_OFF, FLASH_AUTO = 0, -1
NOT_MAPPED = 0  # llama_load_mode: read into memory of llama.cpp's own
WARNING, CONTINUED = 3, 5  # ggml_log_level: 3 warning, 4 error; 5 continues the line before

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
    return text or "no reason given"


def load(path: Path, **params: float) -> int:
    """Load a GGUF on the CPU and return llama.cpp's pointer to it; `params` are fields of llama_model_params.

    Raises BadInput with llama.cpp's own reasons when it cannot load the file.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file.")
    lib = capi.library()
    lib.llama_log_set(_listen, None)
    complaints()
    block = lib.llama_model_default_params()
    capi.put(block, capi.MODEL_PARAMS, **{"n_gpu_layers": 0, **params})
    model = lib.llama_model_load_from_file(str(path).encode(), block)
    if not model:
        raise BadInput(
            f"{path} ({path.stat().st_size} bytes): llama.cpp cannot load it: {complaints()}.",
            "The file is damaged, incomplete or not a GGUF; export it again.",
        )
    return int(model)


def checked_ids(ids: NDArray[Any], n_vocab: int, where: str) -> NDArray[Any]:
    """Return ids as contiguous int32 [n]. Raises BadInput for another shape or type, or an id beyond the vocabulary."""
    flat = np.asarray(ids)
    if flat.ndim != 1 or flat.dtype.kind not in "iu" or flat.size == 0:
        raise BadInput(f"token ids must be integers of shape [n], n >= 1; got {flat.dtype} {list(flat.shape)}.")
    if (outside := flat[(flat < 0) | (flat >= n_vocab)]).size:
        raise BadInput(f"token id {outside[0]} is outside the vocabulary of {n_vocab} ({where}).")
    return np.ascontiguousarray(flat, np.int32)


class Decoder:
    """A loaded GGUF with one context of one sequence. Not thread-safe.

    `n_ctx`: positions the KV cache holds; `threads`: for prefill and decode alike. `kv_type`: what keys and values are
    stored as. "f32" also switches flash attention off, so that the logits show the weights and nothing else
    (1e-5 from transformers on a float model); "f16", with flash attention where llama.cpp likes it, is what its
    command line does (1e-2 on the same model).
    """

    logits_from = LOGITS_FROM

    def __init__(self, path: Path, *, n_ctx: int, threads: int, kv_type: str = "f32", repack: bool = True) -> None:
        if kv_type not in KV_TYPES:
            raise BadInput(f"unknown KV cache type {kv_type!r}.", nearest(kv_type, KV_TYPES))
        self.lib = capi.library()
        self.path = path
        self.context: int | None = None
        # Not mapped: what is repacked for the CPU's kernels (Q4_0) would be there twice, as filed and as repacked.
        self.model: int | None = load(path, use_extra_bufts=repack, load_mode=NOT_MAPPED)
        self.n_vocab = int(self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model)))
        self.n_past = 0
        try:
            self._open_context(n_ctx, threads, kv_type)
        except OctavoError:
            self.close()
            raise

    def _open_context(self, n_ctx: int, threads: int, kv_type: str) -> None:
        wanted = {
            "n_ctx": n_ctx,
            "n_batch": UBATCH,
            "n_ubatch": UBATCH,
            "n_threads": threads,
            "n_threads_batch": threads,
        }
        outputs = {"n_outputs_max": UBATCH, "n_outputs_max_per_seq": UBATCH}
        kv = {"type_k": KV_TYPES[kv_type], "type_v": KV_TYPES[kv_type]}
        flash = FLASH_OFF if kv_type == "f32" else FLASH_AUTO
        params = self.lib.llama_context_default_params()
        capi.put(params, capi.CONTEXT_PARAMS, **wanted, **outputs, **kv, flash_attn_type=flash)
        self.context = self.lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise OctavoError(f"{self.path}: llama.cpp cannot make a context of {n_ctx} positions: {complaints()}.")
        got = {name: int(getattr(self.lib, f"llama_{name}")(self.context)) for name in wanted}
        # The second half of the layout's self-test: what was written by offset must come back through the accessors.
        # llama.cpp rounds n_ctx up to a multiple of 256 and caps the batches at it; nothing else may differ.
        rounded = -(-n_ctx // 256) * 256
        allowed = {**{name: {value} for name, value in wanted.items()}, "n_ctx": {n_ctx, rounded}}
        allowed["n_batch"] = allowed["n_ubatch"] = {UBATCH, min(UBATCH, n_ctx), min(UBATCH, rounded)}
        if any(got[name] not in allowed[name] for name in wanted):
            raise capi.LayoutMismatch(f"llama.cpp read the context parameters {wanted} as {got}.")
        self.n_ctx, self.n_ubatch = n_ctx, got["n_ubatch"]

    def close(self) -> None:
        if self.context:
            self.lib.llama_free(self.context)
        if self.model:
            self.lib.llama_model_free(self.model)
        self.context = self.model = None

    def step(self, ids: NDArray[Any], n_past: int, last: bool = False) -> NDArray[Any]:
        """Return logits float32 [n, vocab] for ids [n] placed after the first `n_past` positions of the cache; with
        `last` only those of the last position, [1, vocab], as text is generated.

        Positions from `n_past` on are forgotten first, so 0 starts afresh and a smaller number goes back.
        Raises BadInput for ids outside the vocabulary, and for positions beyond the context or what is cached.
        """
        ids = checked_ids(ids, self.n_vocab, self.path.name)
        check_positions(n_past, len(ids), self.n_past, self.n_ctx)
        self.truncate(n_past)
        parts = []
        for start in range(0, len(ids), self.n_ubatch):
            part = ids[start : start + self.n_ubatch]
            wanted = len(part) if not last else int(start + len(part) == len(ids))
            parts.append(self._decode(part, wanted))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def truncate(self, n_past: int) -> None:
        """Forget all cached positions from `n_past` on."""
        memory = self.lib.llama_get_memory(self.context)
        if n_past == 0:
            self.lib.llama_memory_clear(memory, True)
        elif n_past < self.n_past and not self.lib.llama_memory_seq_rm(memory, 0, n_past, -1):
            raise OctavoError(f"{self.path}: this model's cache cannot go back to position {n_past}.", "Start afresh.")
        self.n_past = n_past

    def _decode(self, ids: NDArray[Any], wanted: int) -> NDArray[Any]:
        """Logits [wanted, vocab] of the last `wanted` ids."""
        n = len(ids)
        with capi.batch_of(self.lib, n) as batch:
            fill_batch(batch, ids, self.n_past, wanted)
            status = self.lib.llama_decode(self.context, batch)
        if status != 0:
            raise OctavoError(f"{self.path}: llama_decode returned {status} for {n} ids: {complaints()}.")
        self.n_past += n
        if not wanted:
            return np.empty((0, self.n_vocab), np.float32)
        address = self.lib.llama_get_logits(self.context)
        if self.lib.llama_get_logits_ith(self.context, -1) != address + (wanted - 1) * self.n_vocab * 4:
            raise capi.LayoutMismatch(f"llama.cpp did not return logits for {wanted} of {n} positions.")
        found = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (wanted, self.n_vocab))
        return found.copy()


def check_positions(n_past: int, n: int, cached: int, n_ctx: int) -> None:
    """Raise BadInput unless n new positions after `n_past` cached ones are possible."""
    if not 0 <= n_past <= cached:
        raise BadInput(f"cannot continue after {n_past} positions: the cache holds {cached}.")
    if n_past + n > n_ctx:
        raise BadInput(f"{n_past} + {n} positions exceed the context of {n_ctx}.", "Open it with a larger context.")


def fill_batch(batch: Any, ids: NDArray[Any], first: int, wanted: int) -> None:
    """Write ids int32 [n] into a llama_batch: positions first, first + 1, ..., sequence 0; logits of the last
    `wanted`."""
    n = len(ids)

    def array(name: str, kind: Any) -> Any:
        return np.ctypeslib.as_array((kind * n).from_address(capi.get(batch, capi.BATCH[name], "Q")))

    array("token", ctypes.c_int32)[:] = ids
    array("pos", ctypes.c_int32)[:] = np.arange(first, first + n)
    array("n_seq_id", ctypes.c_int32)[:] = 1
    for pointer in array("seq_id", ctypes.c_uint64):
        ctypes.c_int32.from_address(int(pointer)).value = 0
    array("logits", ctypes.c_int8)[:] = np.arange(n) >= n - wanted
    ctypes.c_int32.from_buffer(batch).value = n
