"""Intervals against tables, brute force, and their promise: they cover the truth as often as they say."""

import math

import numpy as np
import pytest

from octavo.core.estimate import Proportion, Ratio, paired_difference, student_t, wilson


@pytest.mark.parametrize(
    ("freedom", "expected"),  # two-sided 95 %, from the printed tables (five digits)
    [(1, 12.706), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (10, 2.2281), (30, 2.0423),
     (60, 2.0003), (120, 1.9799)],
)  # fmt: skip
def test_student_t_agrees_with_the_tables(freedom, expected):
    assert student_t(0.975, freedom) == pytest.approx(expected, rel=3e-5)


def test_student_t_has_no_step_where_the_method_changes():
    for p in (0.6, 0.9, 0.995, 0.9995):
        around = [student_t(p, k) for k in (59, 60, 61, 62)]
        assert np.diff(around, 3) == pytest.approx([0], abs=1e-5)
        assert all(np.diff(around) < 0)


def test_independent_samples_give_the_textbook_interval():
    values = np.random.default_rng(3).standard_normal(12)
    ratio = Ratio()
    for i, value in enumerate(values):
        ratio.add(i, value)
    found = ratio.estimate()
    assert found.value == pytest.approx(values.mean())
    assert found.margin == pytest.approx(2.20099 * values.std(ddof=1) / math.sqrt(12), rel=1e-5)


def coverage(interval, truth, trials=400):
    hits = 0
    for seed in range(trials):
        found = interval(np.random.default_rng(seed))
        hits += found.low <= truth <= found.high
    return hits / trials


def test_clustered_intervals_cover_where_naive_ones_do_not():
    def draw(random):
        shared = random.standard_normal(12)
        return [shift + random.standard_normal(random.integers(20, 60)) for shift in shared]

    def clustered(random, by_cluster=True):
        ratio = Ratio()
        for c, values in enumerate(draw(random)):
            for i, value in enumerate(values):
                ratio.add(c if by_cluster else (c, i), value)
        return ratio.estimate()

    assert coverage(clustered, 0.0) > 0.91
    assert coverage(lambda random: clustered(random, False), 0.0) < 0.5


def test_decibels_cover_a_known_ratio():
    def interval(random):
        ratio = Ratio()
        for c in range(40):
            signal = random.standard_normal(50)
            ratio.add(c, (signal**2).sum(), ((0.1 * random.standard_normal(50)) ** 2).sum())
        return ratio.decibels()

    assert coverage(interval, 20.0) > 0.92


def test_wilson_by_its_defining_equation():
    found = wilson(9, 10)
    for p in (found.low, found.high):  # the ends solve (p̂ − p)² = z² p (1 − p) / n
        assert (0.9 - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / 10, rel=1e-5)
    assert wilson(0, 10).low == 0
    assert wilson(0, 10).high == pytest.approx(0.27753, abs=1e-4)
    assert math.isnan(wilson(0, 0).value)
    assert wilson(0, 0).low is None


def test_a_proportion_of_clusters_is_wider_than_of_independent_samples():
    clustered, independent = Proportion(), Proportion()
    for c in range(10):
        for i in range(100):
            right = int(c < 7)
            clustered.add(c, right)
            independent.add((c, i), right)
    wide, narrow = clustered.estimate(), independent.estimate()
    assert wide.value == narrow.value == 0.7
    assert wide.margin > 6 * narrow.margin
    assert wide.low > 0
    assert wide.high < 1
    assert narrow.low == pytest.approx(wilson(700, 1000).low, abs=2e-4)


def test_paired_difference_is_narrower_than_the_two_apart_and_never_a_point():
    found = paired_difference(12, 5, 1000)  # 995 agree or nearly so: 90 % against 89.3 %
    assert found.value == pytest.approx(0.007)
    apart = math.hypot(wilson(900, 1000).margin, wilson(893, 1000).margin)
    assert found.margin < 0.4 * apart
    plain = 1.959964 * math.sqrt((17 - 49 / 1000) / 1000**2)
    assert found.margin == pytest.approx(plain, rel=0.06)
    none = paired_difference(0, 0, 50)
    assert none.value == 0
    assert none.low < 0 < none.high


def test_paired_difference_covers():
    def interval(random):
        kind = random.choice(4, 60, p=[0.8, 0.07, 0.03, 0.1])
        return paired_difference(int((kind == 1).sum()), int((kind == 2).sum()), 60)

    assert coverage(interval, 0.04, 1000) > 0.93


def test_json_has_no_infinity():
    ratio = Ratio()
    ratio.add(0, 1.0, 0.0, n=1)
    assert ratio.decibels().as_dict() == {
        "value": None, "low": None, "high": None, "n": 1, "confidence": 0.95, "clusters": 1,
    }  # fmt: skip
