"""`octavo decide` in Python and as a command: the worked answer, bad input, exit codes, the split of a real graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.api.decide import decide
from octavo.api.plan import plan
from octavo.errors import BadInput
from octavo.report.decide_text import sentence

WORKED: dict[str, Any] = {
    "device_ms": 120, "device_j": 0.5, "rtt": 40, "server_ms": 25, "price": "0.0002", "queries": 50, "users": "100M",
}  # fmt: skip


def path(record: Any, name: str) -> dict[str, Any]:
    return next(item for item in record.to_dict()["paths"] if item["path"] == name)


def test_the_worked_answer() -> None:
    record = decide(**WORKED)
    device, cloud = path(record, "device"), path(record, "cloud")
    assert cloud["cost_per_day"] == {"value": 1_000_000.0, "unit": "USD", "kind": "exact"}
    assert cloud["cost_per_year"]["value"] == 365_000_000.0
    assert cloud["latency_ms"]["value"] == 65.0
    assert device["battery_j_per_user_day"]["value"] == 25.0
    assert device["latency_ms"]["value"] == 120.0
    assert (record.chosen, record.certain, record.break_even["round_trip_ms"]) == ("device", True, 95.0)
    for said in ("120 ms", "65 ms", "$1,000,000 a day", "25 J a day"):
        assert said in sentence(record)


def test_every_number_has_a_kind_and_defaults_a_source() -> None:
    record = decide(**WORKED, battery="15Wh", up="2kB", down="1kB", uplink="10Mbit").to_dict()
    figures = [f for p in record["paths"] for f in p.values() if isinstance(f, dict) and "unit" in f]
    figures += [f for f in record["inputs"].values() if isinstance(f, dict)]
    assert len(figures) > 20
    assert all(figure["kind"] in ("exact", "estimated", "measured", "datasheet", "unknown") for figure in figures)
    assert "MobiSys 2012" in record["inputs"]["radio_j_per_query"]["source"]
    assert path(decide(**WORKED), "cloud")["battery_j_per_user_day"]["kind"] == "estimated"


def test_given_radio_energy_replaces_the_default() -> None:
    record = decide(**WORKED, up="2kB", down="1kB", uplink="10Mbit", radio_j_per_byte="5e-6")
    spent = path(record, "cloud")["battery_j_per_user_day"]
    assert spent["value"] == pytest.approx(50 * 3000 * 5e-6)
    assert spent["kind"] == "exact"


def test_a_verdict_that_an_interval_could_turn_is_not_certain() -> None:
    record = decide(**WORKED | {"device_ms": 200, "max_latency": 100}, battery="15Wh", max_battery="0.8%")
    assert record.chosen == "cloud"
    assert not record.certain
    assert sentence(record).startswith("Probably in the cloud")
    assert any("battery per day" in doubt for doubt in record.doubts)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"users": 0}, "--users: 0 must be above zero"),
        ({"users": "-5"}, "--users: -5 is negative"),
        ({"queries": 0}, "--queries: 0 must be"),
        ({"price": -1}, "--price: -1 is negative"),
        ({"up": "2 furlongs"}, "--up: '2 furlongs' has the unknown unit 'furlongs'"),
        ({"uplink": "10"}, "--uplink: '10' has no unit"),
        ({"rtt": None, "price": None}, "Missing: --rtt, --price"),
        ({"device_ms": None}, "Nothing says how fast the device is.*--device-ms"),
        ({"device_ms": 0}, "--device-ms: 0 must be above zero"),
        ({"max_latency": 0}, "--max-latency: 0 must be above zero"),
        ({"split": True}, "--split needs a model"),
    ],
)
def test_bad_input_says_which_option_and_what_to_do(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        decide(**WORKED | changes)


def test_splitting_a_real_network_lists_every_cut_with_its_bytes(shared: Path) -> None:
    model = sorted((shared / "data").rglob("*squeezenet*.onnx"))[0]
    record = decide(model, **WORKED, up="150kB", uplink="5Mbit", split=True, crossing="int8")
    cuts = record.to_dict()["cuts"]
    first, last = cuts[0], cuts[-1]
    assert first["up_bytes"] == 150_000
    assert (first["device_ms"], first["server_ms"]) == (0.0, 25.0)
    assert (last["up_bytes"], last["server_ms"], last["latency_ms"]["value"]) == (0, 0.0, pytest.approx(120))
    assert [cut["device_ms"] for cut in cuts] == sorted(cut["device_ms"] for cut in cuts)
    split = path(record, "split")
    inner = [cut["latency_ms"]["value"] for cut in cuts[1:-1]]
    assert split["latency_ms"]["value"] == pytest.approx(min(inner))


LLAMA = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": True,
}  # fmt: skip
CLOUD = {key: value for key, value in WORKED.items() if not key.startswith("device")}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """The public config of Llama 3.2 1B; no weights."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path / "config.json"


def test_the_device_side_can_be_the_plan_of_a_model(llama: Path) -> None:
    chosen: dict[str, Any] = {"device": "galaxy-s24", "scheme": "w4g32", "runtime": "llamacpp"}
    record = decide(llama, **CLOUD, **chosen, prompt_tokens=100, answer_tokens=11)
    row = plan(llama, **chosen, prompt=100).candidates[0]
    first, rate = row["time_to_first_token_ms"], row["tokens_per_second"]
    latency = path(record, "device")["latency_ms"]
    assert latency["kind"] == "estimated"
    assert latency["value"] == pytest.approx(first["value"] + 10 * 1e3 / rate["value"])
    assert latency["low"] < latency["value"] < latency["high"]
    assert path(record, "device")["battery_share_per_day"]["value"] > 0  # the battery is the profile's
    assert any("w4g32 on llamacpp" in note for note in record.notes)
    assert any("is not planned" in note for note in decide(llama, **WORKED).notes)


def test_a_model_that_does_not_fit_leaves_the_cloud_and_says_why() -> None:
    record = decide(params="70B", device="galaxy-s24", **CLOUD)
    assert record.chosen == "cloud"
    assert "does not fit" in path(record, "device")["reasons"][0]
    assert path(record, "device")["latency_ms"]["kind"] == "unknown"


def test_a_query_longer_than_the_context_is_refused(llama: Path) -> None:
    with pytest.raises(BadInput, match="--prompt-tokens 500 and --answer-tokens 64 are more than the context of 512"):
        decide(llama, **CLOUD, device="galaxy-s24", context=512, prompt_tokens=500)


ARGUMENTS = ["--device-ms", "120", "--device-j", "0.5", "--rtt", "40", "--server-ms", "25", "--price", "0.0002",
             "--queries", "50", "--users", "100M"]  # fmt: skip


def test_the_command_prints_the_record_and_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    from octavo.cli.app import run

    assert run(["decide", *ARGUMENTS, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == decide(**WORKED).to_dict()
    assert run(["decide", *ARGUMENTS]) == 0
    out = capsys.readouterr().out
    assert out.startswith("On the device: 120 ms")
    assert "What would flip it: if the answer had to come in under 120 ms; then in the cloud." in out
    assert run(["decide", *ARGUMENTS, "--max-latency", "100", "--private"]) == 3
    assert run(["decide", *ARGUMENTS, "--uplink", "fast"]) == 1
    assert "--uplink: 'fast' is no amount" in capsys.readouterr().err
