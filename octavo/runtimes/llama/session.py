"""A GGUF opened in a worker process: what the rest of Octavo sees of a running llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput, Missing, WorkerDied
from octavo.runtimes.base import Placement
from octavo.workers.local import Reply, Worker

ROOM = "octavo.runtimes.llama.worker"
LOGITS_BYTES_PER_MESSAGE = 64 << 20
OPEN_SECONDS = 600.0


@dataclass(frozen=True)
class Generation:
    """What was written, and at which speed (llama.cpp's own timings, tokens per second)."""

    text: str
    ids: tuple[int, ...] | None
    n: int
    prompt_n: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    finish_reason: str
    generated_by: str


class LlamaSession:
    """One GGUF in one worker; a context manager.

    `context`: positions of the KV cache (default: as trained, at most 4096); `threads`: default, all it may use;
    `kv_type`: "f32" (default: logits show the weights alone), "f16" (llama.cpp's default), "q8_0", "q4_0";
    `through`: "capi", or "server" to force the fallback. `logits_from` says where logits come from, `fallback` why
    not from the C API; `units`: "cpu" must be among them; `seconds` is what llama.cpp itself took for the last step.
    Raises BadInput for a file that llama.cpp cannot load, WorkerDied when it dies of it, Missing.
    """

    def __init__(
        self,
        path: Path | str,
        threads: int | None = None,
        context: int | None = None,
        *,
        kv_type: str = "f32",
        through: str = "capi",
        memory_bytes: int | None = None,
        units: tuple[str, ...] = ("cpu",),
    ) -> None:
        self._absent = [unit for unit in units if unit != "cpu"]
        if len(self._absent) == len(units):
            raise Missing(f"llama.cpp has only the CPU here, not {', '.join(units)}.", "Ask for cpu.")
        self.path = Path(path).resolve()
        self._worker = Worker(memory_bytes=memory_bytes, threads=threads)
        options = {"threads": threads, "context": context, "kv_type": kv_type, "through": through}
        try:
            facts = self._call("open", {"path": str(self.path), **options}, timeout=OPEN_SECONDS).result
        except BaseException:
            self._worker.close()
            raise
        self._handle = facts["handle"]
        self.n_vocab: int = facts["n_vocab"]
        self.context: int = facts["n_ctx"]
        self.trained_context: int = facts["trained_context"]
        self.threads: int = facts["threads"]
        self.has_tokenizer: bool = facts["tokenizer"]
        self.logits_from: str = facts["logits_from"]
        self.fallback: str = facts["fallback"]
        self._rows = max(1, LOGITS_BYTES_PER_MESSAGE // (4 * self.n_vocab))
        self._generation = 0
        self._cached = 0
        self.seconds = 0.0

    def __enter__(self) -> LlamaSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._worker.close()

    @property
    def peak_rss_bytes(self) -> int:
        """The worker's largest resident set so far, mapped model pages included."""
        return self._worker.peak_rss_bytes

    def placement(self) -> list[Placement]:
        """llama.cpp is opened with no layer offloaded: everything runs on the CPU."""
        reason = f"llama.cpp has only the CPU here, not {', '.join(self._absent)}" if self._absent else ""
        return [Placement("*", "cpu", reason)]

    def step(
        self, inputs: dict[str, NDArray[Any]], state: Any = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
        """{"ids": int64 [1, n]}, state → {"logits": float32 [1, n, vocab]}, new state.

        State None starts afresh; a state may be used again as long as no other sequence was started since (going back
        forgets what came after it). Raises BadInput for a state that the cache no longer holds.
        """
        return self._step(inputs, state, last=False)

    def step_last(
        self, inputs: dict[str, NDArray[Any]], state: Any = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
        """`step` as text is generated: logits float32 [1, 1, vocab], of the last id only."""
        return self._step(inputs, state, last=True)

    def _step(
        self, inputs: dict[str, NDArray[Any]], state: Any, last: bool
    ) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
        ids = np.asarray(inputs["ids"])
        if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] == 0:
            raise BadInput(f"ids must have shape [1, n] with n >= 1; got {list(ids.shape)}.")
        if state is None:
            self._generation += 1
            n_past = 0
        else:
            n_past = int(state["n_past"])
            if state["sequence"] != self._generation or n_past > self._cached:
                raise BadInput(
                    f"state {state}: its positions are no longer cached (sequence {self._generation}, "
                    f"{self._cached} positions).",
                    "One session holds one sequence: open a session for each, or start afresh with state None.",
                )
        parts = []
        self.seconds = 0.0
        self._cached = n_past
        rows = ids.shape[1] if last else self._rows
        for start in range(0, ids.shape[1], rows):
            part = ids[0, start : start + rows].astype(np.int64)
            reply = self._call("step", {"n_past": n_past, "last": last}, {"ids": part})
            parts.append(reply.arrays["logits"])
            self.seconds += float(reply.result["seconds"])
            n_past = self._cached = int(reply.result["n_past"])
        logits = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return {"logits": logits[None]}, {"sequence": self._generation, "n_past": n_past}

    def tokenize(self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids as llama.cpp sees them. Raises BadInput for a file without a tokenizer."""
        return self.tokenize_many([text], add_special=add_special, parse_special=parse_special)[0]

    def tokenize_many(
        self, texts: Sequence[str | bytes], *, add_special: bool = True, parse_special: bool = False
    ) -> list[list[int]]:
        """Token ids of each text, in one call to the worker."""
        raw = [text.encode() if isinstance(text, str) else text for text in texts]
        arrays: dict[str, NDArray[Any]] = {
            "texts": np.frombuffer(b"".join(raw), np.uint8),
            "ends": np.cumsum([len(text) for text in raw], dtype=np.int64),
        }
        out = self._call("tokenize", {"add_special": add_special, "parse_special": parse_special}, arrays).arrays
        return [ids.tolist() for ids in np.split(out["ids"], out["ends"][:-1])] if raw else []

    def detokenize(
        self, ids: Sequence[int] | NDArray[Any], *, remove_special: bool = True, unparse_special: bool = False
    ) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        special = {"remove_special": remove_special, "unparse_special": unparse_special}
        reply = self._call("detokenize", special, {"ids": np.asarray(ids, np.int64)})
        return reply.arrays["text"].tobytes().decode(errors="replace")

    def generate(
        self,
        prompt: str | Sequence[int] | NDArray[Any],
        max_tokens: int = 128,
        temperature: float = 0.8,
        seed: int = 0,
        on_token: Callable[[str], None] | None = None,
        *,
        return_ids: bool = False,
        **sampling: Any,
    ) -> Generation:
        """Write on from a text or ids; `on_token` gets each piece as it comes (or the id, without a tokenizer).

        `temperature` 0 is greedy; further `sampling` goes to llama.cpp by its own names (top_k, top_p, min_p,
        ignore_eos, ...). Generation has a cache of its own, except where `fallback` or a missing tokenizer makes it
        share the one of `step`.
        """
        settings = {"temperature": temperature, "seed": seed, **({"n_probs": 1} if return_ids else {}), **sampling}
        params: dict[str, Any] = {"max_tokens": max_tokens, "sampling": settings}
        arrays: dict[str, NDArray[Any]] = {}
        if isinstance(prompt, str):
            params["prompt"] = prompt
        else:
            arrays["ids"] = np.asarray(prompt, np.int64)

        def on_event(event: dict[str, Any]) -> None:
            if on_token is not None:
                on_token(event["token"] if "token" in event else f"{event['id']} ")

        reply = self._call("generate", params, arrays, on_event=on_event)
        if self.fallback or not self.has_tokenizer:
            self._generation += 1  # here one cache serves both
        ids = reply.result.pop("ids")
        return Generation(ids=None if ids is None else tuple(ids), **reply.result)

    def self_test(self) -> float:
        """The largest difference of log-probabilities between the C API and the server, on this model."""
        return float(self._call("self_test").result["largest_difference"])

    def _call(
        self,
        target: str,
        params: dict[str, Any] | None = None,
        arrays: dict[str, NDArray[Any]] | None = None,
        *,
        timeout: float | None = None,
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> Reply:
        handle = {} if target == "open" else {"handle": self._handle}
        try:
            return self._worker.call(
                f"{ROOM}:{target}", {**handle, **(params or {})}, arrays, timeout=timeout, on_event=on_event
            )
        except WorkerDied as error:
            size = self.path.stat().st_size if self.path.exists() else 0
            raise WorkerDied(
                f"{self.path} ({size} bytes): llama.cpp died on it: {error.message}", error.remedy
            ) from None


def quantize_chunk(kind: str, rows: NDArray[Any], imatrix: NDArray[Any] | None = None) -> tuple[bytes, float]:
    """llama.cpp's own quantiser in a worker: float32 [n, k] → its block bytes, row by row, and the seconds it took.

    An oracle for tests and the peer in benchmarks; the product's codes never come from it. One thread.
    """
    arrays = {"rows": np.asarray(rows, np.float32), **({} if imatrix is None else {"imatrix": imatrix})}
    with Worker() as worker:
        reply = worker.call(f"{ROOM}:quantize_chunk", {"type": kind}, arrays)
    return reply.arrays["blocks"].tobytes(), float(reply.result["seconds"])
