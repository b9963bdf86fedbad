"""`octavo bench`: any file, made by Octavo or not; the keys that others rely on; what it refuses and what it keeps."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import octavo
from octavo.errors import BadInput, OctavoError
from octavo.records import BenchRecord
from octavo.report.bench_text import bench_summary
from octavo.runtimes.llama import tiny as llama
from octavo.runtimes.onnx import tiny as onnx

QUICK: dict[str, Any] = {"repeat": 8, "threads": 1}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foreign network with a fixed batch: no manifest, three kinds of operator."""
    path = tmp_path_factory.mktemp("chain") / "chain.onnx"
    onnx.write_chain(path, 3)
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foreign network whose first dimension is free."""
    path = tmp_path_factory.mktemp("rows") / "rows.onnx"
    onnx.write_layers(path, 4, 1, 64, 128, head=64)
    return path


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("xllamacpp")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    llama.write_decoder(path, 2, 64, 64)
    return path


def printed(record: BenchRecord) -> str:
    from rich.console import Console

    console = Console(width=160, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(bench_summary(record))
    return capture.get()


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "octavo", "bench", *(str(argument) for argument in arguments)]


def test_a_foreign_network_is_measured_and_says_on_what(chain: Path) -> None:
    record = octavo.bench(chain, **QUICK)
    times = record.latency_ms
    assert (record.runtime, record.threads, record.batch, times["n"]) == ("onnxruntime", 1, None, 8)
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["max"]
    assert times["interval"][0] <= times["p50"] <= times["interval"][1]
    assert times["settled"] is None, "so many calls were asked for: nothing was to be settled"
    assert record.inputs == {"x0": {"shape": [1, 8, 8, 8], "dtype": "float32"}}
    assert 5 << 20 < record.peak_memory_bytes < record.peak_rss_bytes < 500 << 20
    assert record.load_ms > 0
    assert record.first_ms > 0
    assert record.units.keys() == {"cpu"}
    assert record.tokens_per_second is None
    assert "p50" in printed(record)


def test_the_json_has_the_keys_of_the_contract(chain: Path) -> None:
    done = subprocess.run(command(chain, "--repeat", 5, "--json"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"latency_ms", "peak_memory_bytes", "tokens_per_second", "threads", "sustained"} <= set(found)
    assert {"p50", "p90", "p99", "n"} <= set(found["latency_ms"])
    assert found["sustained"] == []


def test_it_goes_on_until_the_precision_and_says_so(chain: Path) -> None:
    record = octavo.bench(chain, precision="20%", limit="10s", threads=1)
    assert record.latency_ms["n"] >= 50
    assert record.latency_ms["settled"] is (record.latency_ms["reach"] <= 0.2)
    assert "0.2" in record.rule
    short = octavo.bench(chain, precision="0.001%", limit="1s", threads=1)
    assert short.latency_ms["settled"] is False
    assert any("the median is known within" in note for note in short.notes)


def test_threads_and_batches_make_a_table(rows: Path) -> None:
    record = octavo.bench(rows, repeat=5, threads=[1, 2], batch=[1, 4])
    assert [(row["threads"], row["batch"]) for row in record.configurations] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert (record.threads, record.batch) == (1, 1)
    assert record.configurations[1]["items_per_second"] == pytest.approx(
        4e3 / record.configurations[1]["latency_ms"]["p50"]
    )
    assert printed(record).count("\n") >= 6


def test_a_fixed_batch_is_refused(chain: Path) -> None:
    with pytest.raises(BadInput, match=r"batch is fixed.*x0 1x8x8x8"):
        octavo.bench(chain, batch=2, **QUICK)


def test_processes_are_shown_apart_and_pooled(chain: Path) -> None:
    record = octavo.bench(chain, processes=3, **QUICK)
    assert len(record.runs) == 3
    assert record.latency_ms["n"] == 24
    low, high = record.latency_ms["interval"]
    assert all(low <= run["interval"][0] <= run["interval"][1] <= high for run in record.runs)
    assert record.peak_memory_bytes == max(run["peak_memory_bytes"] for run in record.runs)
    assert "% apart" in printed(record)


def test_a_language_model_has_rates(gguf: Path) -> None:
    record = octavo.bench(gguf, prompt_tokens=9, decode_tokens=5, repeat=2, threads=1)
    assert record.tokens_per_second is not None
    assert record.tokens_per_second.keys() == {"prefill", "decode"}
    assert min(record.tokens_per_second.values()) > 0
    assert record.language is not None
    assert (record.language["prompt_tokens"], record.language["decode_tokens"], record.language["n"]) == (9, 5, 2)
    assert record.latency_ms["n"] == 10, "the time per decoded token"
    assert record.inputs == {"ids": {"shape": [1, 9], "dtype": "int64"}}
    assert "tokens/s" in printed(record)
    with pytest.raises(BadInput, match=r"context is 1024"):
        octavo.bench(gguf, prompt_tokens=2000)
    with pytest.raises(BadInput, match="one sequence"):
        octavo.bench(gguf, batch=2)


def test_operators_are_timed_by_the_runtimes_own_profiler(chain: Path) -> None:
    record = octavo.bench(chain, profile=True, **QUICK)
    assert record.profile is not None
    operators = record.profile["operators"]
    assert sum(item["share"] for item in operators) == pytest.approx(1)
    assert record.profile["total_ms"] == pytest.approx(sum(item["ms"] for item in operators))
    assert {item["unit"] for item in operators} == {"cpu"}
    assert "Conv" in {item["kind"].removeprefix("Fused") for item in operators}
    assert [item["ms"] for item in operators] == sorted((item["ms"] for item in operators), reverse=True)
    assert "profiler" in printed(record)


def test_a_runtime_without_a_profiler_says_so(gguf: Path) -> None:
    record = octavo.bench(gguf, profile=True, prompt_tokens=3, decode_tokens=2, **QUICK)
    assert record.profile is None
    assert any("no profiler" in note for note in record.notes)


def test_sustained_work_has_windows_a_verdict_and_a_plot(chain: Path, tmp_path: Path) -> None:
    plot = tmp_path / "over-time.svg"
    told: list[tuple[str, int, int]] = []
    record = octavo.bench(
        chain, sustained="3s", plot=plot, progress=lambda *step: told.append(step), **QUICK
    )  # fmt: skip
    windows = record.sustained
    assert 16 <= len(windows) <= 60
    assert [w["start_s"] for w in windows] == sorted(w["start_s"] for w in windows)
    assert 2.9 < windows[-1]["end_s"] < 6
    assert all(0 < w["p10"] <= w["p50"] <= w["p90"] <= w["max"] and w["n"] > 0 for w in windows)
    assert record.throttling is not None
    assert record.throttling["low"] <= record.throttling["ratio"] <= record.throttling["high"]
    assert record.plot == str(plot)
    assert ElementTree.fromstring(plot.read_text("utf-8")).tag.endswith("svg")
    assert any(what == "sustained" and done for what, done, _ in told)
    assert "sustained" in printed(record)


def test_a_language_model_can_be_sustained(gguf: Path) -> None:
    record = octavo.bench(gguf, prompt_tokens=3, decode_tokens=4, repeat=1, threads=1, sustained="1s")
    assert all(window["n"] % 4 == 0 for window in record.sustained)
    assert record.throttling is not None


def test_ctrl_c_keeps_what_was_measured(chain: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    arguments = command(chain, "--repeat", 3, "--threads", 1, "--sustained", "60s", "--plot", plot, "--json")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = time.monotonic()
    while time.monotonic() - started < 60 and not _sustaining(process.pid):
        time.sleep(0.1)
    time.sleep(3.5)  # windows are of a second
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    found = json.loads(out)
    assert found["interrupted"] is True
    assert 1 <= len(found["sustained"]) < 60
    assert found["latency_ms"]["n"] == 3
    assert plot.is_file()


def _sustaining(pid: int) -> bool:
    """Whether the command has reached its third process: it asks, times, then goes on."""
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    seen = _SEEN.setdefault(pid, set())
    seen |= set(tasks.read_text().split()) if tasks.exists() else set()
    return len(seen) >= 3


_SEEN: dict[int, set[str]] = {}


def test_inputs_come_from_a_file(rows: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x0=np.ones((5, 64), np.float32))
    record = octavo.bench(rows, input=tmp_path / "x.npz", batch=3, **QUICK)
    assert record.inputs["x0"]["shape"] == [3, 64]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sustained": "5 fortnights"}, "--sustained"),
        ({"plot": "x.svg"}, "--sustained"),
        ({"precision": "0"}, "--precision"),
        ({"threads": 0}, "--threads 0"),
        ({"processes": 0}, "processes"),
        ({"prompt_tokens": 3}, "language models"),
        ({"fix": ["y=3"]}, "y: no input"),
    ],
)
def test_senseless_options_are_refused(chain: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        octavo.bench(chain, **options)


def test_a_plot_that_is_there_already_is_refused_before_the_run(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "x.svg").write_text("mine")
    with pytest.raises(BadInput, match="exists"):
        octavo.bench(chain, sustained="1h", plot=tmp_path / "x.svg", **QUICK)
    assert (tmp_path / "x.svg").read_text() == "mine"


def test_a_damaged_file_is_an_error_of_ours(tmp_path: Path, chain: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(chain.read_bytes()[:200])
    with pytest.raises(OctavoError, match=r"cut\.onnx"):
        octavo.bench(path, **QUICK)
    with pytest.raises(BadInput, match="no such file"):
        octavo.bench(tmp_path / "absent.onnx")


def test_what_octavo_made_is_measured_too(built: Any) -> None:
    made = built("stories260K")
    for path in made.artifacts.values():
        record = octavo.bench(path, prompt_tokens=8, decode_tokens=4, repeat=1, threads=1)
        assert record.tokens_per_second is not None


def test_a_finished_tflite_is_measured(shared: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    record = octavo.bench(shared / "data/vision/vww/vww_96_int8.tflite", **QUICK)
    assert (record.runtime, record.latency_ms["n"]) == ("litert", 8)
    assert next(iter(record.inputs.values())) == {"shape": [1, 96, 96, 3], "dtype": "int8"}
