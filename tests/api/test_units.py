"""`--unit` and `--no-fallback` through the verbs: what falls back is shown, or is exit code 5 and nothing written."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import api
from octavo.cli.app import run as octavo
from octavo.errors import BadInput
from octavo.records import exit_code
from tests.tflite_edits import with_log_softmax

TARGET = "ethos-u55-128"


@pytest.fixture(scope="module")
def kws(shared: Path) -> Path:
    pytest.importorskip("ethosu")
    pytest.importorskip("ai_edge_litert")
    return shared / "data/audio/kws/kws_ref_model.tflite"


@pytest.fixture(scope="module")
def spotter(kws: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The finished int8 file, compiled: (the compiled file, the record)."""
    out = tmp_path_factory.mktemp("kws") / "kws_vela.tflite"
    return out, api.export(kws, runtime="litert", unit=TARGET, no_fallback=True, out=out)


def relu_net(path: Path) -> Path:
    """y = relu(x), float32 [1, 4]."""
    from onnx import TensorProto, helper, save

    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])] for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "r")], "net", *ends)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    save(made, path)
    np.savez(path.with_suffix(".npz"), x=np.ones((1, 4), np.float32))
    return path


class TestEthosU:
    def test_the_spotter_compiles_whole_and_both_files_are_kept(self, kws: Path, spotter: tuple[Path, Any]) -> None:
        out, record = spotter
        assert (record.gates, record.fallback, record.unit) == ((), (), TARGET)
        assert len(record.placement) == 13
        assert record.npu["counts"] == {"npu": 39}
        assert record.npu["cycles"] > 10_000
        assert {"sram", "off_chip_flash"} <= record.npu["memory"].keys()
        assert out.is_file()
        form = out.with_name("kws_vela.int8.tflite")
        assert form.read_bytes() == kws.read_bytes()
        side = json.loads(out.with_name("kws_vela.tflite.octavo.json").read_text())
        assert (side["compiled"], side["int8_form"], side["target"]) == (out.name, form.name, TARGET)
        assert record.weights == "unknown"  # a finished file: there is nothing to compare its weights with

    def test_a_fallback_is_shown_and_ruled_out_it_is_exit_5(
        self, kws: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        net = with_log_softmax(kws, tmp_path / "net.tflite")
        line = ["export", str(net), "--runtime", "litert", "--unit", TARGET, "-o", str(tmp_path / "out.tflite")]
        assert octavo([*line, "--no-fallback"]) == 5
        shown = capsys.readouterr().out
        assert "LOG_SOFTMAX Identity" in shown
        assert "what to do" in shown
        assert "no LOG_SOFTMAX on Ethos-U" in shown
        assert [path.name for path in tmp_path.iterdir()] == ["net.tflite"]
        assert octavo([*line, "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        (row,) = record["fallback"]
        assert (row["op"], row["unit"], row["asked"]) == ("LOG_SOFTMAX Identity", "cpu", TARGET)
        assert "softmax" in row["do"]
        assert {"op", "unit", "reason"} <= record["placement"][0].keys()

    def test_it_runs_as_its_int8_form_and_says_so(self, spotter: tuple[Path, Any], tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", x=np.zeros((1, 49, 10, 1), np.int8))
        record = api.run(spotter[0], input=tmp_path / "x.npz", output=tmp_path / "y.npz")
        assert "int8 form" in record.notes[0]
        assert sum(np.load(tmp_path / "y.npz")[name].astype(int).sum() + 12 * 128 for name in record.outputs) > 200
        record = api.run(spotter[0], input=tmp_path / "x.npz", unit=TARGET, no_fallback=True)
        assert exit_code(record.gates) == 5
        assert "not in this machine" in record.fallback[0]["reason"]

    def test_verify_compiles_again_and_catches_another_program(self, spotter: tuple[Path, Any], tmp_path: Path) -> None:
        for file in spotter[0].parent.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        out = tmp_path / spotter[0].name
        good = api.verify(out, no_fallback=True)
        assert {gate["gate"] for gate in good.gates} == {"weights"}  # unknown: nobody said what they should be
        assert any("byte for byte" in note for note in good.notes)
        data = bytearray(out.read_bytes())
        data[-2000] ^= 1
        out.write_bytes(data)
        assert {gate["gate"]: gate["code"] for gate in api.verify(out).gates} == {"weights": 6, "compiled": 6}

    def test_what_cannot_be_is_refused_with_the_way_out(self, kws: Path, tmp_path: Path) -> None:
        out = tmp_path / "x.tflite"
        with pytest.raises(BadInput, match="Nearest: ethos-u55-128"):
            api.export(kws, runtime="litert", unit="ethos-u55-129", out=out)
        with pytest.raises(BadInput, match="--runtime litert"):
            api.export(kws, runtime="onnxruntime", unit=TARGET, out=tmp_path / "x.onnx")
        with pytest.raises(BadInput, match="not a compressed model"):
            api.export(kws, runtime="litert", out=out)
        with pytest.raises(BadInput, match="int8"):
            api.export(kws, runtime="litert", unit=TARGET, io="int9", out=out)

    def test_a_compressed_model_is_lowered_proved_and_compiled(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not all(find_spec(name) for name in ("ethosu", "litert_torch", "torch")):
            pytest.skip("needs the compilers")
        import torch

        from tests.static_models import convnet, static_model

        model = static_model(convnet(), (torch.zeros(1, 3, 16, 16),))
        monkeypatch.setattr(sys.modules["octavo.api.export"], "load", lambda directory: model)
        out = tmp_path / "net.tflite"
        record = api.export(tmp_path, runtime="litert", unit=TARGET, no_fallback=True, out=out)
        assert (record.weights, record.gates, record.digest) == ("exact", (), model.digest)
        assert {row["unit"] for row in record.placement} == {"npu"}
        assert not any("TRANSPOSE" in row["op"] or "QUANTIZE" in row["op"] for row in record.placement)
        verified = api.verify(out, no_fallback=True)
        assert (verified.weights, verified.gates, verified.digest) == ("exact", (), model.digest)


class TestUnitsHere:
    @pytest.fixture
    def net(self, tmp_path: Path) -> Path:
        return relu_net(tmp_path / "net.onnx")

    def test_the_cpu_is_asked_for_by_default(self, net: Path) -> None:
        record = api.run(net, input=net.with_suffix(".npz"), no_fallback=True)
        assert (record.unit, record.fallback, record.gates) == ("cpu", (), ())
        assert {row["unit"] for row in record.placement} == {"cpu"}

    def test_a_unit_that_is_not_here_falls_back_and_is_shown(self, net: Path) -> None:
        record = api.run(net, input=net.with_suffix(".npz"), unit="npu,gpu,cpu")
        (row,) = record.fallback
        assert (row["unit"], row["asked"]) == ("cpu", "npu")
        assert row["reason"]
        assert "--no-fallback" in row["do"]
        assert record.gates == ()

    def test_ruled_out_it_is_exit_5(self, net: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = ["run", str(net), "--input", str(net.with_suffix(".npz")), "--unit", "gpu", "--no-fallback"]
        assert octavo(line) == 5
        assert "exit 5" in capsys.readouterr().err
        found = api.verify(net, unit="gpu", no_fallback=True)
        assert {gate["code"] for gate in found.gates} == {5, 6}

    def test_hexagon_runs_the_file_it_compiled(self, net: Path, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime_qnn")
        record = api.export(net, runtime="onnxruntime", unit="hexagon", no_fallback=True, out=tmp_path / "out.onnx")
        assert {row["unit"] for row in record.placement} == {"npu"}
        assert Path(record.files["context"]).is_file()
        made = api.run(tmp_path / "out.onnx", input=net.with_suffix(".npz"), unit="hexagon", no_fallback=True)
        assert (made.gates, made.unit) == ((), "hexagon")
        assert made.outputs["y"]["shape"] == [1, 4]
