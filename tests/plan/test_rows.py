"""Rows to fit: what cannot be used is counted and named, never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.errors import BadInput
from octavo.plan import profiles
from octavo.plan.rows import read_rows

HEAD = "model,device,runtime,precision,latency_ms,gmacs,layers\n"


def csv(tmp_path: Path, *lines: str, head: str = HEAD, name: str = "rows.csv") -> Path:
    path = tmp_path / name
    path.write_text(head + "".join(f"{line}\n" for line in lines))
    return path


def test_a_row_carries_facts_but_no_outcome_of_the_conversion(tmp_path: Path) -> None:
    found = read_rows(csv(tmp_path, "a,phone,tflite,w8a8,1.5,4.1,70"))
    (row,) = found.rows
    assert (row.runtime, row.latency_ms) == ("tflite", 1.5)
    assert row.facts == {"inference": 1.0, "dense_gmacs": 4.1}
    assert (found.outcomes, found.ignored) == (("layers",), ())


def test_facts_go_by_other_names_and_a_term_counts_before_them(tmp_path: Path) -> None:
    head = "model,device,runtime,precision,latency_ms,macs,params,operators,narrow_gmacs,mparameters,colour\n"
    found = read_rows(csv(tmp_path, "a,phone,tflite,w8a8,1.5,4.1e9,25e6,180,0.5,24,3", head=head))
    facts = {"dense_gmacs": 4.1, "mparameters": 24, "hundred_operators": 1.8, "narrow_gmacs": 0.5, "inference": 1}
    assert found.rows[0].facts == pytest.approx(facts)
    assert found.ignored == ("colour",)


def test_holes_are_counted_and_named_with_their_lines(tmp_path: Path) -> None:
    lines = [
        "a,phone,tflite,w8a8,1.5,4.1,70",
        "a,phone,tflite,,1.5,4.1,70",
        "a,phone,tflite,w8a8,,4.1,70",
        "a,phone,tflite,w8a8,fast,4.1,70",
        "a,phone,tflite,w8a8,0,4.1,70",
        "a,phone,tflite,w8a8,inf,4.1,70",
        "b,phone,tflite,w8a8,1.5,,70",
        "a,phone",
        "a,phone,tflite,,2.5,4.1,70",
    ]
    found = read_rows(csv(tmp_path, *lines))
    assert (found.read, len(found.rows)) == (9, 1)
    assert {item.reason: (item.rows, item.lines) for item in found.left_out} == {
        "no precision": (2, (3, 10)),
        "no latency_ms": (1, (4,)),
        "latency_ms is no number": (2, (5, 7)),
        "latency_ms is not above zero": (1, (6,)),
        "no facts of the model": (1, (8,)),
        "no runtime, precision, latency_ms": (1, (9,)),
    }


def test_facts_may_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    facts = csv(tmp_path, "a,4.1,25.6", head="model,gmacs,params_m\n", name="facts.csv")
    found = read_rows(csv(tmp_path, "a,phone,tflite,w8a8,1.5,,70", "b,phone,tflite,w8a8,1.5,,70"), facts)
    assert found.rows[0].facts == {"inference": 1.0, "dense_gmacs": 4.1, "mparameters": 25.6}
    assert (found.left_out[0].reason, found.left_out[0].names) == ("no facts of the model", ("b",))


def test_a_fact_that_only_others_have_is_a_hole_not_a_zero(tmp_path: Path) -> None:
    head = "model,device,runtime,precision,latency_ms,gmacs,params_m\n"
    found = read_rows(csv(tmp_path, "a,phone,tflite,w8a8,1.5,4,25", "b,phone,tflite,w8a8,1.5,4,", head=head))
    assert [row.model for row in found.rows] == ["a"]
    assert (found.left_out[0].reason, found.left_out[0].names) == ("no mparameters of the model", ("b",))


def test_rows_without_any_fact_are_left_out(tmp_path: Path) -> None:
    found = read_rows(csv(tmp_path, "a,phone,tflite,w8a8,1.5", head="model,device,runtime,precision,latency_ms\n"))
    assert found.left_out[0].reason == "no facts of the model"


def test_a_device_goes_by_its_profile(tmp_path: Path) -> None:
    lines = ["a,Samsung Galaxy S24,tflite,w8a8,1.5,4,1", "a,Nokia 3310,tflite,w8a8,1.5,4,1"]
    found = read_rows(csv(tmp_path, *lines), profile=profiles.canonical)
    assert [row.device for row in found.rows] == ["galaxy-s24"]
    assert (found.left_out[0].reason, found.left_out[0].names) == ("no profile of the device", ("Nokia 3310",))


def test_a_missing_column_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no column 'latency_ms'\. Nearest: latency"):
        read_rows(csv(tmp_path, "a,b,c,d,1", head="model,device,runtime,precision,latency\n"))
    with pytest.raises(BadInput, match="no such file"):
        read_rows(tmp_path / "absent.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(BadInput, match="no column 'model'"):
        read_rows(tmp_path / "empty.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(BadInput, match="not a CSV"):
        read_rows(tmp_path / "binary.csv")


def test_facts_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    facts = csv(tmp_path, "a,4.1", "a,4.2", head="model,gmacs\n", name="facts.csv")
    with pytest.raises(BadInput, match=r"line 3: other facts of 'a'"):
        read_rows(csv(tmp_path, "a,phone,tflite,w8a8,1.5,4.1,70"), facts)
