"""`octavo devices` at a terminal: JSON alone on standard output, tables that name kind, source and date."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from octavo.cli.devices import devices
from octavo.errors import BadInput


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_DEVICES", str(tmp_path / "user"))
    return tmp_path / "user"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(devices, arguments)


def test_list_prints_a_line_per_profile() -> None:
    result = run("list")
    assert result.exit_code == 0
    for word in ("galaxy-s24", "Samsung Galaxy S24", "76.8 GB/s", "iphone-16", "unknown"):
        assert word in result.stdout


def test_list_prints_one_json_object() -> None:
    names = [line["name"] for line in json.loads(run("list", "--json").stdout)["devices"]]
    assert names == sorted(names)
    assert "host" in names


def test_show_prints_every_figure_with_kind_source_and_date() -> None:
    result = run("show", "raspberry-pi-5")
    assert result.exit_code == 0
    for word in (
        "17.1 GB/s",
        "datasheet",
        "2023-09-28",
        "Raspberry Pi 5 product brief",
        "sustained_power",
        "estimated",
    ):
        assert word in result.stdout
    record = json.loads(run("show", "raspberry-pi-5", "--json").stdout)
    assert record["figures"]["bandwidth"]["value"] == 17.1e9
    assert record["units"][0]["runtimes"]["llamacpp"] == "CPU"


def test_show_refuses_what_it_does_not_know() -> None:
    error = run("show", "raspberry-pie-5").exception
    assert isinstance(error, BadInput)
    assert "raspberry-pi-5" in str(error)


def test_probe_does_not_replace_a_file(tmp_path: Path) -> None:
    path = tmp_path / "here.toml"
    path.write_text("precious")
    error = run("probe", "--quick", "-o", str(path)).exception
    assert isinstance(error, BadInput)
    assert "--force" in str(error)


def test_fit_prints_the_error_on_models_left_out_and_the_holes(tmp_path: Path) -> None:
    lines = ["model,device,runtime,precision,latency_ms,gmacs,params_m"]
    lines += [f"m{i},Google Pixel 8,tflite,w8a8,{0.5 + i},{i + 1},{2 * i + 3}" for i in range(8)]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([*lines, "m9,Google Pixel 8,tflite,w8a8,,1,1"]))
    result = run("fit", str(path), "-o", str(tmp_path / "fitted"))
    assert result.exit_code == 0
    for word in ("8 of 9 rows fitted", "pixel-8", "w8a8", "left out: 1 row, no latency_ms (line 10)", "written to"):
        assert word in result.stdout
    record = json.loads(run("fit", str(path), "--json").stdout)
    assert record["groups"][0]["models"] == 8
    assert record["left_out"] == [{"reason": "no latency_ms", "rows": 1, "lines": [10], "names": []}]
