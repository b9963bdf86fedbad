"""Ethos-U: real files through Arm's own compiler; every operator has a unit, and the compiler's death is an error."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

pytest.importorskip("ethosu")

from octavo.core.placement import COMPILER
from octavo.errors import BadInput, OctavoError
from octavo.runtimes.npu.compiled import Compiled, compiled_again, form_of, read_compiled, sidecar_of, write_sidecar
from octavo.runtimes.npu.ethos_u import compile_for, compiler_version
from octavo.runtimes.npu.report import NpuReport, write_operators
from octavo.runtimes.npu.vela import operators_of
from tests.tflite_edits import with_log_softmax


@pytest.fixture(scope="module")
def kws(shared: Path) -> Path:
    return shared / "data/audio/kws/kws_ref_model.tflite"


@pytest.fixture(scope="module")
def compiled(kws: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NpuReport]:
    out = tmp_path_factory.mktemp("vela") / "kws.tflite"
    return out, compile_for(kws, "ethos-u55-128", out)


def test_the_keyword_spotter_is_compiled_entirely(kws: Path, compiled: tuple[Path, NpuReport]) -> None:
    out, report = compiled
    assert [item.unit for item in report.placement] == ["npu"] * 13 == ["npu"] * len(operators_of(kws))
    assert report.counts == {"npu": 39}  # every operator of the program, as the compiler's summary counts them
    assert [item["op"] for item in operators_of(out)] == ["ethos-u"]
    assert {item.source for item in report.placement} == {COMPILER}


def test_cycles_time_and_memory_are_the_compilers_estimates(compiled: tuple[Path, NpuReport]) -> None:
    report = compiled[1]
    assert report.cycles is not None
    assert report.latency_ms is not None
    assert report.latency_ms["kind"] == "estimated"
    assert report.latency_ms["value"] == pytest.approx(report.cycles / report.setting["core_clock_hz"] * 1e3)
    assert report.memory["sram"] > 8000  # two feature maps of 25×5×64 do not fit in less
    assert set(report.traffic) == {"sram", "off_chip_flash"}
    assert sum(item.share or 0 for item in report.placement) == pytest.approx(1)
    assert max(report.placement, key=lambda item: item.share or 0).op.startswith("CONV_2D")
    assert report.macs == 2_664_792


def test_the_list_of_operators_is_a_table(compiled: tuple[Path, NpuReport], tmp_path: Path) -> None:
    write_operators(compiled[1], tmp_path / "ops.csv")
    with open(tmp_path / "ops.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["fused"] == "False" for row in rows) == 39
    assert {row["unit"] for row in rows} == {"npu"}


@pytest.mark.parametrize("target", ["ethos-u65-256", "ethos-u85-512"])
@pytest.mark.parametrize("name", ["vww/vww_96_int8.tflite", "resnet8_cifar10/pretrainedResnet_quant.tflite"])
def test_the_other_series_and_nets(shared: Path, tmp_path: Path, target: str, name: str) -> None:
    report = compile_for(shared / "data/vision" / name, target, tmp_path / "out.tflite")
    assert {item.unit for item in report.placement} == {"npu"}
    assert set(report.counts) == {"npu"}
    assert report.cycles


def test_an_operator_that_the_npu_lacks_is_named_with_the_reason(kws: Path, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    report = compile_for(with_log_softmax(kws, tmp_path / "ls.tflite"), "ethos-u55-128", tmp_path / "out.tflite")
    left = [item for item in report.placement if item.unit != "npu"]
    assert [item.op for item in left] == ["LOG_SOFTMAX Identity"]
    assert "no LOG_SOFTMAX" in left[0].reason
    assert report.counts == {"npu": 11, "cpu": 1}
    assert [item["op"] for item in operators_of(tmp_path / "out.tflite")] == ["ethos-u", "LOG_SOFTMAX"]


def test_a_float_net_stays_on_the_cpu_because_it_is_float(shared: Path, tmp_path: Path) -> None:
    report = compile_for(
        shared / "data/audio/kws/kws_ref_model_float32.tflite", "ethos-u55-128", tmp_path / "out.tflite"
    )
    assert {item.unit for item in report.placement} == {"cpu"}
    assert all("Float32" in item.reason for item in report.placement)
    assert not report.memory


def test_compiling_again_proves_where_a_file_came_from(kws: Path, tmp_path: Path) -> None:
    out = tmp_path / "kws.tflite"
    form = form_of(out)
    form.write_bytes(kws.read_bytes())
    report = compile_for(form, "ethos-u55-128", out)
    assert read_compiled(out) is None
    write_sidecar(sidecar_of(out), out, form, report, digest="d", weights="exact")
    found = read_compiled(out)
    assert isinstance(found, Compiled)
    assert (found.form, found.target, found.weights) == (form, "ethos-u55-128", "exact")
    assert found.placement == report.placement
    assert compiled_again(found)[0] == ""
    data = bytearray(out.read_bytes())
    data[len(data) // 2] ^= 1
    out.write_bytes(data)
    assert "makes another file" in compiled_again(found)[0]
    form.unlink()
    with pytest.raises(BadInput, match="not beside it"):
        read_compiled(out)


def test_an_unknown_configuration_names_the_nearest(kws: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="ethos-u65-512"):
        compile_for(kws, "ethos-u65-511", tmp_path / "out.tflite")


@pytest.mark.parametrize("damage", ["cut", "text", "flipped"])
def test_a_damaged_file_is_an_error_and_leaves_nothing(kws: Path, tmp_path: Path, damage: str) -> None:
    data = bytearray(kws.read_bytes())
    if damage == "flipped":
        data[4000:4400] = bytes(byte ^ 0xFF for byte in data[4000:4400])
    (tmp_path / "bad.tflite").write_bytes({"cut": data[:9000], "text": b"no model at all", "flipped": data}[damage])
    try:
        compile_for(tmp_path / "bad.tflite", "ethos-u55-128", tmp_path / "out.tflite")
    except OctavoError:
        assert not (tmp_path / "out.tflite").exists()
    else:
        assert damage == "flipped"  # which may have hit weights, and those compile


def test_a_compiler_that_dies_or_hangs_is_an_ordinary_error(
    kws: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child imports from the parent's path: one there that dies stands for the SIGFPE that Vela is known for."""
    package = tmp_path / "ethosu" / "vela"
    package.mkdir(parents=True)
    (tmp_path / "ethosu" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGFPE)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OctavoError, match="SIGFPE"):
        compile_for(kws, "ethos-u55-128", tmp_path / "out.tflite")
    (package / "__init__.py").write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(OctavoError, match="longer than 2 s"):
        compile_for(kws, "ethos-u55-128", tmp_path / "out.tflite", timeout=2.0)
    assert "ethosu.regor" not in sys.modules  # nothing of the compiler is in this process


def test_the_compiler_says_its_version() -> None:
    assert compiler_version().startswith("ethos-u-vela 5.")
