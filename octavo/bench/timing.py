"""Latency and tokens per second of a loaded session, by the monotonic clock."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.bench.interval import median_interval
from octavo.errors import BadInput

MIN_SECONDS = 0.5  # a fast model is repeated until the clock has something to measure
MAX_REPEAT = 10_000
MAX_PRECISE = 200_000  # calls after which a better interval is not worth the wait
GROWTH = 1.25  # between two looks at the interval: looking after every call would stop on a lucky one
REPORT_SECONDS = 0.2

Step = Callable[[dict[str, NDArray[Any]], Any], tuple[dict[str, NDArray[Any]], Any]]
Report = Callable[[float], None]  # the share of the work that is done
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Until:
    """When enough has been timed: at least `repeat` calls and `min_seconds`; and with a `precision`, until the 95 %
    interval of the median is within that share of it on both sides, or `limit` seconds have been measured."""

    repeat: int = 50
    min_seconds: float = MIN_SECONDS
    precision: float | None = None
    limit: float = 20.0

    def __post_init__(self) -> None:
        if self.repeat < 1:
            raise BadInput(f"{self.repeat} timed calls.", "Use at least 1 timed call.")
        if self.precision is not None and not 0 < self.precision < 1:
            raise BadInput(f"A precision of {self.precision:g}.", "Give a share between 0 and 1, such as 2%.")
        if not self.limit > 0:
            raise BadInput(f"A limit of {self.limit:g} seconds.", "Give more than none.")


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call: percentiles (linear interpolation) over `n` timed calls, none left out. With n < 100, p99
    leans on the slowest call, `max`. `interval`: 95 % of p50 (interval.py)."""

    p50: float
    p90: float
    p99: float
    n: int
    max: float
    interval: tuple[float, float]

    @property
    def reach(self) -> float:
        """How far the interval reaches from the median, as a share of it."""
        return max(self.p50 - self.interval[0], self.interval[1] - self.p50) / max(self.p50, 1e-12)

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
    return latency(timed_calls(step, Until(repeat, min_seconds), warmup))


def timed_calls(
    step: Callable[[], Any],
    until: Until,
    warmup: int = 5,
    report: Report | None = None,
    clock: Callable[[], float] | None = None,
) -> Floats:
    """Seconds of each call of `step()`, in order, after `warmup` calls.

    `clock`: the seconds that the runtime itself took for the last call, where that is not the whole call.
    """
    if warmup < 0:
        raise BadInput(f"{warmup} calls to warm up.", "Use 0 or more.")
    for _ in range(warmup):
        step()
    times, total, look = array("d"), 0.0, until.repeat
    said = time.perf_counter()
    while True:
        if len(times) >= look or total >= until.limit:
            if _enough(times, total, until):
                return np.array(times)
            look = len(times) + 1 if until.precision is None else int(GROWTH * len(times)) + 1
        start = time.perf_counter()
        step()
        end = time.perf_counter()
        times.append(clock() if clock else end - start)
        total += times[-1]
        if report is not None and end - said > REPORT_SECONDS:
            report(_share(times, total, until))
            said = time.perf_counter()


def _enough(times: Sequence[float], total: float, until: Until) -> bool:
    n = len(times)
    if n < until.repeat or (total < until.min_seconds and n < MAX_REPEAT):
        return False
    if until.precision is None or total >= until.limit or n >= MAX_PRECISE:
        return True
    return latency(times).reach <= until.precision


def _share(times: Sequence[float], total: float, until: Until) -> float:
    """How much of the work is done: by the count; by the interval, which shrinks with its square; or by the limit."""
    least = min(len(times) / until.repeat, total / until.min_seconds if until.min_seconds else 1.0, 1.0)
    if until.precision is None or least < 1.0:
        return least if until.precision is None else least * until.min_seconds / until.limit
    width = latency(times).reach
    return min(1.0, max(total / until.limit, (until.precision / width) ** 2 if width else 1.0))


def latency(seconds: Sequence[float] | Floats) -> Latency:
    """Percentiles of measured times, in the order in which they were taken."""
    times = np.asarray(seconds, np.float64) * 1e3
    p50, p90, p99 = np.percentile(times, [50, 90, 99])
    return Latency(float(p50), float(p90), float(p99), len(times), float(times.max()), median_interval(times))


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
    return throughput(ids.size, *timed_language(step, ids, decode, Until(repeat, min_seconds=0.0), warmup, clock))


def timed_language(
    step: Step,
    ids: NDArray[np.int64],
    decode: int,
    until: Until,
    warmup: int = 1,
    clock: Callable[[], float] | None = None,
    report: Report | None = None,
) -> tuple[Floats, Floats]:
    """Seconds of each prefill [n] and of each decoded token [n, decode], over n ≥ until.repeat runs (`time_language`).

    The interval that `until` asks for is of the time per decoded token.
    """
    if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] < 1 or decode < 1:
        raise BadInput(f"A prompt {list(ids.shape)} and {decode} tokens to decode: nothing to time.")
    for _ in range(warmup):
        one_run(step, ids, decode, clock)
    first: list[float] = []
    rest: list[list[float]] = []
    total = 0.0
    while len(first) < until.repeat or not _enough([t for run in rest for t in run], total, until):
        found = one_run(step, ids, decode, clock)
        first.append(found[0])
        rest.append(found[1])
        total += found[0] + sum(found[1])
        if report is not None:
            report(max(len(first) / until.repeat if until.precision is None else 0.0, min(1.0, total / until.limit)))
    return np.array(first), np.array(rest)


def throughput(prompt: int, first: Floats, rest: Floats) -> Throughput:
    """Rates out of the seconds of each prefill [n] and of each decoded token [n, decode]."""
    prefill, rates = prompt / first, rest.shape[1] / rest.sum(1)
    return Throughput(
        prefill=float(np.median(prefill)),
        decode=float(np.median(rates)),
        prompt_tokens=prompt,
        decode_tokens=rest.shape[1],
        first_token_ms=float(np.median(first) * 1e3),
        prefill_range=(float(prefill.min()), float(prefill.max())),
        decode_range=(float(rates.min()), float(rates.max())),
        per_token_ms=latency(rest.ravel()),
        n=len(first),
    )


def one_run(
    step: Step, ids: NDArray[np.int64], decode: int, clock: Callable[[], float] | None = None
) -> tuple[float, list[float]]:
    """Seconds of one prefill, and of each decoded token. Raises BadInput for a session that keeps no state."""
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
