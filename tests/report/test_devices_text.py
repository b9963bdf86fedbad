"""How figures of a profile are said."""

from __future__ import annotations

import pytest

from octavo.report.devices_text import scaled


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (76.8e9, "B/s", "76.8 GB/s"),
        (8 * 2**30, "B", "8.59 GB"),
        (45e12, "op/s", "45 Top/s"),
        (9.24e-14, "J/op", "0.0924 pJ/op"),
        (40e-12, "J/B", "40 pJ/B"),
        (0.62, "1", "62 %"),
        (15.4, "Wh", "15.4 Wh"),
        (180.0, "s", "180 s"),
        (0.0021, "ms", "0.0021 ms"),
        (999.6e6, "B", "1 GB"),
        (0.9, "W", "900 mW"),
        (0.0, "W", "0 W"),
        (None, "W", "unknown"),
    ],
)
def test_a_figure_has_three_digits_and_a_prefix_that_suits(value: float | None, unit: str, said: str) -> None:
    assert scaled(value, unit) == said
