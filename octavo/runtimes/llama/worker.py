"""What runs in the worker: targets `f(params, arrays, emit) -> (result, arrays)` over models kept by handle."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput, nearest
from octavo.runtimes.llama import capi, native
from octavo.runtimes.llama.server import Server
from octavo.runtimes.llama.vocabulary import Vocabulary

Arrays = dict[str, NDArray[Any]]
Answer = tuple[dict[str, Any], Arrays]
Emit = Callable[[dict[str, Any]], None]
LONGEST_DEFAULT_CONTEXT = 4096
SELF_TEST_IDS = 4

_opened: dict[int, Opened] = {}


@dataclass
class Opened:
    """One GGUF and how it is to be run. What computes is loaded when first needed: text needs no second copy of it."""

    path: Path
    threads: int
    asked_context: int | None
    kv_type: str
    through_server: str  # why logits come from the server; "" when they come from the C API

    @cached_property
    def text(self) -> Vocabulary | Server:
        return self.server if self.through_server else Vocabulary(self.path)

    @cached_property
    def decoder(self) -> native.Decoder | Server:
        if self.through_server:
            return self.server
        return native.Decoder(self.path, n_ctx=self.n_ctx, threads=self.threads, kv_type=self.kv_type)

    @cached_property
    def server(self) -> Server:
        # Generation runs as llama.cpp does by default (f16 cache) unless another cache was asked for by name.
        kv_type = self.kv_type if self.through_server or self.kv_type != "f32" else "f16"
        return Server(self.path, n_ctx=self.n_ctx, threads=self.threads, kv_type=kv_type)

    @property
    def n_ctx(self) -> int:
        if self.asked_context:
            return self.asked_context
        if self.through_server:  # it must be opened before it can tell how long its context could be
            return LONGEST_DEFAULT_CONTEXT
        return min(self.text.trained_context, LONGEST_DEFAULT_CONTEXT)

    def close(self) -> None:
        for name in ("text", "decoder", "server"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()


def open(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """Open `path`; options: context, threads, kv_type, through ("capi" or "server"). Returns the handle and facts.

    Falls back to the server when the struct layout's self-test fails, and says so in `logits_from` and `fallback`.
    """
    through = params.get("through", "capi")
    if through not in {"capi", "server"}:
        raise BadInput(f"logits come through 'capi' or 'server', not {through!r}.")
    why = "asked for" if through == "server" else ""
    if not why:
        try:
            capi.library()
        except capi.LayoutMismatch as error:
            why = f"the C API's layout self-test failed: {error.message}"
    opened = Opened(
        path=Path(params["path"]),
        threads=params.get("threads") or _processors(),
        asked_context=params.get("context"),
        kv_type=params.get("kv_type", "f32"),
        through_server=why,
    )
    facts = {
        "n_vocab": opened.text.n_vocab,
        "n_ctx": opened.asked_context or min(opened.text.trained_context, LONGEST_DEFAULT_CONTEXT),
        "trained_context": opened.text.trained_context,
        "tokenizer": getattr(opened.text, "has_tokenizer", True),
        "threads": opened.threads,
        "logits_from": Server.logits_from if why else native.Decoder.logits_from,
        "fallback": why,
    }
    handle = max(_opened, default=0) + 1
    _opened[handle] = opened
    return {"handle": handle, **facts}, {}


def close(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """Free a handle."""
    _of(params).close()
    del _opened[params["handle"]]
    return {}, {}


def step(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """ids int64 [n] after `n_past` cached positions → logits float32 [n, vocab] (log-probabilities from a server), and
    the seconds that llama.cpp took. `last`: float32 [1, vocab], of the last position only."""
    opened = _of(params)
    start = time.perf_counter()
    logits = opened.decoder.step(arrays["ids"], params["n_past"], bool(params.get("last")))
    seconds = time.perf_counter() - start
    return {"n_past": params["n_past"] + len(arrays["ids"]), "seconds": seconds}, {"logits": logits}


def tokenize(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """`texts` uint8 [bytes] with `ends` int64 [n texts] → ids int32 [all] with ends int64 [n texts]."""
    text, out = arrays["texts"].tobytes(), []
    special = {"add_special": params["add_special"], "parse_special": params["parse_special"]}
    start = 0
    for end in arrays["ends"].tolist():
        out.append(_of(params).text.tokenize(text[start:end], **special))
        start = end
    ends = np.cumsum([len(ids) for ids in out], dtype=np.int64)
    return {}, {"ids": np.concatenate([np.empty(0, np.int32), *out]), "ends": ends}


def detokenize(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """ids [n] → text uint8 [bytes]: bytes, since ids may end in the middle of a character."""
    special = {"remove_special": params["remove_special"], "unparse_special": params["unparse_special"]}
    return {}, {"text": np.frombuffer(_of(params).text.detokenize(arrays["ids"], **special), np.uint8)}


def generate(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """Write on from `prompt` (text) or ids [n]; emits {"token": text} (or {"id": n} for a file without tokenizer)."""
    opened = _of(params)
    prompt = arrays["ids"].tolist() if "ids" in arrays else params["prompt"]
    if not getattr(opened.text, "has_tokenizer", True):
        if isinstance(prompt, str):
            raise BadInput(f"{opened.path} carries no tokenizer.", "Give token ids instead of text (--ids).")
        return _generate_ids(opened, arrays["ids"], params["max_tokens"], params["sampling"], emit), {}
    return opened.server.generate(prompt, params["max_tokens"], params["sampling"], emit), {}


def _generate_ids(
    opened: Opened, ids: NDArray[Any], max_tokens: int, sampling: dict[str, Any], emit: Emit
) -> dict[str, Any]:
    """Generation without a tokenizer, which the server cannot do: greedy, or plain sampling at a temperature.

    Ends after one of the file's end ids (which is returned) or when prompt and answer fill the context.
    """
    ends: frozenset[int] = frozenset() if sampling.get("ignore_eos") else getattr(opened.text, "ends", frozenset())
    room = min(max_tokens, opened.n_ctx - len(ids))
    if room < 1 <= max_tokens:
        raise BadInput(f"The prompt has {len(ids)} tokens, and the context is {opened.n_ctx}.", "Shorten the prompt.")
    rng = np.random.default_rng(sampling.get("seed"))
    temperature = float(sampling.get("temperature", 0.0))
    out: list[int] = []
    marks = [time.perf_counter()]
    logits = opened.decoder.step(ids, 0, last=True)[-1]
    marks.append(time.perf_counter())
    while len(out) < room and not (out and out[-1] in ends):
        if temperature > 0:
            weight = np.exp((logits - logits.max()).astype(np.float64) / temperature)
            out.append(int(rng.choice(len(weight), p=weight / weight.sum())))
        else:
            out.append(int(logits.argmax()))
        emit({"id": out[-1]})
        if len(out) < room and out[-1] not in ends:
            logits = opened.decoder.step(np.array(out[-1:]), len(ids) + len(out) - 1)[-1]
    decoding = time.perf_counter() - marks[1]
    return {
        "text": "",
        "ids": out,
        "n": len(out),
        "prompt_n": len(ids),
        "prefill_tokens_per_second": len(ids) / (marks[1] - marks[0]),
        "decode_tokens_per_second": (len(out) - 1) / decoding if len(out) > 1 else 0.0,
        "finish_reason": "stop" if out and out[-1] in ends else "length",
        "generated_by": native.LOGITS_FROM,
    }


def self_test(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """Compare the C API's logits with the server's on the first few ids of a model: two ways into one library.

    Returns the largest difference of log-probabilities, over entries above 1e-9 probability.
    """
    opened = _of(params)
    ids = np.arange(1, 1 + min(SELF_TEST_IDS, opened.text.n_vocab - 1))
    logits = opened.decoder.step(ids, 0).astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    ours = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    other = Server(opened.path, n_ctx=256, threads=opened.threads, kv_type=opened.kv_type)
    theirs = other.step(ids, 0)
    other.close()
    return {"largest_difference": float(np.abs(ours - theirs)[theirs > np.log(1e-9)].max())}, {}


def quantize_chunk(params: dict[str, Any], arrays: Arrays, emit: Emit) -> Answer:
    """`rows` float32 [n, k] in llama.cpp's `type` (its name: "q4_0", "q6_K", ...), with `imatrix` float32 [k] if given.

    → blocks uint8 [n, bytes per row], and `seconds` of the library call alone. Raises BadInput.
    """
    lib, rows = capi.library(), np.ascontiguousarray(arrays["rows"], np.float32)
    kind = _type_of(str(params["type"]))
    n, k = rows.shape
    if k % (block := lib.ggml_blck_size(kind)):
        raise BadInput(f"rows [{n}, {k}]: the block of {params['type']} is {block}, which does not divide {k}.")
    imatrix = np.ascontiguousarray(arrays["imatrix"], np.float32) if "imatrix" in arrays else None
    if imatrix is None and lib.ggml_quantize_requires_imatrix(kind):
        raise BadInput(f"{params['type']} needs importance weights.", "Give imatrix float32 [k].")
    if imatrix is not None and imatrix.shape != (k,):
        raise BadInput(f"imatrix {list(imatrix.shape)} for rows [{n}, {k}].")
    blocks = np.empty((n, lib.ggml_row_size(kind, k)), np.uint8)
    weights = imatrix.ctypes.data_as(ctypes.c_void_p) if imatrix is not None else None
    start = time.perf_counter()
    written = lib.ggml_quantize_chunk(kind, rows.ctypes.data, blocks.ctypes.data, 0, n, k, weights)
    seconds = time.perf_counter() - start
    assert written == blocks.nbytes, f"ggml_quantize_chunk wrote {written} bytes of {blocks.nbytes}"
    return {"seconds": seconds}, {"blocks": blocks}


def _processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _type_of(name: str) -> int:
    """ggml's number for a type by its name, whatever the case. Raises BadInput with the nearest names."""
    import xllamacpp

    types = {kind.name.removeprefix("GGML_TYPE_").lower(): int(kind) for kind in xllamacpp.ggml_type}
    if name.lower() not in types:
        raise BadInput(f"llama.cpp has no type {name!r}.", nearest(name.lower(), types))
    return types[name.lower()]


def _of(params: dict[str, Any]) -> Opened:
    if params["handle"] not in _opened:
        raise BadInput(f"no open model has the handle {params['handle']}.")
    return _opened[params["handle"]]
