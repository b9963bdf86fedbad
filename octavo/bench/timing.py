"""Latency and tokens per second of a loaded session, by the monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import BadInput

MIN_SECONDS = 0.5  # a fast model is repeated until the clock has something to measure
MAX_REPEAT = 10_000

Step = Callable[[dict[str, NDArray[Any]], Any], tuple[dict[str, NDArray[Any]], Any]]


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call: percentiles (linear interpolation) over `n` timed calls. With n < 100, p99 leans on the
    slowest call."""

    p50: float
    p90: float
    p99: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Throughput:
    """Tokens per second, the median over `n` runs: `prefill` of a prompt of `prompt_tokens`, `decode` of the
    `decode_tokens` that followed it one at a time. `first_token_ms`: the prefill's time. `low`/`high`: extremes."""

    prefill: float
    decode: float
    prompt_tokens: int
    decode_tokens: int
    first_token_ms: float
    prefill_range: tuple[float, float]
    decode_range: tuple[float, float]
    per_token_ms: Latency
    n: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def time_session(
    step: Callable[[], Any], repeat: int = 50, warmup: int = 5, min_seconds: float = MIN_SECONDS
) -> Latency:
    """Time `step()` at least `repeat` times, and until `min_seconds` have been measured; `warmup` calls come first."""
    if repeat < 1 or warmup < 0:
        raise BadInput(f"{repeat} timed calls after {warmup} to warm up.", "Use at least 1 timed call.")
    for _ in range(warmup):
        step()
    times: list[float] = []
    total = 0.0
    while len(times) < repeat or (total < min_seconds and len(times) < MAX_REPEAT):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
        total += times[-1]
    return latency(times)


def latency(seconds: list[float]) -> Latency:
    """Percentiles of measured times."""
    p50, p90, p99 = np.percentile(np.array(seconds) * 1e3, [50, 90, 99])
    return Latency(float(p50), float(p90), float(p99), len(seconds))


def time_language(
    step: Step,
    ids: NDArray[np.int64],
    decode: int = 32,
    repeat: int = 3,
    warmup: int = 1,
    clock: Callable[[], float] | None = None,
) -> Throughput:
    """Prefill and decode rates through `Session.step`, the state (the KV cache) handed from step to step.

    `clock` gives the seconds that the runtime itself took for the last step, where that is not the whole call (a
    session in a process of its own); without it the call is timed.
    `ids` int64 [1, n] is the prompt; `decode` tokens follow, each the likeliest, so that the work is the real one.
    Raises BadInput when there is nothing to time, or the session keeps no state (then there is no decode rate).
    """
    if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] < 1 or decode < 1 or repeat < 1:
        raise BadInput(f"A prompt {list(ids.shape)} and {decode} tokens to decode {repeat} times: nothing to time.")
    runs = [_one(step, ids, decode, clock) for _ in range(warmup + repeat)][warmup:]
    prefill = [ids.shape[1] / first for first, _ in runs]
    rates = [decode / sum(rest) for _, rest in runs]
    return Throughput(
        prefill=float(np.median(prefill)),
        decode=float(np.median(rates)),
        prompt_tokens=ids.shape[1],
        decode_tokens=decode,
        first_token_ms=float(np.median([first for first, _ in runs]) * 1e3),
        prefill_range=(min(prefill), max(prefill)),
        decode_range=(min(rates), max(rates)),
        per_token_ms=latency([seconds for _, rest in runs for seconds in rest]),
        n=repeat,
    )


def _one(
    step: Step, ids: NDArray[np.int64], decode: int, clock: Callable[[], float] | None
) -> tuple[float, list[float]]:
    """Seconds of one prefill, and of each decoded token."""
    start = time.perf_counter()
    outputs, state = step({"ids": ids}, None)
    first = clock() if clock else time.perf_counter() - start
    if state is None:
        raise BadInput("The session keeps no state: without a KV cache there is no decode rate to report.")
    rest: list[float] = []
    for _ in range(decode):
        token = np.array([[int(np.argmax(outputs["logits"][0, -1]))]], np.int64)
        start = time.perf_counter()
        outputs, state = step({"ids": token}, state)
        rest.append(clock() if clock else time.perf_counter() - start)
    return first, rest
