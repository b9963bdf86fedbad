"""The verdict over a sustained run: a slow-down is seen, noise is not one, and causes are only those that were seen."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from octavo.bench import machine
from octavo.bench.machine import Moment, clock, others, temperature
from octavo.bench.throttling import LEAST, ratio_interval, verdict

N = 60


def windows(slope: float = 0.0, noise: float = 0.02, seed: int = 0, **seen: Any) -> list[dict[str, Any]]:
    """N windows whose median rises by `slope` from first to last; `seen`: {key: (first, last)}."""
    rng, rise = np.random.default_rng(seed), np.linspace(1, 1 + slope, N)
    p50 = 10 * rise * np.exp(noise * rng.standard_normal(N))
    ends = {key: np.linspace(*pair, N) for key, pair in seen.items()}
    return [{"p50": float(p50[i])} | {key: float(values[i]) for key, values in ends.items()} for i in range(N)]


def test_a_slow_down_of_a_fifth_is_seen_every_time() -> None:
    assert Counter(verdict(windows(0.2, seed=s), s).word for s in range(50)) == {"slower": 50}


def test_noise_is_no_slow_down() -> None:
    words = Counter(verdict(windows(0.0, 0.05, seed=s), s).word for s in range(100))
    assert words["slower"] <= 2
    assert words["steady"] >= 60
    assert verdict(windows(-0.2)).word == "steady"


def test_wild_times_are_undecided() -> None:
    assert verdict(windows(0.1, 0.4)).word == "undecided"


@pytest.mark.parametrize(
    ("seen", "word", "says"),
    [
        ({"megahertz": (3000, 2000), "celsius": (45, 92)}, "throttled", ("MHz", "°C")),
        ({"megahertz": (3000, 3000)}, "slower", ("no temperature",)),
        ({"megahertz": (3000, 3000), "celsius": (45, 46)}, "slower", ("did not fall",)),
        ({"others": (0.05, 0.6)}, "disturbed", ("others took", "quiet")),
        ({"others": (0.6, 0.6)}, "slower", ("no temperature and no clock",)),
    ],
)
def test_the_cause_is_what_was_seen(seen: dict[str, Any], word: str, says: tuple[str, ...]) -> None:
    found = verdict(windows(0.3, **seen))
    assert found.word == word
    for text in says:
        assert text in found.cause


def test_a_few_windows_are_too_short() -> None:
    found = verdict(windows()[: LEAST - 1])
    assert (found.word, found.ratio) == ("too short", None)
    assert str(LEAST) in found.cause


def test_the_ratio_lies_within_its_interval() -> None:
    rng = np.random.default_rng(5)
    first, last = rng.normal(1, 0.1, 15), rng.normal(1.5, 0.1, 15)
    ratio, low, high = ratio_interval(first, last)
    assert ratio == pytest.approx(np.median(last) / np.median(first))
    assert low <= ratio <= high
    assert 1.2 < low < high < 1.9


def test_sensors_are_read_and_absent_ones_are_none(tmp_path: Any) -> None:
    assert temperature(tmp_path) is None
    assert clock(tmp_path) is None
    for number, value in enumerate(("45000", "91000", "-274000", "nonsense")):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "temp").write_text(value)
    for number, value in enumerate(("2000000", "3000000")):
        core = tmp_path / f"cpu{number}/cpufreq"
        core.mkdir(parents=True)
        (core / "scaling_cur_freq").write_text(value)
    assert temperature(tmp_path) == 91
    assert clock(tmp_path) == 2500


def test_what_others_take_is_the_machine_less_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    before, after = Moment(None, None, 1.0, 10.0, 0.0), Moment(None, None, 2.0, 13.0, 1.0)
    assert others(before, after) == pytest.approx(0.5)
    assert others(Moment(None, None, 1.0, None, 0.0), after) is None
