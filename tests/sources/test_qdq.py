"""The static form of a program, against PT2E's own conversion of the same scales and against plain arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from octavo.api.programs import ModelPrograms  # noqa: E402
from octavo.core.model import Edge  # noqa: E402
from octavo.core.tensor import QuantizedTensor  # noqa: E402
from octavo.errors import BadInput  # noqa: E402
from octavo.sources.qdq import static, valued  # noqa: E402
from tests.static_models import convnet, simulated, static_model  # noqa: E402

SHAPE = (1, 3, 16, 16)


@pytest.fixture(scope="module")
def model():
    return static_model(convnet(), (torch.zeros(SHAPE),))


def inputs(count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal(SHAPE).astype(np.float32) for _ in range(count)]


def test_codes_and_fake_quantised_weights_give_the_same_numbers(model):
    programs = ModelPrograms(model)
    codes, fake = programs.static("codes")[0], programs.static("fake")[0]
    for x in inputs():
        assert torch.equal(codes(torch.from_numpy(x)), fake(torch.from_numpy(x)))


def test_the_output_lies_on_its_edge_s_grid(model):
    last = model.edges[-1]
    found = simulated(model)(inputs(1)[0]) / np.float32(last.scale)
    assert np.abs(found - np.rint(found)).max() < 1e-3
    assert (np.rint(found) + last.zero_point).min() >= -128


def test_it_is_near_the_float_graph_and_not_equal_to_it(model):
    run, float_module = simulated(model), convnet()
    for x in inputs():
        with torch.inference_mode():
            right = float_module(torch.from_numpy(x)).numpy()
        error = np.abs(run(x) - right).max() / np.abs(right).max()
        assert 0 < error < 0.2  # of random weights and outputs near zero


def test_every_quantised_weight_is_held_as_integers(model):
    module, _ = ModelPrograms(model).static("codes")
    held = dict(module.named_buffers())
    for record in model.tensors:
        if record.quantized:
            value = model.tensor(record.name)
            assert isinstance(value, QuantizedTensor)
            assert held[record.name].dtype == torch.int8
            assert np.array_equal(held[record.name].numpy(), value.codes)


def test_the_valued_graph_has_decoded_weights_and_no_quantisation(model):
    module, examples = ModelPrograms(model).valued()
    assert not any("quantize" in str(node.target) for node in module.graph.nodes)
    assert examples[0].shape == SHAPE
    value = model.tensor("first.weight")
    assert np.array_equal(module.get_parameter("first.weight").detach().numpy(), value.dequantize())


def test_both_forms_can_be_exported_again(model):
    for module, examples in (ModelPrograms(model).static("codes"), ModelPrograms(model).static("fake")):
        again = torch.export.export(module, examples).module()
        x = torch.from_numpy(inputs(1)[0])
        assert torch.equal(again(x), module(x))


def test_a_constant_may_have_an_edge():
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (torch.nn.Parameter(torch.tensor([[0.3, -0.7]]) * k) for k in (1, 2))

        def forward(self, x):
            return x * self.a + self.b

    model = static_model(Scaled().eval(), (torch.zeros(1, 2),))
    constants = (Edge("p_a", 0.01, 0, "int8"), Edge("p_b", 0.02, 3, "int8"))
    tensors = {record.name: model.tensor(record.name) for record in model.tensors}
    module, _ = static(model.program, (*model.edges, *constants), tensors)
    plain, _ = valued(model.program, tensors)
    x = torch.tensor([[0.5, -0.25]])
    assert torch.allclose(module(x), plain(x), atol=0.05)
    assert sum("quantize_per_tensor" in str(node.target) for node in module.graph.nodes) >= 4


@pytest.mark.parametrize(
    ("edge", "said"),
    [
        (Edge("nowhere", 0.1, 0, "int8"), "names no value"),
        (Edge("x", 0.0, 0, "int8"), "scale 0.0"),
        (Edge("x", 0.1, 0, "int3"), "int3"),
    ],
)
def test_an_edge_that_cannot_be_is_named(model, edge, said):
    with pytest.raises(BadInput, match=said):
        static(model.program, (edge,))


def test_edges_change_the_digest(model):
    other = replace(model, edges=(replace(model.edges[0], zero_point=model.edges[0].zero_point + 1), *model.edges[1:]))
    assert other.digest != model.digest
