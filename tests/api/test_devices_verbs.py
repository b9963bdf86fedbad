"""`octavo devices`: what is listed and shown is what the profiles say; a probe writes one that reads back."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.api.devices import devices_list, devices_probe, devices_show
from octavo.errors import BadInput
from octavo.plan import profiles


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_DEVICES", str(tmp_path / "user"))
    return tmp_path / "user"


def test_the_list_has_a_line_per_profile() -> None:
    lines = {line["name"]: line for line in devices_list().to_dict()["devices"]}
    assert set(lines) == set(profiles.names())
    s24 = lines["galaxy-s24"]
    assert s24["ram_bytes"] == 8 * 2**30
    assert s24["bandwidth"] == 76.8e9
    assert s24["units"] == ["cpu", "gpu", "npu"]
    assert {"litert", "llamacpp"} <= set(s24["runtimes"])
    assert lines["q-6690"]["ram_bytes"] is None  # nobody published it


def test_show_gives_every_figure_with_its_origin() -> None:
    figures = devices_show("Google Pixel 8").to_dict()["figures"]
    assert figures["ram"] == {
        "value": 8 * 2**30, "unit": "B", "kind": "datasheet", "date": "2023-10-04",
        "source": "Google, Pixel 8 technical specifications: 8 GB LPDDR5X",
    }  # fmt: skip
    assert figures["units.npu.energy.int8"]["kind"] == "estimated"
    assert "Horowitz" in figures["units.npu.energy.int8"]["source"]
    for key, figure in figures.items():
        assert figure["kind"] == "unknown" or (figure["source"] and figure["date"]), key


def test_show_of_a_device_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="pixel-8"):
        devices_show("pixel-88")


def test_a_quick_probe_becomes_the_host(own_directory: Path) -> None:
    steps: list[int] = []
    record = devices_probe(quick=True, progress=lambda what, done, total: steps.append(done))
    assert record.path == str(own_directory / "host.toml")
    assert steps == sorted(steps)
    assert record.figures["bandwidth"]["kind"] == "measured"
    assert record.figures["bandwidth"]["value"] > 1e9
    assert record.figures["units.cpu.rates.fp32"]["value"] > 1e8
    assert record.figures["units.cpu.rates.int8"]["value"] > 1e8
    assert record.figures["units.cpu.vector_rates.fp32"]["value"] > 1e7
    assert record.figures["runtime_memory.onnxruntime"]["kind"] == "measured"
    assert "units.cpu.overhead_ms.onnxruntime" in record.figures
    shown = devices_show("host")
    assert shown.figures == record.figures
    assert not any("run `octavo devices probe`" in note for note in shown.notes)


def test_a_probe_does_not_replace_a_file_that_was_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("precious")
    with pytest.raises(BadInput, match="--force"):
        devices_probe(path, quick=True)
    assert path.read_text() == "precious"
    with pytest.raises(BadInput, match=r"\.toml"):
        devices_probe(tmp_path / "mine.json", quick=True)
