"""`octavo.plan` and `octavo plan`: the contract's keys, exit codes, sentences, refusals; and bytes that come true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.api.plan import plan
from octavo.errors import BadInput
from octavo.records import PlanRecord, exit_code

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plan"))
from planner_models import LLAMA_3B, LLAMA_8B, SMALL, device, llama, network

MEMORY = {"weights", "kv_cache", "activations", "runtime", "total"}


def octavo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "octavo", "plan", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories with nothing but a config.json, as published."""
    home = tmp_path_factory.mktemp("configs")
    for name, config in (("3b", LLAMA_3B), ("8b", LLAMA_8B)):
        (home / name).mkdir()
        (home / name / "config.json").write_text(json.dumps(config))
    return {name: home / name for name in ("3b", "8b")}


@pytest.mark.parametrize(("scheme", "count"), [("w4", 3_500_000_000), ("fp16", 14_000_000_000)])
def test_a_bare_size_counts_exactly_and_exits_by_whether_it_fits(scheme, count):
    done = octavo("--params", "7B", "--scheme", scheme, "--device", "pixel-8", "--json")
    record = json.loads(done.stdout)
    assert {c["memory"]["weights"] for c in record["candidates"] if c["memory"]} == {count}
    assert done.returncode == (3 if record["best"] is None else 0)
    out = octavo("--params", "7B", "--scheme", scheme, "--device", "pixel-8", "--slice", "4GB", "--json")
    assert out.returncode == 3
    assert json.loads(out.stdout)["best"] is None
    assert [gate["code"] for gate in json.loads(out.stdout)["gates"]] == [3]
    fits = octavo("--params", "7B", "--scheme", scheme, "--device", "pixel-8", "--slice", "30GB", "--json")
    assert fits.returncode == 0
    assert json.loads(fits.stdout)["best"]["scheme"] == scheme


@pytest.mark.parametrize(("params", "scheme", "verdict"), [
    ("1.5B", "fp16", False), ("1.5B", "w4", True), ("7B", "w8", False), ("7B", "w4", False),
])  # fmt: skip
def test_two_gigabytes_less_thirty_percent(params, scheme, verdict):
    record = plan(params=params, scheme=scheme, slice="2GB", reserve="30%", device=device())
    assert record.setting["granted"]["value"] == pytest.approx(1.4e9)
    assert record.slice_bytes == 2_000_000_000
    assert (record.best is not None) is verdict
    assert "1.4 GB" in record.answer
    assert record.answer.startswith("Yes" if verdict else "No")


@pytest.mark.parametrize("where", ["galaxy-s24", "pixel-8"])
@pytest.mark.parametrize("model", ["3b", "8b"])
def test_a_real_config_gives_a_curve_intervals_and_a_sentence(configs, model, where):
    record = plan(configs[model], device=where)
    assert record.context == 4096
    assert record.curve is not None
    points = record.curve["points"]
    assert [p["context"] for p in points] == [2**n for n in range(9, 18)]
    assert [p["total"] for p in points] == sorted(p["total"] for p in points)
    fits = [p["fits"] for p in points]
    assert fits == sorted(fits, reverse=True)
    longest = record.curve["largest_context"]
    assert all(p["fits"] == (p["context"] <= longest) for p in points)
    for row in record.candidates:
        if row["fits"]:
            speed = row["tokens_per_second"]
            assert speed["low"] < speed["value"] < speed["high"]
            assert row["energy_j"]["low"] < row["energy_j"]["high"]
    if model == "3b":
        assert record.best is not None
        assert record.answer.startswith("Yes")
        assert "tokens/s" in record.answer
        assert exit_code(record.gates) == 0
    elif record.best is None:
        assert record.best is None
        assert record.answer.startswith("No: even ")
        assert "It would fit with" in record.answer
        assert "0.018 tokens/s" in record.answer
        assert exit_code(record.gates) == 3


def test_the_record_has_the_contracts_keys(configs):
    record = plan(configs["3b"], device="galaxy-s24", context=2048).to_dict()
    assert {"model", "device", "context", "slice_bytes", "candidates", "best"} <= set(record)
    assert record["device"] == "galaxy-s24"
    assert record["curve"] is None  # a context was given
    assert isinstance(record["slice_bytes"], int)
    for row in record["candidates"]:
        assert {"scheme", "runtime", "unit", "fits", "reason", "memory"} <= set(row)
        if row["memory"]:
            assert set(row["memory"]) >= MEMORY
            assert all(isinstance(row["memory"][key], int) for key in MEMORY)
        if row["fits"]:
            for key in ("tokens_per_second", "time_to_first_token_ms", "energy_j"):
                assert {"value", "low", "high", "kind"} <= set(row[key])
            assert "sustained" in row
    assert "latency_ms" in plan(network(), device=device(), scheme="fp32").candidates[0]


def test_several_devices_keep_their_own_plans(configs):
    record = plan(configs["3b"], device=["galaxy-s24", "pixel-8", "galaxy-s24"], context=1024)
    assert record.device == ("galaxy-s24", "pixel-8")
    assert [one.device for one in record.devices] == ["galaxy-s24", "pixel-8"]
    assert {row["device"] for row in record.candidates} == {"galaxy-s24", "pixel-8"}
    assert all(isinstance(one, PlanRecord) and not one.devices for one in record.devices)
    json.loads(record.to_json())


def test_all_devices_are_planned():
    record = plan(params="1B", scheme="w4", all_devices=True)
    assert len(record.devices) >= 20
    assert "host" in record.device


def test_one_that_fits_somewhere_is_no_failure():
    small, large = device(), device(name="large", slice_bytes=device().ram)
    record = plan(params="10B", scheme="w4", device=[small, large], reserve=0)
    assert [one.best is not None for one in record.devices] == [False, True]
    assert record.best is not None
    assert record.best["device"] == "large"
    assert exit_code(record.gates) == 0


@pytest.mark.parametrize(("options", "message"), [
    ({"slice": 0}, "at least 1 byte"),
    ({"slice": "2 parsecs"}, "no size"),
    ({"reserve": "100%"}, "nothing of the slice"),
    ({"reserve": "-5%"}, "negative"),
    ({"context": -1}, "at least 1 position"),
    ({"context": 4096}, "at most 2,048"),
    ({"prompt": 0}, "prompt"),
    ({"prompt": 2049}, "prompt"),
    ({"kv": "q8"}, "Nearest: .*q8_0"),
    ({"scheme": "w5g32"}, "Nearest"),
    ({"runtime": "llamacp"}, "Nearest: .*llamacpp"),
    ({"unit": "nmu"}, "Nearest: .*npu"),
    ({"device": "pixel8"}, "Nearest: .*pixel-8"),
    ({"device": ()}, "No device"),
    ({"embedding": "w8", "head": "w4"}, "one tied tensor"),
])  # fmt: skip
def test_impossible_values_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        plan(llama(SMALL), **{"device": device(), **options})


@pytest.mark.parametrize("option", [{"context": 512}, {"kv": "f16"}, {"prompt": 5}])
def test_a_network_has_no_cache_to_set(option):
    with pytest.raises(BadInput, match=f"--{next(iter(option))} .*no language model"):
        plan(network(), device=device(), **option)


def test_a_finished_onnx_file_is_not_said_to_need_folding(tmp_path):
    onnx = pytest.importorskip("onnx")
    codes = onnx.numpy_helper.from_array(np.ones((8, 4), np.int8), "codes")
    scale = onnx.numpy_helper.from_array(np.float32(0.5), "scale")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, size]) for name, size in (("x", 8), ("y", 4))]
    nodes = [onnx.helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"]),
             onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]  # fmt: skip
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [codes, scale]))
    onnx.save(model, tmp_path / "finished.onnx")
    record = plan(tmp_path / "finished.onnx", device=device())
    assert record.best == {"scheme": "as is", "runtime": "onnxruntime", "unit": "cpu"}
    assert record.candidates[0]["exported_today"]
    assert "fold" not in record.answer


def test_a_model_and_a_size_are_one_too_many(configs):
    for options in ({"model": configs["3b"], "params": "7B"}, {}):
        with pytest.raises(BadInput, match="one of the two"):
            plan(**options, device="pixel-8")
    with pytest.raises(BadInput, match="7 elephants"):
        plan(params="7 elephants", device="pixel-8")


def test_the_prose_answers_first_and_explains_every_number(configs):
    done = octavo(str(configs["3b"]), "--device", "galaxy-s24", "--explain")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert text.startswith("Yes: ")
    for part in ("Over context", "The longest context that fits", "Where the numbers come from", "judgement",
                 "energy bottom-up", "energy top-down", "order: what fits with room"):  # fmt: skip
        assert part in text
    assert octavo("--params", "7B", "--scheme", "w9", "--device", "pixel-8").returncode == 1


def tensor_bytes(path: Path) -> int:
    """Bytes that the tensors take in a GGUF, each padded to the file's alignment; read with gguf-py's own reader."""
    from gguf import GGUFReader

    return sum(-(-int(tensor.n_bytes) // 32) * 32 for tensor in GGUFReader(path).tensors)


def initializer_bytes(path: Path) -> int:
    """Bytes of the codes, scales and floats of the model's own weights in an ONNX file."""
    import onnx

    found = onnx.load(path, load_external_data=False).graph.initializer
    sizes = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.UINT8: 1}
    total = 0
    for item in found:
        if item.name.endswith((".codes", ".scale", ".weight")):
            count = 1
            for size in item.dims:
                count *= size
            total += count * sizes[item.data_type]
    return total


def test_the_weights_planned_are_the_weights_written(built, tmp_path):
    pytest.importorskip("gguf")
    import octavo as product

    for name in ("stories260K", "stories3M"):
        made = built(name)
        found: dict[str, Any] = {
            row["runtime"]: row["memory"]["weights"]
            for row in plan(made.source, scheme="w4g32", unit="cpu", runtime=list(made.artifacts), device=device(),
                            allow_skip=True, context=256).candidates
        }  # fmt: skip
        assert found["llamacpp"] == tensor_bytes(made.artifacts["llamacpp"])
        assert found["onnxruntime"] == initializer_bytes(made.artifacts["onnxruntime"])
    source = built("stories3M").source
    product.compress(source, scheme="w8", out=tmp_path / "w8")
    product.export(tmp_path / "w8", runtime="llamacpp", out=tmp_path / "w8.gguf")
    (row,) = plan(source, scheme="w8", runtime="llamacpp", device=device(), context=256).candidates
    assert row["memory"]["weights"] == tensor_bytes(tmp_path / "w8.gguf")
    (stored,) = plan(tmp_path / "w8", runtime="llamacpp", device=device(), context=256).candidates
    assert (stored["scheme"], stored["memory"]["weights"]) == ("as is", row["memory"]["weights"])
    (file,) = plan(tmp_path / "w8.gguf", runtime="llamacpp", device=device(), context=256).candidates
    assert file["scheme"] == "as is"
    assert file["memory"]["weights"] == pytest.approx(row["memory"]["weights"], rel=1e-3)


def test_the_plan_refuses_what_the_export_would(stories260k):
    (row,) = plan(stories260k, scheme="w8", runtime="llamacpp", device=device(), context=256).candidates
    assert row["fits"] is False
    assert "rows of a multiple of 32" in row["reason"]
