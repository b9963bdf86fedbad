"""xllamacpp's public Server: generation, and the fallback for logits without the C API. In a worker only."""

from __future__ import annotations

import json
import secrets
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput, Missing, OctavoError
from octavo.runtimes.llama.native import KV_TYPES, check_positions, checked_ids

LOGITS_FROM = "n_probs (log-probabilities)"
WARNINGS_ONLY = 2
Emit = Callable[[dict[str, Any]], None]


class Server:
    """A GGUF behind xllamacpp's server object: one slot, CPU. Not thread-safe.

    The object opens an HTTP port on the loopback interface, wanted or not; a random key closes it to others.
    `kv_type` as llama.cpp names it. Raises BadInput for a file that cannot
    be loaded; llama.cpp's reasons are on stderr.
    """

    logits_from = LOGITS_FROM

    def __init__(self, path: Path, *, n_ctx: int, threads: int, kv_type: str = "f16") -> None:
        if not path.is_file():
            raise BadInput(f"{path}: no such file.")
        try:
            import xllamacpp
        except ImportError as error:
            raise Missing(f"llama.cpp needs the package xllamacpp ({error}).", "pip install 'octavo[llama]'.") from None
        self.path, self.n_past, self._history, self._key = path, 0, np.empty(0, np.int32), secrets.token_hex(16)
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = n_ctx, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type(KV_TYPES[kv_type])
        if kv_type == "f32":  # as native.Decoder does, for the same reason
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.fit_params = params.ui = params.warmup = False
        params.cache_ram_mib, params.verbosity, params.api_keys = 0, WARNINGS_ONLY, [self._key]
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise BadInput(
                f"{path} ({path.stat().st_size} bytes): llama.cpp's server cannot open it: {error}"
            ) from None
        meta = self._http("/v1/models")["data"][0]["meta"]
        self.n_vocab, self.trained_context = int(meta["n_vocab"]), int(meta["n_ctx_train"])
        self.n_ctx = n_ctx

    def close(self) -> None:
        self._server = None

    def tokenize(self, text: bytes, *, add_special: bool, parse_special: bool) -> NDArray[Any]:
        content = text.decode()
        body = {"content": content, "add_special": add_special, "parse_special": parse_special}
        return np.array(self._http("/tokenize", body)["tokens"], np.int32)

    def detokenize(self, ids: NDArray[Any], *, remove_special: bool, unparse_special: bool) -> bytes:
        text = str(self._http("/detokenize", {"tokens": np.asarray(ids).tolist()})["content"])
        bos = str(self._http("/props").get("bos_token", ""))
        return (text.removeprefix(bos) if remove_special else text).encode()

    def generate(
        self, prompt: str | list[int], max_tokens: int, sampling: dict[str, Any], emit: Emit
    ) -> dict[str, Any]:
        """Write on from a prompt (text or ids); each piece of text is emitted as {"token": text}.

        `sampling` holds llama.cpp's own names (temperature, seed, top_k, top_p, min_p, ignore_eos, ...); n_probs=1
        also returns the ids. Speeds are llama.cpp's timings: tokens/s of prefill and decode.
        """
        request = {"prompt": prompt, "max_tokens": max_tokens, "stream": True, "cache_prompt": False, **sampling}
        pieces: list[str] = []
        ids: list[int] = []
        last: dict[str, Any] = {}

        def take(chunk: Any) -> bool:
            last.update({key: chunk[key] for key in ("timings", "error") if key in chunk})
            for choice in chunk.get("choices", ()):
                last["finish"] = choice.get("finish_reason") or last.get("finish")
                ids.extend(token["id"] for token in (choice.get("logprobs") or {}).get("content", ()))
                if choice["text"]:
                    pieces.append(choice["text"])
                    emit({"token": choice["text"]})
            return False

        self._server.handle_completions(request, take)
        self.n_past = 0  # the slot's cache now holds something else
        if "error" in last or "timings" not in last:
            raise self._refusal(last.get("error", {}))
        timings = last["timings"]
        return {
            "text": "".join(pieces),
            "ids": ids if sampling.get("n_probs") else None,
            "n": timings["predicted_n"],
            "prompt_n": timings["prompt_n"],
            "prefill_tokens_per_second": timings["prompt_per_second"],
            "decode_tokens_per_second": timings["predicted_per_second"],
            "finish_reason": last.get("finish") or "",
            "generated_by": "llama.cpp server",
        }

    def step(self, ids: NDArray[Any], n_past: int, last: bool = False) -> NDArray[Any]:
        """Return log-probabilities float32 [n, vocab], with `last` [1, vocab] of the last id: one request per position,
        the prefix coming from the cache."""
        ids = checked_ids(ids, self.n_vocab, self.path.name)
        check_positions(n_past, len(ids), self.n_past, self.n_ctx - 1)  # the server needs room for one more
        self._history = np.concatenate([self._history[:n_past], ids])
        rows = 1 if last else len(ids)
        out = np.full((rows, self.n_vocab), -np.inf, np.float32)
        for row in range(rows):
            prefix = self._history[: n_past + len(ids) - rows + row + 1].tolist()
            request = {"prompt": prefix, "max_tokens": 1, "n_probs": self.n_vocab, "temperature": 0.0}
            answer = self._server.handle_completions({**request, "cache_prompt": True})
            if "choices" not in answer:
                raise self._refusal(answer.get("error", {}))
            for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
                out[row, entry["id"]] = entry["logprob"]
        self.n_past = n_past + len(ids)
        return out

    def _refusal(self, error: dict[str, Any]) -> OctavoError:
        kind = BadInput if error.get("code") == 400 else OctavoError
        return kind(f"{self.path}: llama.cpp's server refused: {error.get('message', 'no reason given')}.")

    def _http(self, route: str, body: dict[str, Any] | None = None) -> Any:
        """The server's own routes for what its Python class does not offer; loopback only, past any proxy."""
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(self._server.listening_address + route, data, headers)
        with opener.open(request, timeout=60) as reply:
            return json.load(reply)
