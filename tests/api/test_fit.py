"""The main job on a real model: every candidate measured, the smallest that holds the gates chosen, the report kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.api.size import parse_size
from octavo.api.verify import parse_share
from octavo.cli import app
from octavo.errors import BadInput, Refused

pytest.importorskip("torch")
pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def fitted(stories260k: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """w8g32 and w4g32 on both runtimes, on a few windows of text."""
    out = tmp_path_factory.mktemp("fit") / "out"
    record = octavo.fit(
        stories260k, out=out, scheme=["w8g32", "w4g32"], runtime=["llamacpp", "onnxruntime"], allow_skip=True,
        data=shared / "data/text/tinystories/stories_a.txt", windows=3, window=64, max_drop=0.9, threads=1,
    )  # fmt: skip
    return record, out


def test_every_candidate_is_measured(fitted: Any, stories260k: Path) -> None:
    record, out = fitted
    rows = record.to_dict()["candidates"]
    tried = [(row["scheme"], row["runtime"]) for row in rows]
    planned = octavo.plan(stories260k, scheme=["w8g32", "w4g32"], allow_skip=True)
    order = [(row["scheme"], row["runtime"]) for row in planned.candidates]
    assert tried == [pair for pair in order if pair in tried]  # the planner's order, each scheme folded once
    assert sorted(tried) == sorted((s, r) for s in ("w8g32", "w4g32") for r in ("llamacpp", "onnxruntime"))
    for row in rows:
        path = out / row["export"]["path"]
        assert row["export"]["bytes"] == path.stat().st_size
        assert row["export"]["weights"] == row["verify"]["weights"] == "exact"
        assert row["export"]["digest"] == row["compress"]["digest"] == octavo.inspect(path).digest
        assert row["verify"]["outputs"]["kl"] > 0
        assert row["verify"]["accuracy"]["metric"] == "perplexity"
        assert row["bench"]["tokens_per_second"]["decode"] > 10
        assert row["bench"]["latency_ms"]["p50"] <= row["bench"]["latency_ms"]["p99"]
        assert 1e6 < row["bench"]["peak_memory_bytes"] < 2e9
        assert row["gates"] == []
    kl = {pair: row["verify"]["outputs"]["kl"] for pair, row in zip(tried, rows, strict=True)}
    assert kl["w8g32", "llamacpp"] < kl["w4g32", "llamacpp"]


def test_the_smallest_is_chosen_and_runs(fitted: Any) -> None:
    record, out = fitted
    sizes = {row["export"]["path"]: row["export"]["bytes"] for row in record.candidates}
    assert record.chosen == min(sizes, key=lambda name: sizes[name])
    assert octavo.run(out / record.chosen, prompt="Once upon a time", max_tokens=8, threads=1).text


def test_the_report_is_the_record(fitted: Any) -> None:
    record, out = fitted
    assert record.report == str(out / "report.json")
    assert json.loads((out / "report.json").read_text()) == record.to_dict() == json.loads(record.to_json())
    assert {"device", "candidates", "chosen", "report", "gates"} <= record.to_dict().keys()
    text = (out / "report.json").read_text()
    assert ".partial" not in text  # no name of the folder it was made in


def test_a_slice_that_nothing_fits_is_3(stories260k: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = [
        "fit",
        stories260k,
        "--scheme",
        "w4g32",
        "--allow-skip",
        "--slice",
        "1MB",
        "-o",
        tmp_path / "out",
        "--threads",
        1,
    ]
    assert app.run([*map(str, command), "--json"]) == 3
    record = json.loads(capfd.readouterr().out)
    assert record["chosen"] is None
    assert record["slice_bytes"] == 1_000_000
    assert [gate["code"] for gate in record["gates"]] == [3]
    assert "of 1 MB" in record["gates"][0]["reason"]
    assert record["candidates"][0]["rejected"] == "by the plan"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]  # nothing was folded for it


def test_what_is_planned_stands_beside_what_is_measured(fitted: Any) -> None:
    for row in fitted[0].candidates:
        beside = {item["figure"]: item for item in row["beside"]}
        assert beside["peak_memory_bytes"]["measured"] == row["bench"]["peak_memory_bytes"]
        assert beside["peak_memory_bytes"]["predicted"]["value"] == row["plan_here"]["memory"]["total"]
        assert beside["tokens_per_second"]["measured"] == row["bench"]["tokens_per_second"]["decode"]


def test_another_device_plans_for_it_and_measures_here(stories260k: Path, tmp_path: Path) -> None:
    record = octavo.fit(stories260k, out=tmp_path / "out", scheme="w8g32", device="pixel-8", allow_skip=True, threads=1)
    row = record.candidates[0]
    assert record.device == "pixel-8"
    assert record.slice_bytes == octavo.plan(stories260k, device="pixel-8").slice_bytes
    assert row["plan"]["tokens_per_second"]["value"] > 0
    assert row["plan_here"]["unit"] == "cpu"
    assert row["beside"][0]["predicted"] == row["plan_here"]["tokens_per_second"]


def test_a_budget_that_nothing_holds_is_4(
    stories260k: Path, shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = shared / "data/text/tinystories/stories_a.txt"
    command = ["fit", stories260k, "--scheme", "w2g32", "--allow-skip", "--data", text, "--windows", 2]
    command += ["--window", 32, "--max-drop", "0%", "-o", tmp_path / "out", "--threads", 1]
    assert app.run(list(map(str, command))) == 4
    out = capfd.readouterr().out
    assert "gate failed (exit 4)" in out
    assert "none" in out


def test_a_refused_candidate_is_a_row_with_the_reason(stories260k: Path, tmp_path: Path) -> None:
    """Rows of 64 and 172 are no multiples of 256, which llama.cpp's ternary blocks need; 172 has no group of 32."""
    record = octavo.fit(stories260k, out=tmp_path / "out", scheme=["ternary", "w4g32", "fp16"], threads=1)
    by_scheme = {row["scheme"]: row for row in record.candidates}
    ternary, w4g32, fp16 = (by_scheme[name] for name in ("ternary", "w4g32", "fp16"))
    assert "multiple of 32" in ternary["reason"]
    assert "32 does not divide 172" in w4g32["reason"]
    assert fp16["export"]["weights"] == "exact"
    assert record.chosen == "fp16.gguf"
    with pytest.raises(Refused, match="32 does not divide 172"):
        octavo.fit(stories260k, out=tmp_path / "none", scheme=["w4g32"])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("1.5GiB", 3 * 2**29), ("500 MB", 5 * 10**8), ("64k", 64_000), ("4096", 4096), (7, 7)],
)
def test_sizes(text: Any, size: int) -> None:
    assert parse_size(text) == size


def test_what_is_no_size_and_no_share() -> None:
    for text in ("GB", "-1GB", "2 GBs", "1e9", "", "2 i"):
        with pytest.raises(BadInput):
            parse_size(text)
    assert (parse_share("1%"), parse_share("0.01"), parse_share(0.5), parse_share(None)) == (0.01, 0.01, 0.5, None)
    for text in ("1x", "101%", "-1%", "nan"):
        with pytest.raises(BadInput):
            parse_share(text)
