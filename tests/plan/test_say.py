"""Numbers as people say them."""

from __future__ import annotations

import pytest

from octavo.core.quantity import Kind, Quantity
from octavo.plan.say import milliseconds


@pytest.mark.parametrize(("low", "value", "high", "said"), [
    (0.19, 0.9, 17.0, "0.19–17 ms"),
    (0.018, 0.05, 0.53, "18–530 µs"),
    (296.0, 900.0, 3555.0, "0.3–3.6 s"),
    (282.0, 400.0, 507.0, "282–507 ms"),
    (40_000.0, 70_000.0, 120_000.0, "0.67–2 min"),
])  # fmt: skip
def test_a_duration_is_in_the_unit_of_its_upper_end(low, value, high, said):
    assert milliseconds(Quantity(value, "ms", Kind.ESTIMATED, low, high)) == said
