"""What `octavo plan` prints: the answer first, columns that fit the terminal, every source under --explain."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from octavo.api.plan import plan
from octavo.plan.reckon import unknown
from octavo.report.plan_text import plan_text, span

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plan"))
from planner_models import SMALL, device, llama, network


def test_the_answer_comes_first_and_the_curve_follows():
    lines = plan_text(plan(llama(SMALL), device=device())).splitlines()
    assert lines[0].startswith("Yes: w8 on llama.cpp (CPU) fits Test Phone: ")
    assert any(line.startswith("scheme") for line in lines)
    assert "The longest context that fits in 4 GB is 2,048." in lines
    assert "Over context" not in plan_text(plan(llama(SMALL), device=device(), context=512))


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_columns_go_rather_than_wrap_and_it_is_said(width):
    text = plan_text(plan(llama(SMALL), device=device(), context=512), width=width)
    lines = text.splitlines()
    head = next(line for line in lines if line.startswith("scheme"))
    if width < 120:
        assert "left out for width" in text
    for name in ("scheme", "runtime", "unit", "total"):
        assert name in head
    assert len(head) <= max(width, 100)
    assert "\033" not in text
    assert "\033" in plan_text(plan(network(), device=device()), colour=True)


def test_explain_names_the_reason_of_every_pair_that_is_out():
    record = plan(network(), device=device(), scheme=("w8", "w8g32"))
    text = " ".join(plan_text(record, explain=True).split())
    for row in record.candidates:
        if row["memory"] is None:
            assert row["reason"] in text
    assert "no sense (--explain says why)" in plan_text(record)


def test_several_devices_are_a_line_each():
    record = plan(llama(SMALL), device=[device(), device(name="other"), device(name="third"), device(name="fourth")])
    lines = plan_text(record).splitlines()
    assert lines[0] == "It fits 4 of 4 devices."
    assert [line.split()[0] for line in lines[3:]] == ["test-phone", "other", "third", "fourth"]


def test_what_is_unknown_is_a_question_mark():
    assert span(None) == "?"
    assert span({"value": None, "low": None, "high": None, "kind": "unknown"}) == "?"
    assert span({"value": 2.0, "low": 1.0, "high": 3.04}) == "1–3"
    assert span({"value": 2.0, "low": None, "high": None}) == "2"


def test_a_flag_on_energy_is_explained_below_the_table():
    alone = plan_text(plan(llama(SMALL), device=device(dram_energy=unknown("J/B")), context=512))
    assert "! the two estimates of energy" in alone
    nothing = device(dram_energy=unknown("J/B"), sustained_power=unknown("W"))
    assert " !" not in plan_text(plan(llama(SMALL), device=nothing, context=512))


def test_a_machine_that_nobody_measured_is_told_how_to():
    there, here = (device(kind=kind, bandwidth=unknown("B/s")) for kind in ("phone", "host"))
    assert "devices probe" in plan(llama(SMALL), device=here).answer
    assert "devices probe" not in plan(llama(SMALL), device=there).answer
