"""Profiles: what ships is complete and sourced; what a user writes is checked key by key."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.core.quantity import Kind, Quantity
from octavo.errors import BadInput
from octavo.plan import profiles
from octavo.plan.device import Coefficients, Device

ISSUE = [
    "galaxy-s24", "galaxy-s25", "snapdragon-8-elite", "snapdragon-8-elite-gen-5", "snapdragon-7-gen-4",
    "snapdragon-x-elite", "snapdragon-x2-elite", "qcs8275", "qcs8450", "qcs8550", "iq-9075", "q-6690", "rb3-gen-2",
    "sa7255p", "sa8295p", "sa8775p", "pixel-8", "pixel-9", "iphone-15", "iphone-15-pro", "iphone-16", "raspberry-pi-4",
    "raspberry-pi-5", "jetson-orin-nano", "ethos-u55-128", "host",
]  # fmt: skip

MINE = """
name = "mine"
title = "A board of mine"
year = 2026
kind = "board"
soc = "none"
ram = { value = 2, unit = "GiB", kind = "datasheet", source = "the box", date = "2026-01-01" }
slice_bytes = { value = 1.5, low = 1, high = 1.8, unit = "GB", kind = "estimated", source = "us", date = "2026-01-01" }
bandwidth = { value = 12.8, unit = "GB/s", kind = "datasheet", source = "the box", date = "2026-01-01" }
dram_energy = { value = 5, unit = "pJ/bit", kind = "estimated", source = "a guess", date = "2026-01-01" }
battery = "unknown"
sustained_power = { value = 900, unit = "mW", kind = "measured", n = 3, source = "a meter", date = "2026-01-01" }
peak_power = "unknown"
thermal_tau = { value = 2, unit = "min", kind = "estimated", source = "a guess", date = "2026-01-01" }

[units.cpu]
name = "four cores"
types = ["fp32", "int8"]
runtimes = { onnxruntime = "CPU execution provider" }

[units.cpu.rates]
fp32 = { value = 50, unit = "GFLOPS", kind = "measured", n = 5, source = "a loop", date = "2026-01-01" }

[decode_efficiency]
"llamacpp.q4_0" = { value = 60, unit = "%", kind = "measured", source = "a run", date = "2026-01-01" }

[prefill_efficiency]
llamacpp = { value = 20, unit = "GOPS", kind = "measured", source = "a run", date = "2026-01-01" }
"""

ONE = Coefficients(
    runtime="litert", unit="npu", precision="w8a8", terms={"macs": 1.5e-9, "constant": 0.2}, low=0.8, high=1.3,
    median_error=0.12, p90_error=0.5, rows=27, models=27, ranges={"macs": (1e6, 1e10)},
    source="rows", date="2026-01-01",
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No profile of whoever runs the tests."""
    monkeypatch.setenv("OCTAVO_DEVICES", str(tmp_path / "user"))
    return tmp_path / "user"


def quantities(device: Device) -> Iterator[tuple[str, Quantity]]:
    """Every quantity anywhere in a profile, by where it lies."""
    for part in (device, *device.units):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if isinstance(value, Quantity):
                yield f"{device.name}.{field.name}", value
            elif isinstance(value, dict):
                for key, item in value.items():
                    if isinstance(item, Quantity):
                        yield f"{device.name}.{field.name}.{key}", item


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, "utf-8")
    return path


def refused(tmp_path: Path, old: str, new: str) -> str:
    """The message with which MINE is refused once `old` is replaced in it."""
    assert old in MINE
    with pytest.raises(BadInput) as caught:
        profiles.load(written(tmp_path, MINE.replace(old, new)))
    message = str(caught.value)
    assert str(tmp_path / "mine.toml") in message
    return message


def test_every_device_of_the_issue_ships() -> None:
    assert set(ISSUE) <= set(profiles.names())


@pytest.mark.parametrize("name", ISSUE)
def test_a_shipped_profile_is_complete_and_every_figure_has_a_source(name: str) -> None:
    device = profiles.load(name)
    assert device.name == name
    assert device.units
    assert device.cliff
    for where, quantity in quantities(device):
        if quantity.kind is not Kind.UNKNOWN:
            assert quantity.source, where
            assert quantity.date, where
        if quantity.kind is Kind.ESTIMATED:  # a guess without an interval would pass for knowledge
            assert quantity.low is not None, where
            assert quantity.high is not None, where
    if device.ram.value is not None and device.slice_bytes.value is not None:
        assert device.slice_bytes.value < device.ram.value


@pytest.mark.parametrize("name", [name for name in ISSUE if name != "host"])
def test_a_shipped_unit_is_reached_by_something(name: str) -> None:
    for unit in profiles.load(name).units:
        assert unit.runtimes, unit
        assert set(unit.energy) >= set(unit.types)


def test_every_device_of_the_measurements_has_a_profile(shared: Path) -> None:
    found = set()
    for name in ("latency.csv", "llm.csv"):
        with open(shared / "data/phones" / name, newline="") as file:
            found |= {row["device"] for row in csv.DictReader(file)}
    assert {profiles.load(name).name for name in found} <= set(ISSUE)
    assert len(found) == len({profiles.load(name).name for name in found})


def test_an_alias_and_its_case_find_the_profile() -> None:
    assert profiles.load("samsung galaxy s24") is profiles.load("galaxy-s24")
    assert profiles.canonical("QCS8550 (Proxy)") == "qcs8550"
    assert profiles.canonical("Nokia 3310") is None


def test_figures_come_in_base_units(tmp_path: Path) -> None:
    device = profiles.load(written(tmp_path, MINE))
    assert device.ram == Quantity(2.0 * 2**30, "B", Kind.DATASHEET, source="the box", date="2026-01-01")
    assert (device.slice_bytes.value, device.slice_bytes.low, device.slice_bytes.high) == (1.5e9, 1e9, 1.8e9)
    assert device.bandwidth.value == 12.8e9
    assert device.dram_energy.value == pytest.approx(40e-12)
    assert device.sustained_power.value == pytest.approx(0.9)
    assert device.sustained_power.n == 3
    assert device.thermal_tau.value == 120
    assert device.units[0].rates["fp32"].value == 50e9
    assert device.battery.kind is Kind.UNKNOWN
    assert device.battery.unit == "Wh"
    assert device.decode_efficiency["llamacpp.q4_0"].value == pytest.approx(0.6)
    assert (device.prefill_efficiency["llamacpp"].value, device.prefill_efficiency["llamacpp"].unit) == (20e9, "op/s")


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    assert "'bandwith'. Nearest: bandwidth" in refused(tmp_path, "bandwidth =", "bandwith =")
    assert "'vale'. Nearest: value" in refused(tmp_path, "{ value = 12.8", "{ vale = 12.8")
    assert "'cup'. Nearest: cpu" in refused(tmp_path, "[units.cpu]\nname", "[units.cup]\nname")
    assert "'fp31'" in refused(tmp_path, "fp32 = { value = 50", "fp31 = { value = 50")
    assert "'bord'. Nearest: board" in refused(tmp_path, 'kind = "board"', 'kind = "bord"')


@pytest.mark.parametrize(
    ("old", "new", "key", "found", "wanted"),
    [
        ('12.8, unit = "GB/s"', '12.8, unit = "GB"', "bandwidth", "GB", "B/s"),
        ('2, unit = "GiB"', '2, unit = "GB/s"', "ram", "GB/s", "B"),
        ('900, unit = "mW"', '900, unit = "mWh"', "sustained_power", "mWh", "W"),
        ('5, unit = "pJ/bit"', '5, unit = "pJ/op"', "dram_energy", "pJ/op", "J/B"),
        ('50, unit = "GFLOPS"', '50, unit = "GB/s"', "units.cpu.rates.fp32", "GB/s", "op/s"),
        ('60, unit = "%"', '60, unit = "GB/s"', "decode_efficiency.llamacpp.q4_0", "GB/s", "1"),
    ],
)
def test_units_never_mix(tmp_path: Path, old: str, new: str, key: str, found: str, wanted: str) -> None:
    message = refused(tmp_path, old, new)
    assert f"{key}: unit '{found}'" in message
    assert f"in {wanted} is wanted" in message


def test_a_unit_that_nobody_knows_is_refused_with_those_that_would_do(tmp_path: Path) -> None:
    message = refused(tmp_path, '12.8, unit = "GB/s"', '12.8, unit = "Gbit"')
    assert "unknown unit 'Gbit', B/s is wanted" in message
    assert "GiB/s" in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("value = 12.8, ", "", "no value"),
        ('peak_power = "unknown"', "", 'no peak_power. Write its figure in W, or peak_power = "unknown"'),
        ('source = "a meter", ', "", "without a source"),
        ("value = 12.8", "value = 0", "not above zero"),
        ("value = 12.8", "value = -1", "negative"),
        ("value = 12.8", "value = inf", "no finite number"),
        ('value = 12.8, unit = "GB/s", kind = "datasheet"', 'value = 12.8, unit = "GB/s", kind = "unknown"', "a value"),
        ("low = 1, high", "low = 1.6, high", "outside its own interval"),
        ("value = 1.5, low = 1, high = 1.8", "value = 3, low = 1, high = 4", "An app is granted less"),
        ('name = "mine"', "", "no name"),
        ('name = "mine"', "name = mine", "not TOML"),
    ],
)
def test_a_hole_or_an_impossible_figure_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert words in refused(tmp_path, old, new)


def test_what_does_not_exist_is_refused_with_what_does(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"Unknown device 'galaxy-s42'.*galaxy-s24"):
        profiles.load("galaxy-s42")
    with pytest.raises(BadInput, match="no such profile"):
        profiles.load(tmp_path / "absent.toml")


@pytest.mark.parametrize("name", ["galaxy-s24", "iphone-16", "ethos-u55-128", "q-6690", "raspberry-pi-5"])
def test_a_profile_that_is_written_reads_back_the_same(tmp_path: Path, name: str) -> None:
    device = dataclasses.replace(profiles.load(name), coefficients=(ONE,))
    path = tmp_path / "copy.toml"
    profiles.write(device, path)
    assert profiles.load(path) == device
    with pytest.raises(BadInput, match="exists already"):
        profiles.write(device, path)


def test_fitted_coefficients_are_merged_and_the_users_own_count(own_directory: Path) -> None:
    before = len(profiles.load("pixel-8").coefficients)
    own = dataclasses.replace(ONE, precision="w4a16")
    cell = '{ value = 0.5, unit = "1", kind = "measured", source = "a run", date = "2026-01-01" }'
    head = f"[decode_efficiency]\nllamacpp = {cell}"
    profiles.write_fitted("pixel-8", (ONE, own), own_directory / "fitted" / "pixel-8.toml", head=head)
    device = profiles.load("pixel-8")
    assert ONE in device.coefficients
    assert own in device.coefficients
    assert len(device.coefficients) == before + 2
    assert device.decode_efficiency["llamacpp"].value == 0.5


def test_what_is_fitted_apart_keeps_the_other(own_directory: Path) -> None:
    path = own_directory / "fitted" / "pixel-8.toml"
    cell = '{ value = 0.5, unit = "1", kind = "measured", source = "a run", date = "2026-01-01" }'
    profiles.write_fitted("pixel-8", None, path, head=f'[decode_efficiency]\n"genie.w4" = {cell}')
    profiles.write_fitted("pixel-8", (ONE,), path, force=True)
    profiles.write_fitted("pixel-8", None, path, head=f'[prefill_efficiency]\n"genie.w4" = {cell}', force=True)
    device = profiles.load("pixel-8")
    assert ONE in device.coefficients
    assert "genie.w4" in device.prefill_efficiency
    assert "[decode_efficiency]" not in path.read_text()  # these tables are fitted together


def test_a_faulty_file_of_coefficients_is_named(own_directory: Path) -> None:
    path = own_directory / "fitted" / "pixel-8.toml"
    profiles.write_fitted("pixel-8", (ONE,), path)
    path.write_text(path.read_text().replace("rows = 27\n", ""))
    with pytest.raises(BadInput, match=r"fitted/pixel-8.toml: coefficients\[0\]: no rows"):
        profiles.load("pixel-8")


def test_the_users_directory_adds_profiles(own_directory: Path) -> None:
    own_directory.mkdir()
    (own_directory / "mine.toml").write_text(MINE)
    assert "mine" in profiles.names()
    assert profiles.load("mine").title == "A board of mine"
    assert profiles.load("a board of mine") is profiles.load("mine")


def test_the_host_is_known_by_its_memory_until_it_is_probed(own_directory: Path) -> None:
    device = profiles.load("host")
    assert device.ram.kind is Kind.MEASURED
    assert (device.ram.value or 0) >= (device.slice_bytes.value or 0) > 2**20
    assert device.bandwidth.kind is Kind.UNKNOWN
    assert "onnxruntime" in device.units[0].runtimes  # it is among the packages that Octavo itself needs
    assert any("octavo devices probe" in note for note in device.notes)
    own_directory.mkdir()
    profiles.write(dataclasses.replace(device, title="probed"), own_directory / "host.toml")
    assert profiles.load("host").title == "probed"
