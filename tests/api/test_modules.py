"""Networks instead of language models: from a module, from a factory on the command line, from a trusted .pt2."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

import octavo  # noqa: E402
from octavo.cli import app  # noqa: E402
from octavo.errors import BadInput, Refused  # noqa: E402
from octavo.records import exit_code  # noqa: E402

FILE = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 5)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))

def make():
    return Tiny().eval(), (torch.zeros(1, 64),)

def training():
    return Tiny(), (torch.zeros(1, 64),)

def broken():
    raise RuntimeError("no such weights")
"""


class Cnn(nn.Module):
    """A convolution, a depthwise one, a batch norm and a head: 10 classes from [n, 3, 12, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.AvgPool2d(2)
        )
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, image: Any) -> Any:
        return self.head(self.body(image).flatten(1))


class Two(nn.Module):
    """Two inputs that must not be mixed up, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(32, 8), nn.Linear(32, 8)

    def forward(self, first: Any, second: Any) -> dict[str, Any]:
        return {"difference": self.left(first) - self.right(second), "norm": second.square().sum(1, keepdim=True)}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def cnn() -> nn.Module:
    module = Cnn()
    module.body[1].running_mean.uniform_(-1, 1)
    module.body[1].running_var.uniform_(0.5, 2)
    return module.eval()


def labelled(module: nn.Module, path: Path, shape: tuple[int, ...], n: int) -> Path:
    """n random samples whose labels are what the module itself says, but for every eighth."""
    x = torch.randn(n, *shape)
    with torch.no_grad():
        y = torch.cat([module(x[i : i + 1]) for i in range(n)]).argmax(1).numpy()
    y[::8] = (y[::8] + 1) % 5
    np.savez(path, x=x.numpy(), y=y)
    return path


@pytest.mark.parametrize("scheme", ["w8", "w4"])
def test_a_cnn_is_folded_exported_run_and_verified(cnn: nn.Module, scheme: str, tmp_path: Path) -> None:
    example = (torch.zeros(1, 3, 12, 12),)
    made = octavo.compress(cnn, scheme=scheme, out=tmp_path / "x", example_inputs=example)
    schemes = {item.name: item.scheme for item in made.tensors}
    assert schemes["body.0.weight"] == schemes["body.3.weight"] == schemes["head.weight"] == scheme
    assert not any(name.startswith("body.1.") for name in schemes)  # the normalisation is in body.0
    assert "folded" in made.lineage[0]["notes"][0]
    path = tmp_path / "m.onnx"
    assert octavo.export(tmp_path / "x", runtime="onnxruntime", out=path).weights == "exact"

    data = labelled(cnn, tmp_path / "data.npz", (3, 12, 12), 64)
    record = octavo.verify(path, against=cnn, example_inputs=example, data=data, max_drop="25%", threads=1)
    found = record.to_dict()
    assert found["weights"] == "exact"
    assert found["accuracy"]["metric"] == "top-1"
    assert found["accuracy"]["float"] == 56 / 64
    assert found["accuracy"]["n"] == 64
    assert found["outputs"]["sqnr_db"] > {"w8": 30, "w4": 10}[scheme]
    assert found["decoded"]["sqnr_db"] > {"w8": 40, "w4": 10}[scheme]  # without the runtime's int8 activations
    assert found["passed"]

    one = tmp_path / "one.npz"
    np.savez(one, image=np.load(data)["x"][:1])
    record = octavo.run(path, input=one, output=tmp_path / "y.npz", threads=1)
    assert record.outputs["output"]["shape"] == [1, 10]
    assert {item["unit"] for item in record.placement} == {"cpu"}
    with torch.no_grad():
        right = cnn(torch.from_numpy(np.load(one)["image"])).numpy()
    assert np.abs(np.load(tmp_path / "y.npz")["output"] - right).max() < {"w8": 0.05, "w4": 0.7}[scheme]


def test_llamacpp_runs_no_graphs(cnn: nn.Module, tmp_path: Path) -> None:
    octavo.compress(cnn, scheme="w8", out=tmp_path / "x", example_inputs=(torch.zeros(1, 3, 12, 12),))
    with pytest.raises(Refused, match=r"not operator graphs.*onnxruntime"):
        octavo.export(tmp_path / "x", runtime="llamacpp", out=tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_inputs_go_by_name_and_unlabelled_outputs_have_no_kl(tmp_path: Path) -> None:
    module, example = Two().eval(), (torch.zeros(4, 32), torch.zeros(4, 32))
    octavo.compress(module, scheme="w8", out=tmp_path / "x", example_inputs=example)
    path, data = tmp_path / "m.onnx", tmp_path / "data.npz"
    octavo.export(tmp_path / "x", runtime="onnxruntime", out=path)
    random = np.random.default_rng(0)
    arrays = {name: random.normal(size=(12, 32)).astype(np.float32) for name in ("second", "first")}
    np.savez(data, **arrays)
    record = octavo.verify(path, against=module, example_inputs=example, data=data)
    assert record.outputs is not None
    assert record.outputs["sqnr_db"] > 35
    assert record.outputs["kl"] is record.outputs["agreement"] is record.accuracy is None
    np.savez(data, **{name: array[:4] for name, array in arrays.items()})
    outputs = octavo.run(path, input=data, output=tmp_path / "y.npz").outputs
    assert {name: item["shape"] for name, item in outputs.items()} == {"difference": [4, 8], "norm": [4, 1]}
    right = np.square(arrays["second"][:4]).sum(1, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["norm"], right, rtol=1e-5)

    for wrong, words in {
        "first": {"first": arrays["first"]},
        "captured for 4": {name: array[:6] for name, array in arrays.items()},
        r"'second' is \[4, 31\]": {"first": arrays["first"][:4], "second": arrays["second"][:4, :31]},
    }.items():
        np.savez(data, **words)
        with pytest.raises(BadInput, match=wrong):
            octavo.verify(path, against=module, example_inputs=example, data=data)
    with pytest.raises(BadInput, match="second"):
        octavo.run(path, input=data)


def test_without_example_inputs_or_in_training_mode(cnn: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="example_inputs"):
        octavo.compress(cnn, scheme="w8", out=tmp_path / "x")
    with pytest.raises(BadInput, match=r"\.eval\(\)"):
        octavo.compress(cnn.train(), scheme="w8", out=tmp_path / "x", example_inputs=(torch.zeros(1, 3, 12, 12),))
    with pytest.raises(Refused, match=r"body\.0\.weight"):
        octavo.compress(cnn.eval(), scheme="w4g32", out=tmp_path / "x", example_inputs=(torch.zeros(1, 3, 12, 12),))
    assert not list(tmp_path.iterdir())


class TestCommandLine:
    @pytest.fixture
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        """A folder with a package, its weights and data, as the current directory; imports are forgotten after."""
        package = tmp_path / "octavo_test_nets"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "small.py").write_text(FILE)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", ["", *sys.path])
        from octavo_test_nets import small

        module, _ = small.make()
        save_file(module.state_dict(), tmp_path / "w.safetensors")
        labelled(module, tmp_path / "data.npz", (64,), 40)
        yield module
        for name in [name for name in sys.modules if name.startswith("octavo_test_nets")]:
            del sys.modules[name]

    def octavo(self, capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
        capfd.readouterr()
        code = app.run([*arguments, "--json"])
        out, err = capfd.readouterr()
        return code, json.loads(out) if out else None, err

    def test_a_factory_with_its_weights(self, home: Any, capfd: pytest.CaptureFixture[str]) -> None:
        given = ("--module", "octavo_test_nets.small:make", "--weights", "w.safetensors")
        code, record, _ = self.octavo(capfd, "compress", *given, "--scheme", "w4g32", "-o", "x")
        assert code == 0
        assert record["parameters"] == sum(value.numel() for value in home.parameters())
        code, record, _ = self.octavo(capfd, "export", "x", "--runtime", "onnxruntime", "-o", "m.onnx")
        assert (code, record["weights"]) == (0, "exact")
        code, record, _ = self.octavo(
            capfd, "verify", "m.onnx", *given, "--data", "data.npz", "--max-drop", "50%", "--compressed", "x"
        )
        assert (code, record["weights"]) == (0, "exact")
        assert record["accuracy"]["float"] == 35 / 40

    def test_what_a_factory_can_get_wrong(self, home: Any, capfd: pytest.CaptureFixture[str]) -> None:
        save_file({"first.weight": torch.zeros(32, 64)}, "less.safetensors")
        torch.save(home.state_dict(), "w.pt")
        for factory, weights, word in (
            ("make", "less.safetensors", "3 tensors missing"),
            ("make", "w.pt", ".safetensors"),
            ("make", "none.safetensors", "none.safetensors"),
            ("training", "w.safetensors", ".eval()"),
            ("broken", "w.safetensors", "no such weights"),
            ("absent", "w.safetensors", "absent"),
        ):
            given = ("--module", f"octavo_test_nets.small:{factory}", "--weights", weights)
            code, _, err = self.octavo(capfd, "compress", *given, "--scheme", "w8", "-o", "x")
            assert code == 1
            assert word in err
            assert err.startswith("octavo: ")
            assert err.count("\n") == 1
            assert not os.path.exists("x")

    def test_a_trusted_pt2(self, home: Any, capfd: pytest.CaptureFixture[str]) -> None:
        torch.export.save(torch.export.export(home, (torch.zeros(1, 64),)), "net.pt2")
        code, _, err = self.octavo(capfd, "compress", "net.pt2", "--scheme", "w8", "-o", "x")
        assert code == 1
        assert "--trust" in err
        code, _, _ = self.octavo(capfd, "compress", "net.pt2", "--scheme", "w8", "-o", "x", "--trust")
        assert code == 0
        self.octavo(capfd, "export", "x", "--runtime", "onnxruntime", "-o", "m.onnx")
        code, record, _ = self.octavo(
            capfd, "verify", "m.onnx", "--against", "net.pt2", "--trust", "--data", "data.npz", "--min-sqnr", "30"
        )
        assert (code, record["weights"], record["gates"]) == (0, "exact", [])


def test_a_gate_on_a_network(cnn: nn.Module, tmp_path: Path) -> None:
    example = (torch.zeros(1, 3, 12, 12),)
    octavo.compress(cnn, scheme="ternary", out=tmp_path / "x", example_inputs=example)
    octavo.export(tmp_path / "x", runtime="onnxruntime", out=tmp_path / "m.onnx")
    data = labelled(cnn, tmp_path / "data.npz", (3, 12, 12), 64)
    record = octavo.verify(tmp_path / "m.onnx", against=cnn, example_inputs=example, data=data, max_drop=0.0)
    assert exit_code(record.gates) == 4
    assert record.weights == "exact"
