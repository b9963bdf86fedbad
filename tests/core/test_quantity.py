"""A number says how it is known; what nobody knows has no value."""

from __future__ import annotations

import json

import pytest

from octavo.core.quantity import Kind, Quantity


def test_a_measured_quantity_keeps_interval_count_and_source():
    latency = Quantity(12.5, "ms", Kind.MEASURED, low=12.0, high=14.0, n=40, source="this host", date="2026-11-22")
    assert json.loads(json.dumps(latency.as_dict())) == {
        "value": 12.5, "unit": "ms", "kind": "measured", "low": 12.0, "high": 14.0, "n": 40,
        "source": "this host", "date": "2026-11-22",
    }  # fmt: skip


def test_zero_is_a_value_and_is_written():
    assert Quantity(0, "J", Kind.EXACT, low=0, high=0).as_dict() == {
        "value": 0, "unit": "J", "kind": "exact", "low": 0, "high": 0,
    }  # fmt: skip


def test_unknown_means_no_value():
    assert Quantity(None, "W", Kind.UNKNOWN).as_dict() == {"unit": "W", "kind": "unknown"}
    with pytest.raises(ValueError, match="unknown means no value"):
        Quantity(3.0, "W", Kind.UNKNOWN)
    with pytest.raises(ValueError, match="unknown means no value"):
        Quantity(None, "W", Kind.DATASHEET)


@pytest.mark.parametrize(("low", "high"), [(5.1, 6.0), (None, 4.9), (5.1, None), (4.0, 4.5)])
def test_an_interval_that_does_not_hold_its_value_is_refused(low, high):
    with pytest.raises(ValueError, match="outside its own interval"):
        Quantity(5.0, "GB", Kind.ESTIMATED, low=low, high=high)
