"""The fit of language models' coefficients: finds what made the rows, leans on others where it must, beats a napkin."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from octavo.core.decoder_facts import decoder_facts
from octavo.core.decoder_shape import DecoderShape
from octavo.core.facts import ModelFacts
from octavo.core.quantity import Quantity
from octavo.errors import BadInput
from octavo.plan.language import NPU, shape_label
from octavo.plan.language_fit import (
    LanguageFit,
    LanguageRow,
    chip_name,
    choose_costs,
    first_macs,
    fit_language,
    npu_weight_bytes,
    token_reads,
)

ROOT = Path(__file__).resolve().parents[2]
SPEEDS = {"fast": 100e9, "slow": 50e9, "never seen": 70e9}


def model(layers: int, vocabulary: int = 32000) -> ModelFacts:
    hidden = 128 * layers
    shape = DecoderShape(
        family="", vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, layers=layers, heads=layers,
        kv_heads=layers, head_dim=128, context=8192, tied=False, windows=(None,) * layers, caches=(True,) * layers,
    )  # fmt: skip
    return decoder_facts(shape, f"{layers} layers")


FACTS = {f"m{layers}": model(layers, 16000 + 1000 * layers) for layers in (8, 12, 16, 20, 24, 32)}


def measured(name: str, device: str, share: float, rate: float, context: int = 4096, **changes: Any) -> LanguageRow:
    """A row as a device would show it that reaches this share of its bandwidth and this rate [op/s]."""
    row = LanguageRow(name, device, "genie", "w4a16", context, 1.0, **changes)
    reads = token_reads(FACTS[name], row, npu_weight_bytes)
    speed = share * SPEEDS[device] / (reads.total + NPU.score_bytes * reads.scores)
    return replace(row, tokens_per_second=speed, first_ms=2e3 * first_macs(FACTS[name], row, NPU) / rate)


ROWS = [measured(name, device, share, rate)
        for device, share, rate in (("fast", 0.5, 20e12), ("slow", 0.7, 8e12)) for name in FACTS]  # fmt: skip


def held(quantity: Quantity) -> tuple[float, float, float]:
    assert quantity.value is not None
    assert quantity.low is not None
    assert quantity.high is not None
    return quantity.low, quantity.value, quantity.high


def width(quantity: Quantity) -> float:
    low, _, high = held(quantity)
    return high / low


def test_rows_made_by_the_model_give_its_coefficients_back() -> None:
    fit = fit_language(ROWS, SPEEDS, FACTS)
    assert fit.decode["fast"]["genie.w4a16"].value == pytest.approx(0.5, rel=0.03)
    assert fit.decode["slow"]["genie.w4a16"].value == pytest.approx(0.7, rel=0.03)
    assert fit.prefill["fast"]["genie.w4a16"].value == pytest.approx(20e12, rel=0.03)
    assert fit.prefill["slow"]["genie.w4a16"].unit == "op/s"
    assert fit.decode["fast"]["genie.w4a16"].n == len(FACTS)


def test_a_device_without_rows_has_the_others_and_a_wider_interval() -> None:
    fit = fit_language(ROWS, SPEEDS, FACTS).decode
    _, value, _ = held(fit["never seen"]["genie.w4a16"])
    assert 0.5 < value < 0.7
    assert width(fit["never seen"]["genie.w4a16"]) > 1.5 * width(fit["fast"]["genie.w4a16"])
    assert "no row" in fit["never seen"]["genie.w4a16"].source


def test_a_device_of_a_measured_chip_is_surer_than_a_strange_one() -> None:
    fit = fit_language(ROWS, SPEEDS, FACTS, chips={"fast": "C", "never seen": "C"})
    alone = fit_language(ROWS, SPEEDS, FACTS)
    assert width(fit.decode["never seen"]["genie.w4a16"]) < width(alone.decode["never seen"]["genie.w4a16"])
    assert chip_name("Qualcomm Snapdragon 8 Elite for Galaxy") == chip_name("Qualcomm Snapdragon 8 Elite (SM8750)")


def test_a_kind_never_measured_is_answered_with_a_wide_interval() -> None:
    fit = fit_language(ROWS, SPEEDS, FACTS, keys=["genie.w4"]).decode["fast"]
    assert width(fit["genie.w4"]) > 2 * width(fit["genie.w4a16"])


def test_one_wild_row_does_not_carry_the_device_away() -> None:
    wild = [replace(ROWS[0], tokens_per_second=10 * ROWS[0].tokens_per_second), *ROWS[1:]]
    assert fit_language(wild, SPEEDS, FACTS).decode["fast"]["genie.w4a16"].value == pytest.approx(0.5, rel=0.15)


def test_the_same_measurement_under_another_name_counts_once() -> None:
    facts = FACTS | {f"twin{i}": replace(FACTS["m32"], name=f"twin{i}") for i in range(9)}
    odd = [replace(row, tokens_per_second=1.3 * row.tokens_per_second) if row.model == "m32" else row for row in ROWS]
    twins = [replace(row, model=f"twin{i}") for row in odd if row.model == "m32" for i in range(9)]
    once, often = fit_language(odd, SPEEDS, facts), fit_language(odd + twins, SPEEDS, facts)
    assert often.decode["fast"]["genie.w4a16"].value == pytest.approx(once.decode["fast"]["genie.w4a16"].value)


def test_an_architecture_measured_on_the_device_is_as_measured() -> None:
    odd = [replace(row, tokens_per_second=1.3 * row.tokens_per_second) if row.model == "m32" else row for row in ROWS]
    cells = fit_language(odd, SPEEDS, FACTS).decode["fast"]
    own = cells[f"genie.w4a16@{shape_label(FACTS['m32'])}"]
    assert own.value == pytest.approx(1.3 * 0.5, rel=1e-3)
    assert width(own) < width(cells["genie.w4a16"])
    assert "as measured" in own.source
    assert not any("@" in key for key in fit_language(odd, SPEEDS, FACTS).decode["never seen"])


def test_rows_with_holes_are_left_out_by_name() -> None:
    rows = [
        *ROWS,
        replace(ROWS[0], model="who"),
        replace(ROWS[0], device="where"),
        replace(ROWS[0], tokens_per_second=0),
    ]
    fit = fit_language(rows, SPEEDS, FACTS)
    assert len(fit.left_out) == 3
    assert "row 13 (who on fast): the model's shape is not known" in fit.left_out
    assert fit.decode == fit_language(ROWS, SPEEDS, FACTS).decode
    with pytest.raises(BadInput, match="None of 1 rows"):
        fit_language([replace(ROWS[0], model="who")], SPEEDS, FACTS)


def test_decode_is_fitted_where_no_time_to_first_token_is_known() -> None:
    fit = fit_language([replace(row, first_ms=0.0) for row in ROWS], SPEEDS, FACTS)
    assert fit.prefill == {}
    assert fit.decode["fast"]["genie.w4a16"].value == pytest.approx(0.5, rel=0.03)


def test_the_costs_that_made_the_rows_are_found() -> None:
    rows = ROWS + [measured(name, "fast", 0.5, 20e12, context) for name in FACTS for context in (1024, 2048)]
    assert choose_costs(rows, SPEEDS, FACTS) == NPU


def test_the_tables_of_a_device_are_toml_that_profiles_read() -> None:
    text = fit_language(ROWS, SPEEDS, FACTS, source="rows", date="2026-01-01").toml("fast")
    document = tomllib.loads(text)
    assert document["decode_efficiency"]["genie.w4a16"]["unit"] == "1"
    assert document["prefill_efficiency"]["genie.w4a16"]["unit"] == "op/s"
    assert "prefill" not in LanguageFit({"d": {}}, {"d": {}}, {}).toml("d", rate=False)


@pytest.fixture
def benchmark(shared: Path) -> Iterator[Any]:
    sys.path.insert(0, str(ROOT))
    from benchmarks import _phones_llm

    yield _phones_llm
    sys.path.remove(str(ROOT))


def test_published_measurements_are_predicted_better_than_on_a_napkin(benchmark: Any, shared: Path) -> None:
    found = benchmark.language(shared / "data/phones", None)
    napkin = found["baseline_0.7_of_bandwidth"]
    assert found["fitted_rows"] == 36
    for left_out in ("leave_one_model_out", "leave_one_architecture_out"):
        decode, first = found[left_out]["decode_tokens_per_second"], found[left_out]["time_to_first_token"]
        assert decode["median"] < napkin["median"] / 2
        assert decode["p90"] < napkin["p90"] / 2
        assert 0.7 <= decode["coverage80"] <= 0.9
        assert 0.7 <= first["coverage80"] <= 0.9
    aim, harder = found["leave_one_model_out"], found["leave_one_architecture_out"]
    assert aim["decode_tokens_per_second"]["median"] <= 0.12
    assert aim["time_to_first_token"]["median"] <= 0.12
    assert harder["decode_tokens_per_second"]["median"] <= 0.16  # 0.144, and 0.174 below: the aim is not met here
    assert harder["time_to_first_token"]["median"] <= 0.19
    assert found["costs"] == {"score_bytes": NPU.score_bytes, "head": NPU.head, "chunk_macs": NPU.chunk_macs}


def test_unseen_models_with_holes_and_without_configs_do_not_stop_it(
    benchmark: Any, shared: Path, tmp_path: Path
) -> None:
    header = "model,component,precision,device,runtime,context_length,ttft_min_ms,ttft_max_ms,tokens_per_second\n"
    rows = [
        "llama_v3_2_3b_instruct,,w4a16,Snapdragon 8 Elite QRD,genie,4096,80,2560,25",
        "mystery_4b,,w8a16,Some Phone,unheard,4096,,,25",
        "gpt_oss_20b,,w4a16,Snapdragon X2 Elite CRD,genie,4096,80,2560,30",
        "broken,,w4,Snapdragon X2 Elite CRD,genie,,,,",
    ]
    (tmp_path / "llm.csv").write_text(header + "\n".join(rows) + "\n", "utf-8")
    found = benchmark.language(shared / "data/phones", tmp_path)
    assert found["test_rows"] == 3
    assert found["assumed_shapes"] == ["mystery_4b"]
    assert found["test_left_out"][0].startswith("llm.csv:5")
    assert found["test"]["decode_tokens_per_second"]["n"] == 3
    assert found["test"]["time_to_first_token"]["n"] == 2
    assert benchmark.language(shared / "data/phones", tmp_path / "none")["test_rows"] == 0


def test_the_fragments_are_of_profiles_and_load(benchmark: Any, shared: Path) -> None:
    found = benchmark.fragments(shared / "data/phones", "2026-01-01")
    assert "pixel-8" not in found
    document = tomllib.loads(found["snapdragon-8-elite"])
    assert document["decode_efficiency"]["genie.w4a16"]["n"] == 5
    assert "prefill_efficiency" in tomllib.loads(found["galaxy-s25"])  # its chip was measured in another device
    assert "prefill_efficiency" not in tomllib.loads(found["rb3-gen-2"])
