"""The rule by which the first diverging operator is found, on values made for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from octavo.verify.align import align
from octavo.verify.alike import compare, explain
from octavo.verify.bisect import Circumstances, Value, bisect

RNG = np.random.default_rng(0)


def noisy(values, decibels, seed=1):
    noise = np.random.default_rng(seed).standard_normal(values.shape)
    noise *= np.linalg.norm(values) / np.linalg.norm(noise) * 10 ** (-decibels / 20)
    return (values + noise).astype(np.float32)


def chain(count=5, shape=(1, 4, 6, 5)):
    """x → n1 → n2 → …: unrelated values, each a layer of its own."""
    rng = np.random.default_rng(7)
    values = [Value("x", rng.standard_normal(shape).astype(np.float32), "input")]
    for index in range(1, count):
        array = rng.standard_normal(shape).astype(np.float32) * (1 + index) + index
        values.append(
            Value(f"n{index}", array, "conv2d", (values[-1].name,), f"n{index}.weight", (f"n{index}.weight",))
        )
    return values


def at_decibels(values, decibels):
    return [
        replace(item, array=noisy(item.array, db, seed))
        for seed, (item, db) in enumerate(zip(values, decibels, strict=True))
    ]


def test_the_first_value_below_the_bound_whose_inputs_reach_it():
    found = bisect(chain(), at_decibels(chain(), [40, 35, 32, 12, 11]))
    assert (found.at.name, found.cause) == ("n3", "unknown")
    assert found.at.sqnr_db == pytest.approx(12, abs=0.1)
    assert "--keep n3.weight" in found.suggestion


def test_a_drop_above_the_bound_is_found_where_nothing_is_below():
    found = bisect(chain(), at_decibels(chain(), [60, 55, 40, 38, 37]))
    assert found.at.name == "n2"


def test_noise_that_adds_up_is_said_to():
    found = bisect(chain(), at_decibels(chain(), [45, 42, 36, 33, 30]))
    assert "adds up" in found.reason
    assert found.at.name == "n2"


def test_what_the_simulation_has_too_is_quantisation_and_no_defect():
    values, decibels = chain(), [40, 35, 12, 11, 11]
    made = at_decibels(values, decibels)
    found = bisect(values, made, made, known=Circumstances(static=True, scheme="w8a8"))
    assert (found.at.name, found.cause) == ("n2", "quantisation")
    assert "w8a16" in found.suggestion


def test_what_the_simulation_has_not_is_the_runtimes_and_to_be_reported():
    values = chain()
    made, simulated = at_decibels(values, [40, 35, 33, 24, 23]), at_decibels(values, [40, 35, 35, 35, 34])
    found = bisect(values, made, simulated, known=Circumstances(static=True, runtime="litert"))
    assert (found.at.name, found.cause) == ("n3", "runtime")
    assert "report this defect: litert" in found.suggestion


def test_a_wrong_tensor_of_the_file_is_the_cause():
    values = chain()
    made, simulated = at_decibels(values, [40, 38, 5, 4, 4]), at_decibels(values, [40] * 5)
    known = Circumstances(static=True, wrong={"n2.weight": "3 of 9 codes differ"})
    found = bisect(values, made, simulated, known=known)
    assert (found.at.name, found.cause) == ("n2", "file")
    assert "3 of 9 codes differ" in found.reason


def test_a_layout_that_the_format_has_is_no_difference_and_any_other_is_named():
    values = chain()
    last = [replace(item, array=item.array.transpose(0, 2, 3, 1)) for item in at_decibels(values, [40] * 5)]
    assert bisect(values, last, known=Circumstances(layouts=("nchw", "nhwc"))).cause != "layout"
    found = bisect(values, last)
    assert (found.at.name, found.cause) == ("x", "layout")
    swapped = [*last[:3], *(replace(i, array=i.array.transpose(0, 2, 1, 3)) for i in last[3:])]
    found = bisect(values, swapped, known=Circumstances(layouts=("nchw", "nhwc")))
    assert (found.at.name, found.cause) == ("n3", "layout")


def test_a_flattened_value_in_channels_last_order_is_a_transposed_layout():
    values = chain(2)
    flat = Value("flat", values[1].array.reshape(1, -1), "flatten", ("n1",))
    made = [*values, replace(flat, array=values[1].array.transpose(0, 2, 3, 1).reshape(1, -1))]
    found = bisect([*values, flat], made)
    assert (found.at.name, found.cause) == ("flat", "layout")
    assert "NHWC" in found.reason


def test_a_known_mistake_is_recognised_by_its_result():
    values = chain()
    wrong = RNG.standard_normal(values[2].array.shape).astype(np.float32)
    made = [*values[:2], replace(values[2], array=noisy(wrong, 40)), *at_decibels(values[3:], [0, 0])]
    ways = {"n2": [("its weight's height and width swapped", wrong)]}
    found = bisect(values, made, values, known=Circumstances(static=True), variants=lambda name: ways.get(name, []))
    assert (found.at.name, found.cause) == ("n2", "layout")
    assert "height and width swapped" in found.reason


def test_branches_take_the_worse_of_their_inputs():
    values = chain(3)
    both = Value("both", values[1].array + values[2].array, "add", ("x", "n2"))
    found = bisect([*values, both], at_decibels([*values, both], [50, 40, 15, 14]))
    assert found.at.name == "n2"
    assert found.operators[-1].before_db == pytest.approx(15, abs=0.1)


def test_values_without_names_are_found_by_their_numbers():
    values = chain()
    made = [replace(item, name=f"t{place}") for place, item in enumerate(at_decibels(values, [40] * 5))]
    assert align(values, made) == {item.name: place for place, item in enumerate(values)}
    assert bisect(values, []) is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda v: v + 3, "shifted by 3"),
        (lambda v: v * 7, "7 times too large"),
        (lambda v: v * np.array([1, 9, 0.1, 30]).reshape(1, 4, 1, 1), "each channel"),
        (lambda v: np.clip(v, -0.5, 0.5), "cuts the values off"),
        (lambda v: v * 0, "zero"),
        (lambda v: v * np.nan, "NaN"),
        (lambda v: v, ""),
    ],
)
def test_explanations(damage, words):
    values = RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)
    found = explain(values, damage(values))
    assert words in found
    assert bool(found) == bool(words)


def test_nan_is_worse_than_any_noise():
    values = RNG.standard_normal((1, 2, 3, 4)).astype(np.float32)
    assert compare(values, values * np.nan, ("nchw",), 20, None).sqnr_db == -np.inf
