"""What CLI.md promises: exit codes, JSON keys, one message on standard error, and never a half-written result."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.cli import app
from octavo.core.safetensors import SafetensorsWriter
from octavo.runtimes.base import REGISTRY

TINY = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}  # fmt: skip


class Answer:
    """Exit code and both streams of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, the whole of which must be one JSON object."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    def refused(self, *words: str) -> None:
        """One message on standard error that has these words, nothing on standard output."""
        assert (self.code, self.out) == (1, "")
        assert self.err.startswith("octavo: ")
        assert self.err.count("\n") == 1
        assert "unexpected" not in self.err
        for word in words:
            assert word in self.err, self.err


Run = Callable[..., Answer]


@pytest.fixture
def octavo(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def run(*arguments: object) -> Answer:
        capfd.readouterr()
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = app.run([str(argument) for argument in arguments])
        finally:
            signal.signal(signal.SIGTERM, before)
        return Answer(code, *capfd.readouterr())

    return run


def in_a_process(*arguments: object, **options: Any) -> Answer:
    command = [sys.executable, "-m", "octavo", *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    return Answer(done.returncode, done.stdout, done.stderr)


def float_model(path: Path, **changes: Any) -> Path:
    """A llama of random weights, written without torch; `changes` are keys of its config."""
    from octavo.core.architecture import decoder_spec

    config = TINY | changes
    shapes = {name: spec.shape for name, spec in decoder_spec(config).tensors().items()}
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    writer = SafetensorsWriter(path / "model.safetensors", {name: ("F32", shape) for name, shape in shapes.items()})
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.write_rows(name, 0, random.standard_normal(shape, np.float32) * np.float32(0.1))
    writer.close()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return float_model(tmp_path / "source")


def listing(folder: Path) -> list[str]:
    """Everything under a folder, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class TestHelp:
    def test_every_verb_explains_itself(self, octavo: Run) -> None:
        overview = octavo("--help")
        assert overview.code == 0
        for verb in app.VERBS:
            assert f"\n  {verb} " in overview.out
            page = octavo(verb, "--help")
            assert page.code == 0
            assert "--json" in page.out

    def test_wrong_usage_is_2(self, octavo: Run) -> None:
        for arguments in (["foldd"], ["compress"], ["compress", "X", "--nope"], ["run", "m.gguf", "-n", "many"]):
            found = octavo(*arguments)
            assert (found.code, found.out) == (2, "")
        assert "compress" in octavo("compres").err

    def test_version(self, octavo: Run) -> None:
        import octavo as package

        assert octavo("--version").out == f"octavo {package.__version__}\n"


class TestJson:
    """The keys that others may rely on; nothing but the record on standard output."""

    def test_compress_and_inspect(self, octavo: Run, source: Path, tmp_path: Path) -> None:
        keys = {"digest", "parameters", "bytes", "bits_per_weight", "tensors", "skipped", "lineage"}
        made = octavo("compress", source, "--scheme", "w4g32", "-o", tmp_path / "x", "--json")
        assert made.code == 0
        assert keys <= made.json.keys()
        assert {"name", "shape", "scheme", "sqnr_db"} <= made.json["tensors"][0].keys()
        assert made.json["bits_per_weight"] == 8 * made.json["bytes"] / made.json["parameters"]
        assert octavo("inspect", tmp_path / "x", "--json").json == made.json
        whole = octavo("inspect", source, "--json").json
        assert keys <= whole.keys()
        assert whole["parameters"] == made.json["parameters"]
        assert whole["bits_per_weight"] == 32

    def test_export(self, octavo: Run, source: Path, tmp_path: Path) -> None:
        octavo("compress", source, "--scheme", "w4", "-o", tmp_path / "x")
        made = octavo("export", tmp_path / "x", "--runtime", "llamacpp", "-o", tmp_path / "m.gguf", "--json")
        assert {"path", "runtime", "bytes", "digest", "weights", "placement"} <= made.json.keys()
        assert made.json["weights"] == "exact"
        assert [item["as"] for item in made.json["widened"]] == ["Q8_0", "Q4_0"]
        found = octavo("inspect", tmp_path / "m.gguf", "--json").json
        assert found["digest"] == made.json["digest"]
        assert found["bytes"] == made.json["bytes"] == (tmp_path / "m.gguf").stat().st_size

    def test_run_and_verify(self, octavo: Run, built: Any, shared: Path) -> None:
        model = built("stories260K")
        for path in model.artifacts.values():
            found = octavo("run", path, "-p", "Once upon", "-n", 3, "--threads", 1, "--json")
            assert {"outputs", "text", "placement", "latency_ms"} <= found.json.keys()
            assert found.json["text"]
            assert {item["unit"] for item in found.json["placement"]} == {"cpu"}
        text = shared / "data/text/tinystories/stories_a.txt"
        options = ["--against", model.source, "--data", text, "--windows", 4, "--context", 64, "--json"]
        found = in_a_process("verify", path, *options, "--max-drop", "90%")
        assert (found.code, found.json["passed"], found.json["gates"]) == (0, True, [])
        assert {"weights", "outputs", "decoded", "accuracy", "fallback", "gates", "passed"} <= found.json.keys()
        for part in ("outputs", "decoded"):
            assert {"sqnr_db", "cosine", "kl", "agreement"} <= found.json[part].keys()
        assert {"float", "artifact", "drop", "interval", "n"} <= found.json["accuracy"].keys()
        assert found.err == ""
        found = octavo("verify", path, *options, "--max-drop", "0%", "--min-sqnr", "90")
        assert found.code == 6
        assert {gate["code"] for gate in found.json["gates"]} == {4, 6}
        found = octavo("verify", path, *options, "--max-drop", "0%")
        assert found.code == 4

    def test_doctor(self, octavo: Run) -> None:
        found = octavo("doctor", "--json")
        assert found.code == 0
        assert {item["runtime"] for item in found.json["runtimes"]} == set(REGISTRY)
        assert {item["runtime"] for item in found.json["units"]} == set(REGISTRY)

    def test_prose_goes_to_standard_output_too(self, octavo: Run, source: Path, tmp_path: Path) -> None:
        found = octavo("compress", source, "--scheme", "w4g32", "-o", tmp_path / "x")
        assert "bits per weight" in found.out
        assert found.err == ""

    def test_a_story_streams(self, octavo: Run, built: Any) -> None:
        found = octavo("run", built("stories260K").artifacts["llamacpp"], "-p", "Once upon", "-n", 4, "--threads", 1)
        assert found.out.startswith("Once upon a time")
        assert "tokens/s" in found.err


class TestRefusals:
    @pytest.fixture(autouse=True)
    def nothing_is_written(self, tmp_path: Path, octavo: Run) -> Any:
        yield
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".*"))

    @pytest.fixture
    def compress(self, octavo: Run, tmp_path: Path) -> Run:
        def run(model: object, *options: object, scheme: str = "w4g32") -> Answer:
            return octavo("compress", model, "--scheme", scheme, "-o", tmp_path / "out", *options)

        return run

    def test_names_that_are_nearly_right(self, compress: Run, octavo: Run, source: Path, tmp_path: Path) -> None:
        compress(source, scheme="w4g23").refused("w4g23", "w4g32")
        compress(source, "--embedding", "w9").refused("w9", "w8")
        compress(source, "--solver", "rnt").refused("rnt", "rtn")
        octavo("compress", source, "--scheme", "w8", "-o", tmp_path / "x")
        octavo("export", tmp_path / "x", "--runtime", "lamacpp", "-o", tmp_path / "out").refused("lamacpp", "llamacpp")
        config = source / "config.json"
        config.write_text(config.read_text().replace('"llama"', '"lama"'))
        compress(source).refused("lama", "llama")

    def test_a_group_that_does_not_divide(self, compress: Run, octavo: Run, tmp_path: Path) -> None:
        model = float_model(tmp_path / "m", intermediate_size=120)
        compress(model).refused("down_proj.weight [64, 120]", "32 does not divide 120", "--allow-skip")
        found = octavo("compress", model, "--scheme", "w4g32", "-o", tmp_path / "x", "--allow-skip", "--json").json
        assert [item["name"] for item in found["skipped"]] == ["model.layers.0.mlp.down_proj.weight"]
        assert "120" in found["skipped"][0]["reason"]

    def test_weights_that_are_no_numbers(self, compress: Run, source: Path) -> None:
        name = "model.layers.0.mlp.gate_proj.weight"
        edit_floats(source / "model.safetensors", name, {0: np.nan, 5: np.inf, 77: np.nan})
        compress(source).refused(name, "3 of 8192")

    def test_a_file_cut_short(self, compress: Run, source: Path) -> None:
        file = source / "model.safetensors"
        whole = file.read_bytes()
        for size in (0, 7, 100, len(whole) - 1):
            file.write_bytes(whole[:size])
            compress(source).refused("model.safetensors")
        file.write_bytes((1 << 60).to_bytes(8, "little") + whole[8:])
        compress(source).refused("header")

    def test_a_config_of_another_model(self, compress: Run, source: Path) -> None:
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | {"intermediate_size": 256}))
        compress(source).refused("[128, 64]", "[256, 64]")
        (source / "config.json").write_text("{")
        compress(source).refused("config.json")
        (source / "config.json").unlink()
        compress(source).refused("config.json")

    def test_paths_that_are_no_models(self, compress: Run, tmp_path: Path) -> None:
        compress(tmp_path / "nowhere").refused("no such file")
        compress("karpathy/tinyllamas").refused("hf download karpathy/tinyllamas")
        for name, words in {
            "m.h5": ["from_keras_model", "m.h5", ".tflite"], "m.pt2": ["--trust"], "m.pt": ["--trust"],
            "m.bin": ["--module"], "m.txt": ["--module"],
        }.items():  # fmt: skip
            (tmp_path / name).touch()
            compress(tmp_path / name).refused(name, *words)
        (tmp_path / "saved").mkdir()
        (tmp_path / "saved" / "saved_model.pb").touch()
        compress(tmp_path / "saved").refused("SavedModel", ".tflite")
        compress("--module=nowhere.file:make").refused("nowhere")
        compress("--module=json:loads").refused("json:loads")

    def test_a_compressed_model_is_not_compressed_again(self, compress: Run, octavo: Run, source: Path) -> None:
        octavo("compress", source, "--scheme", "w8", "-o", source.parent / "x")
        compress(source.parent / "x").refused("compressed model already")

    def test_artifacts(self, octavo: Run, tmp_path: Path) -> None:
        for name in ("m.gguf", "m.onnx"):
            octavo("run", tmp_path / name, "-p", "x").refused("no such file")
            (tmp_path / name).write_bytes(b"GGUF\x03\0\0\0")
            octavo("run", tmp_path / name, "-p", "x").refused(name)
            octavo("verify", tmp_path / name).refused(name)
            octavo("inspect", tmp_path / name).refused(name)
        octavo("run", tmp_path / "m.tar", "-p", "x").refused(".gguf, .onnx")
        octavo("export", tmp_path, "--runtime", "llamacpp", "-o", tmp_path / "out").refused("not a compressed model")

    def test_what_run_cannot_run_on(self, octavo: Run, built: Any, tmp_path: Path) -> None:
        for path in built("stories260K").artifacts.values():
            octavo("run", path).refused("--ids")
            octavo("run", path, "-p", "x", "--ids", "1").refused("one of")
            octavo("run", path, "-p", "").refused("empty")
            octavo("run", path, "--ids", "1,two").refused("1,two")
            octavo("run", path, "--ids", "1,99999", "-n", 1).refused()
            octavo("run", path, "--ids", "1,-2", "-n", 1).refused("-2")
            octavo("run", path, "--input", tmp_path / "x.npz").refused("x.npz")

    def test_gates_without_what_they_measure(self, octavo: Run, built: Any, tmp_path: Path) -> None:
        model = built("stories260K")
        path = model.artifacts["llamacpp"]
        octavo("verify", path, "--max-drop", "1%").refused("--max-drop", "--data")
        octavo("verify", path, "--min-sqnr", "10").refused("--min-sqnr", "--data")
        octavo("verify", path, "--data", "x.txt").refused("--against")
        octavo("verify", path, "--data", tmp_path / "x.txt", "--against", model.source).refused("x.txt")
        octavo("verify", path, "--max-drop", "lots").refused("'lots'")
        out = ["-o", tmp_path / "out"]
        octavo("fit", model.source, *out, "--max-drop", "1%").refused("--max-drop", "--data")
        octavo("fit", model.source, *out, "--slice", "2XB").refused("'2XB'")
        octavo("fit", model.source, *out, "--scheme", "w8", "--scheme", "w5").refused("w5")
        octavo("fit", model.source, *out, "--scheme", "w8", "--runtime", "lcpp").refused("lcpp")
        octavo("fit", model.source, *out, "--device", "phone").refused("phone")
        octavo("fit", model.source, *out, "--scheme", "w4g32").refused("does not divide 172")


class TestOutputs:
    def test_what_exists_stays_without_force(self, octavo: Run, source: Path, tmp_path: Path) -> None:
        out, file = tmp_path / "out", tmp_path / "m.gguf"
        octavo("compress", source, "--scheme", "w8", "-o", out)
        octavo("export", out, "--runtime", "llamacpp", "-o", file)
        before = {path: path.read_bytes() for path in [*out.glob("*.*"), file]}
        octavo("compress", source, "--scheme", "w4", "-o", out).refused("exists already", "--force")
        octavo("export", out, "--runtime", "llamacpp", "-o", file).refused("exists already", "--force")
        assert all(path.read_bytes() == data for path, data in before.items())
        assert octavo("compress", source, "--scheme", "w4", "-o", out, "--force").code == 0
        assert octavo("export", out, "--runtime", "llamacpp", "-o", file, "--force").code == 0
        assert octavo("inspect", file, "--json").json["digest"] == octavo("inspect", out, "--json").json["digest"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "out", "source"]

    def test_a_failure_keeps_the_old_one(self, octavo: Run, source: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        octavo("compress", source, "--scheme", "w8", "-o", out)
        before = octavo("inspect", out, "--json").json
        edit_floats(source / "model.safetensors", "lm_head.weight", {0: np.nan})
        octavo("compress", source, "--scheme", "w4", "-o", out, "--force").refused("lm_head.weight")
        assert octavo("inspect", out, "--json").json == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]

    def test_a_folder_of_somebody_elses_is_never_replaced(self, octavo: Run, source: Path, tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        (home / "thesis.txt").write_text("years of work")
        octavo("compress", source, "--scheme", "w8", "-o", home, "--force").refused("did not make")
        octavo("fit", source, "--scheme", "w8", "-o", home, "--force").refused("did not make")
        assert listing(home) == ["thesis.txt"]

    def test_a_full_disk(self, source: Path, tmp_path: Path) -> None:
        """A limit on file sizes fails writes with EFBIG, as a full disk does with ENOSPC."""

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

        out = tmp_path / "out"
        found = in_a_process("compress", source, "--scheme", "w8", "-o", out, preexec_fn=limit)
        found.refused(str(out), "too large")
        assert listing(tmp_path) == ["source", "source/config.json", "source/model.safetensors"]
        assert in_a_process("compress", source, "--scheme", "w8", "-o", out).code == 0
        for runtime, suffix in (("llamacpp", "gguf"), ("onnxruntime", "onnx")):
            file = tmp_path / f"m.{suffix}"
            found = in_a_process("export", out, "--runtime", runtime, "-o", file, preexec_fn=limit)
            found.refused(str(file), "too large")
            assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]

    def test_ctrl_c(self, tmp_path: Path) -> None:
        """In the middle of writing, with 130 M weights to go: nothing stays."""
        changes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16}
        source = float_model(tmp_path / "source", **changes, num_key_value_heads=16)
        command = [sys.executable, "-m", "octavo", "compress", source, "--scheme", "w4g32", "-o", tmp_path / "out"]
        process = subprocess.Popen(
            [*map(str, command), "--threads", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.*.partial/tensors.safetensors")):
            assert process.poll() is None, "it ended before it was interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert err.count("\n") == 1
        assert "interrupted" in err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


class TestLightness:
    def test_help_and_inspect_load_no_heavy_library(self, built: Any) -> None:
        path = built("stories260K").artifacts["llamacpp"]
        heavy = "('torch', 'transformers', 'onnx', 'onnxruntime', 'xllamacpp', 'numba', 'tokenizers')"
        for arguments in (["--help"], ["inspect", str(path), "--json"]):
            code = (
                f"import sys; from octavo.cli import app; code = app.run({arguments!r}); "
                f"sys.exit(f'{{code}} ' + str([name for name in {heavy} if name in sys.modules]))"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert done.stderr == "0 []\n"

    @pytest.mark.parametrize("buffered", [True, False])
    def test_a_reader_that_leaves_early_is_no_error(self, built: Any, buffered: bool) -> None:
        path = built("stories260K").directory
        command = [sys.executable, "-m", "octavo", "inspect", str(path), "--json"]
        environment = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait(60) in (120, 141)  # 120: Python's own, where all was buffered until its end


def edit_floats(file: Path, name: str, values: dict[int, float]) -> None:
    """Overwrite single float32 values of a tensor in a .safetensors."""
    from octavo.core.safetensors import SafetensorsFile

    with SafetensorsFile(file) as opened:
        offset = opened.entries[name].offset
    descriptor = os.open(file, os.O_RDWR)
    for index, value in values.items():
        os.pwrite(descriptor, np.float32(value).tobytes(), offset + 4 * index)
    os.close(descriptor)
