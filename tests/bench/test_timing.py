"""Clocks count what they should: percentiles, warm-up, prefill apart from decode."""

import time

import numpy as np
import pytest

from octavo.bench.timing import Until, latency, time_language, time_session, timed_calls
from octavo.errors import BadInput


def test_percentiles_are_in_milliseconds_with_their_count():
    found = latency([i / 1000 for i in range(1, 102)])
    assert (found.p50, found.p90, found.p99, found.n) == pytest.approx((51, 91, 100, 101))
    low, high = found.interval
    assert found.as_dict() == {
        "p50": found.p50, "p90": found.p90, "p99": found.p99, "n": 101, "max": 101, "interval": (low, high),
    }  # fmt: skip
    assert 1 <= low < 51 < high <= 101
    assert found.reach == pytest.approx(max(51 - low, high - 51) / 51)


def test_it_goes_on_until_the_median_is_known_well_enough_and_no_longer_than_the_limit():
    rng, shares = np.random.default_rng(0), []

    def timed(width, **until):
        clock = iter(0.01 * np.exp(width * rng.standard_normal(100_000)))
        return timed_calls(lambda: None, Until(**until), 0, shares.append, lambda: float(next(clock)))

    quiet = timed(0.01, repeat=10, precision=0.02, limit=20.0)
    noisy = timed(0.30, repeat=10, precision=0.02, limit=100.0)
    assert latency(quiet).reach <= 0.02
    assert latency(noisy).reach <= 0.02
    assert len(quiet) < 0.2 * len(noisy)
    short = timed(2.0, repeat=10, precision=0.02, limit=1.0)
    assert 1.0 <= short.sum() < 20.0
    assert latency(short).reach > 0.02
    assert len(timed(2.0, repeat=7, min_seconds=0.0)) == 7
    assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize("wrong", [{"repeat": 0}, {"precision": 0.0}, {"precision": 2.0}, {"limit": 0.0}])
def test_senseless_limits_are_refused(wrong):
    with pytest.raises(BadInput):
        Until(**wrong)


def test_warm_up_is_not_counted_and_fast_steps_are_repeated_until_the_clock_can_tell():
    calls = []

    def slow_at_first():
        calls.append(1)
        time.sleep(0.05 if len(calls) <= 2 else 0.001)

    found = time_session(slow_at_first, repeat=10, warmup=2, min_seconds=0.03)
    assert found.n >= 10
    assert len(calls) == found.n + 2
    assert 1 <= found.p50 < 40
    assert time_session(lambda: None, repeat=3, warmup=0, min_seconds=0.01).n > 100
    with pytest.raises(BadInput, match="at least 1"):
        time_session(lambda: None, repeat=0)


def test_prefill_and_decode_are_timed_apart_and_the_state_goes_on():
    table = np.random.default_rng(0).standard_normal((30, 30)).astype(np.float32)
    seen = []

    def step(inputs, state):
        """A bigram model that takes 10 ms for a prompt and 2 ms for a token; its state is the text so far."""
        ids = inputs["ids"]
        assert (state is None) == (ids.shape[1] > 1)
        time.sleep(0.01 if state is None else 0.002)
        text = [*(state or []), *ids[0].tolist()]
        seen.append(text)
        return {"logits": table[ids]}, text

    found = time_language(step, np.arange(20)[None], decode=8, repeat=3)
    assert 20 / 0.05 < found.prefill <= 20 / 0.01
    assert 1 / 0.02 < found.decode <= 1 / 0.002
    assert found.first_token_ms >= 10
    assert found.per_token_ms.n == 24
    greedy = list(range(20))
    for _ in range(8):
        greedy.append(int(table[greedy[-1]].argmax()))
    assert seen[8] == seen[-1] == greedy, "it decodes its own likeliest tokens"


def test_without_a_cache_there_is_no_decode_rate():
    with pytest.raises(BadInput, match="no state"):
        time_language(lambda i, s: ({"logits": np.zeros((1, 3, 5))}, None), np.zeros((1, 3), np.int64))
    with pytest.raises(BadInput, match="nothing to time"):
        time_language(lambda i, s: ({}, s), np.zeros((1, 0), np.int64))
