"""Amounts as people type them, exactly; what is none is refused with how to write it."""

from __future__ import annotations

from decimal import Decimal

import pytest

from octavo.core.amount import (
    BITS_PER_SECOND,
    BYTES,
    COUNT,
    DOLLARS,
    JOULES,
    MILLISECONDS,
    SHARE,
    WATT_HOURS,
    Measure,
    amount,
)
from octavo.errors import BadInput


@pytest.mark.parametrize(
    ("text", "measure", "expected"),
    [
        ("100M", COUNT, "100000000"),
        ("1.5B", COUNT, "1500000000"),
        ("1,000", COUNT, "1000"),
        (50, COUNT, "50"),
        ("2kB", BYTES, "2000"),
        ("1.5 MB", BYTES, "1500000"),
        ("2KiB", BYTES, "2048"),
        ("10Mbit", BITS_PER_SECOND, "10000000"),
        ("10 Mbps", BITS_PER_SECOND, "10000000"),
        ("1.25MB/s", BITS_PER_SECOND, "10000000"),
        ("40", MILLISECONDS, "40"),
        ("0.04s", MILLISECONDS, "40"),
        ("$0.0002", DOLLARS, "0.0002"),
        ("36.5M", DOLLARS, "36500000"),
        (5e-6, JOULES, "0.000005"),
        ("15Wh", WATT_HOURS, "15"),
        ("5%", SHARE, "0.05"),
        ("0", COUNT, "0"),
    ],
)
def test_amounts_are_exact(text: object, measure: Measure, expected: str) -> None:
    assert amount(text, measure, "--x") == Decimal(expected)


@pytest.mark.parametrize(
    ("text", "measure", "said"),
    [
        ("-3", COUNT, "--x: -3 is negative"),
        ("ten", COUNT, "'ten' is no amount"),
        ("nan", COUNT, "no amount"),
        ("inf", COUNT, "no amount"),
        ("", COUNT, "no amount"),
        (True, COUNT, "no amount"),
        ("2 furlongs", BYTES, "unknown unit 'furlongs'"),
        ("10", BITS_PER_SECOND, "has no unit.*10Mbit"),
        ("4000mAh", WATT_HOURS, "unknown unit 'mAh'.*15Wh"),
        ("1e40", COUNT, "beyond reason"),
    ],
)
def test_what_is_no_amount_is_refused_with_how_to_write_it(text: object, measure: Measure, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        amount(text, measure, "--x")


def test_zero_is_refused_where_it_makes_no_sense() -> None:
    with pytest.raises(BadInput, match="--users: 0 must be above zero"):
        amount(0, COUNT, "--users", positive=True)
