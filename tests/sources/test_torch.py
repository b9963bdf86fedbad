"""Graphs to JSON and back: the same outputs, nothing evaluated, roles that name the output channel's axis."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from octavo.core.model import Program, canonical_json  # noqa: E402
from octavo.errors import BadInput  # noqa: E402
from octavo.sources.torch import capture, describe, load_graph, rebuild  # noqa: E402


class Convolutions(nn.Module):
    """Small CNN: BatchNorm, a depthwise convolution, pooling, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.AvgPool2d(2)
        )
        self.head = nn.Linear(8 * 9, 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x).flatten(1))


class Tied(nn.Module):
    """Embedding and head share a weight; a buffer, a scalar and a lifted constant take part."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("steps", torch.arange(11), persistent=False)
        self.factor = torch.tensor(0.5)

    def forward(self, ids: Any) -> Any:
        return {"logits": self.head(self.embedding(ids)) * self.factor + self.steps + torch.ones(11)}


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 4))


def program_of(module: nn.Module, *inputs: Any, dynamic: Any = None) -> tuple[Program, dict[str, Any], dict[str, str]]:
    program, tensors = describe(capture(module.eval(), inputs, dynamic))
    through_json = Program("graph", json.loads(canonical_json(program.body)))
    return through_json, {n: v for n, v, _ in tensors}, {n: role for n, _, role in tensors}


def test_mlp_comes_back() -> None:
    module, x = mlp(), torch.randn(3, 6)
    program, arrays, roles = program_of(module, x)
    assert torch.equal(load_graph(program, arrays)(x), module(x))
    assert roles == {"0.weight": "matmul", "0.bias": "other", "2.weight": "matmul", "2.bias": "other"}


def test_cnn_with_batchnorm_comes_back_and_takes_another_batch() -> None:
    module = Convolutions()
    module.body[1].running_mean.uniform_(-1, 1)
    program, arrays, roles = program_of(module, torch.randn(2, 3, 8, 8), dynamic=({0: torch.export.Dim("n")},))
    x = torch.randn(5, 3, 8, 8)
    assert torch.allclose(load_graph(program, arrays)(x), module(x), atol=1e-6)
    assert roles["body.0.weight"] == roles["body.3.weight"] == "conv"
    assert roles["head.weight"] == "matmul"
    assert roles["body.1.running_mean"] == "other"


def test_tied_weights_are_one_tensor_and_constants_stay_in_the_program() -> None:
    module, ids = Tied(), torch.tensor([[1, 5, 2]])
    program, arrays, roles = program_of(module, ids)
    assert [role for role in roles.values() if role == "embedding"] == ["embedding"]
    assert len([v for v in arrays.values() if v.shape == (11, 6)]) == 1
    assert torch.equal(load_graph(program, arrays)(ids)["logits"], module(ids)["logits"])


def test_changed_weights_change_the_output() -> None:
    program, arrays, _ = program_of(mlp(), torch.randn(3, 6))
    arrays["2.bias"] = arrays["2.bias"] + 1
    zeros = {name: np.zeros_like(value) for name, value in arrays.items()} | {"2.bias": arrays["2.bias"]}
    assert torch.equal(load_graph(program, zeros)(torch.randn(3, 6))[0], torch.from_numpy(arrays["2.bias"]))


def test_weights_whose_rows_are_not_output_channels_are_other() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.right = nn.Parameter(torch.randn(4, 6))  # x @ right: axis 1 is the output channel
            self.transposed = nn.ConvTranspose1d(4, 8, 3)  # axis 0 is the input channel
            self.both = nn.Parameter(torch.randn(4, 4))
            self.plain = nn.Parameter(torch.randn(5, 4))

        def forward(self, x: Any) -> Any:
            both = nn.functional.linear(x, self.both) @ self.both
            return both @ self.right, self.transposed(x.transpose(1, 2)), x @ self.plain.t()

    roles = program_of(Odd(), torch.randn(2, 3, 4))[2]
    assert roles == {
        "right": "other", "both": "other", "transposed.weight": "other", "transposed.bias": "other", "plain": "matmul",
    }  # fmt: skip


def test_equal_modules_give_equal_programs_without_paths() -> None:
    one, two = (program_of(mlp(), torch.randn(3, 6))[0] for _ in range(2))
    assert one.digest == two.digest
    assert "test_torch" not in json.dumps(one.body)
    assert ".py" not in json.dumps(one.body)


def test_without_weights_the_program_takes_no_memory() -> None:
    program, _, _ = program_of(mlp(), torch.randn(3, 6))
    assert all(value.untyped_storage().nbytes() == 4 for value in rebuild(program).state_dict.values())


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("target", "torch.ops.aten.from_file.default"),
        ("target", "torch.load"),
        ("target", "torch.utils.cpp_extension.load"),
        ("expr_str", "__import__('os').system('x')"),
        ("guards_code", ["print(1)"]),
        ("in_spec", '[1, {"type": "os.system", "context": "null", "children_spec": []}]'),
    ],
)
def test_a_program_that_would_run_code_is_refused(where: str, what: Any) -> None:
    program, arrays, _ = program_of(mlp(), torch.randn(3, 6), dynamic=({0: torch.export.Dim("n")},))
    body = copy.deepcopy(program.body)

    def edit(value: Any) -> bool:
        if isinstance(value, dict):
            if where in value:
                value[where] = what
                return True
            return any(edit(item) for item in value.values())
        return isinstance(value, list) and any(edit(item) for item in value)

    assert edit(body)
    with pytest.raises(BadInput):
        load_graph(Program("graph", body), arrays)


def test_training_mode_mutation_half_precision_and_missing_tensors_are_refused() -> None:
    with pytest.raises(BadInput, match="training mode"):
        capture(mlp().train(), (torch.randn(3, 6),))
    with pytest.raises(BadInput, match=r"0\.weight is torch.float16"):
        describe(capture(mlp().eval().half(), (torch.randn(3, 6).half(),)))
    program, arrays, _ = program_of(mlp(), torch.randn(3, 6))
    with pytest.raises(BadInput, match=r"2\.weight is missing"):
        rebuild(program, {name: value for name, value in arrays.items() if name != "2.weight"})
    with pytest.raises(BadInput, match="damaged"):
        rebuild(Program("graph", {"exported": {}, "constants": {}, "aliases": {}, "unused": {}}))


def test_the_keyboard_network_comes_back() -> None:
    model = pytest.importorskip("examples.keyboard.model")
    config = model.Config(vocabulary=64, width=16, hidden=16)
    module, inputs = model.create(config)
    program, arrays, roles = program_of(module, *inputs)
    assert torch.allclose(load_graph(program, arrays)(*inputs), module(*inputs), atol=1e-6)
    assert [name for name, role in roles.items() if role == "embedding"] in (["embedding.weight"], ["head.weight"])


def test_trusted_files_are_opened_only_when_trusted(tmp_path: Any) -> None:
    from safetensors.numpy import load_file

    from octavo.workers.local import Worker

    module, x = mlp().eval(), torch.randn(3, 6)
    torch.export.save(capture(module, (x,)), tmp_path / "m.pt2")
    torch.save(module.state_dict(), tmp_path / "m.pt")
    target = "octavo.sources.trusted:convert"
    with Worker() as worker:
        with pytest.raises(BadInput, match="trust"):
            worker.call(target, {"path": str(tmp_path / "m.pt2"), "directory": str(tmp_path / "a")})
        made = worker.call(target, {"path": str(tmp_path / "m.pt2"), "directory": str(tmp_path / "a"), "trust": True})
        plain = worker.call(target, {"path": str(tmp_path / "m.pt"), "directory": str(tmp_path / "b"), "trust": True})
    with open(made.result["program"]) as file:
        program = Program(**json.load(file))
    assert torch.equal(load_graph(program, load_file(made.result["weights"]))(x), module(x))
    assert np.array_equal(load_file(plain.result["weights"])["0.weight"], module[0].weight.detach().numpy())
