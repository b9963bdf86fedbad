"""`octavo devices fit`: coefficients come back from rows that were made with them, and errors are of models unseen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.api.devices_fit import devices_fit
from octavo.errors import BadInput
from octavo.plan import profiles

COSTS = {"inference": 0.3, "dense_gmacs": 0.8, "mparameters": 0.05, "hundred_operators": 1.2}  # ms per unit


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_DEVICES", str(tmp_path / "user"))
    return tmp_path / "user"


def rows(tmp_path: Path, devices: tuple[str, ...] = ("Google Pixel 8",), models: int = 12, more: str = "") -> Path:
    """Measurements of a device that costs what COSTS says, with 3 % of noise."""
    rng = np.random.default_rng(0)
    lines = ["model,device,runtime,precision,latency_ms,gmacs,params_m,operators,layers"]
    for model in range(models):
        gmacs, params, operators = 10 ** rng.uniform(-1, 1), 10 ** rng.uniform(0, 2), rng.integers(30, 300)
        cost = 0.3 + 0.8 * gmacs + 0.05 * params + 1.2 * operators / 100
        for slower, device in enumerate(devices, 1):
            latency = slower * cost * np.exp(0.03 * rng.standard_normal())
            lines.append(
                f"m{model},{device},tflite,w8a8,{latency:.5g},{gmacs:.5g},{params:.5g},{operators},{7 * model}"
            )
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines) + "\n" + more)
    return path


def test_the_fit_finds_what_the_rows_were_made_of(tmp_path: Path, own_directory: Path) -> None:
    record = devices_fit(rows(tmp_path), out=own_directory / "fitted")
    (group,) = record.groups
    assert (group["device"], group["runtime"], group["precision"], group["models"]) == ("pixel-8", "tflite", "w8a8", 12)
    assert group["median_error"] < 0.1
    assert group["low"] < 1 < group["high"]
    assert record.written == (str(own_directory / "fitted" / "pixel-8.toml"),)
    assert "layers" in record.notes[0]  # an outcome of the conversion, and so not looked at
    found = next(one for one in profiles.load("pixel-8").coefficients if one.source == "rows.csv")
    cost = sum(found.terms.get(name, 0) * amount for name, amount in {**COSTS, "inference": 1}.items())
    truth = sum(COSTS[name] * amount for name, amount in {**COSTS, "inference": 1}.items())
    assert cost == pytest.approx(truth, rel=0.2)


def test_rows_with_holes_are_counted_and_named(tmp_path: Path) -> None:
    more = "m1,Google Pixel 8,tflite,w8a8,,1,1,1,1\nm2,Nokia 3310,tflite,w8a8,3,1,1,1,1\n"
    record = devices_fit(rows(tmp_path, more=more))
    assert (record.rows, record.used, record.written) == (14, 12, ())
    assert [(item["reason"], item["rows"]) for item in record.left_out] == [
        ("no latency_ms", 1), ("no profile of the device", 1),
    ]  # fmt: skip
    assert record.left_out[1]["names"] == ("Nokia 3310",)


def test_every_device_has_a_file_and_what_was_known_of_its_language_models_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    cell = '{ value = 0.5, unit = "1", kind = "measured", source = "a run", date = "2026-01-01" }'
    profiles.write_fitted("pixel-9", (), out / "pixel-9.toml", head=f'[decode_efficiency]\n"genie.w4a16" = {cell}')
    path = rows(tmp_path, ("Google Pixel 8", "Google Pixel 9"))
    with pytest.raises(BadInput, match="--force"):
        devices_fit(path, out=out)
    record = devices_fit(path, out=out, force=True)
    assert [Path(name).name for name in record.written] == ["pixel-8.toml", "pixel-9.toml"]
    text = (out / "pixel-9.toml").read_text()
    assert "[[coefficients]]" in text
    assert '"genie.w4a16"' in text
    with pytest.raises(BadInput, match="2 devices"):
        devices_fit(path, out=tmp_path / "one.toml")


def test_a_group_too_small_to_leave_one_out_has_no_error(tmp_path: Path) -> None:
    record = devices_fit(rows(tmp_path, models=1))
    assert record.groups[0]["median_error"] is None
    assert "error is unknown" in record.notes[-1]
    record.to_json()


def test_rows_of_which_none_can_be_used_are_refused_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none of 12 rows can be fitted: no profile of the device \(12\)"):
        devices_fit(rows(tmp_path, ("Nokia 3310",)))


def test_the_published_rows_of_a_phone_can_be_fitted(shared: Path, tmp_path: Path) -> None:
    phones = shared / "data/phones"
    head, *lines = (phones / "latency.csv").read_text().splitlines()
    path = tmp_path / "s24.csv"
    path.write_text("\n".join([head, *(line for line in lines if "Galaxy S24" in line)]))
    record = devices_fit(path, facts=phones / "facts.csv")
    assert record.used > 100
    assert {group["device"] for group in record.groups} == {"galaxy-s24"}
    assert {"tflite", "onnx", "qnn_dlc"} <= {group["runtime"] for group in record.groups}
    assert record.overall["median_error"] < 0.4
