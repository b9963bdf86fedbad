"""Every cut, against a brute force that looks at each value of small random graphs anew."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.core.facts import EdgeFacts, ModelFacts, OperatorFacts, WeightFacts
from octavo.errors import BadInput
from octavo.plan.split import Link, best, cuts, roofline


def operator(number: int, inputs: tuple[str, ...], outputs: tuple[str, ...], macs: int = 1) -> OperatorFacts:
    return OperatorFacts(f"op{number}", "Conv", "conv", macs, (), inputs, outputs)


@st.composite
def graphs(draw: st.DrawFn) -> ModelFacts:
    """Operators that read one to three earlier values each and write one or two; any values may be outputs."""
    inputs = tuple(f"in{i}" for i in range(draw(st.integers(1, 2))))
    names, operators = list(inputs), []
    for number in range(draw(st.integers(1, 7))):
        read = tuple(draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)))
        written = tuple(f"v{number}_{i}" for i in range(draw(st.integers(1, 2))))
        operators.append(operator(number, read, written, draw(st.integers(0, 50))))
        names += written
    made = [name for name in names if name not in inputs]
    outputs = tuple(sorted(draw(st.sets(st.sampled_from(made), min_size=1))))
    edges = tuple(EdgeFacts(n, (draw(st.integers(1, 9)),), draw(st.sampled_from([1.0, 2.0, 4.0, 8.0]))) for n in names)
    return ModelFacts("g", "network", 0, 0, (), tuple(operators), edges, inputs, outputs)


def brute_force(facts: ModelFacts, index: int, width: float | None) -> tuple[int, int, float, float]:
    """(bytes up, bytes down, device macs, server macs) of one cut, straight from the definition."""
    device, server = facts.operators[:index], facts.operators[index:]
    held = set(facts.inputs) | {name for op in device for name in op.outputs}
    needed = {name for op in server for name in op.inputs}
    up = 0
    for edge in facts.edges:
        if edge.name in held & needed:
            narrowed = edge.name not in facts.inputs and width is not None and width < edge.element_bytes
            up += int(edge.elements * (width if narrowed else edge.element_bytes))  # type: ignore[operator]
    down = 0
    for edge in facts.edges:
        if edge.name in facts.outputs and any(edge.name in op.outputs for op in server):
            down += edge.bytes
    return up, down, sum(op.macs for op in device), sum(op.macs for op in server)


@settings(deadline=None)
@given(graphs(), st.sampled_from([None, "fp32", "fp16", "int8"]))
def test_cuts_equal_brute_force(facts: ModelFacts, width: str | None) -> None:
    found = cuts(facts, lambda op: op.macs, width=width)
    assert [cut.index for cut in found] == list(range(len(facts.operators) + 1))
    whole = sum(op.macs for op in facts.operators)
    size = {None: None, "fp32": 4.0, "fp16": 2.0, "int8": 1.0}[width]
    for cut in found:
        up, down, device, server = brute_force(facts, cut.index, size)
        assert (cut.up_bytes, cut.down_bytes) == (up, down)
        if whole:
            assert cut.device_share == pytest.approx(device / whole)
            assert cut.server_share == pytest.approx(server / whole)


@settings(deadline=None)
@given(graphs(), st.floats(1, 100), st.floats(1, 100), st.floats(0, 100), st.floats(10, 1e6))
def test_the_best_cut_is_the_minimum_and_no_worse_than_either_end(
    facts: ModelFacts, device_ms: float, server_ms: float, trip: float, rate: float
) -> None:
    found, link = cuts(facts, lambda op: op.macs + 1), Link(trip, rate, rate)
    chosen = best(found, device_ms, server_ms, link).latency_ms(device_ms, server_ms, link)
    up, down, _, _ = brute_force(facts, 0, None)
    all_cloud = trip + server_ms + 1e3 * 8 * (up + down) / rate
    assert found[-1].latency_ms(device_ms, server_ms, link) == pytest.approx(device_ms)
    assert found[0].latency_ms(device_ms, server_ms, link) == pytest.approx(all_cloud)
    assert chosen == min(cut.latency_ms(device_ms, server_ms, link) for cut in found)
    assert chosen <= device_ms * (1 + 1e-9)
    assert chosen <= all_cloud * (1 + 1e-9)


def bottleneck() -> ModelFacts:
    """A wide input, a narrow waist of 10 values behind the second operator, and a wide output; `x` skips to the end."""
    edges = (
        EdgeFacts("x", (1000,), 4.0), EdgeFacts("a", (500,), 4.0), EdgeFacts("waist", (10,), 4.0),
        EdgeFacts("y", (100,), 4.0),
    )  # fmt: skip
    operators = (operator(0, ("x",), ("a",)), operator(1, ("a",), ("waist",)), operator(2, ("waist",), ("y",)))
    return ModelFacts("waist", "network", 0, 0, (), operators, edges, ("x",), ("y",))


def test_a_slow_uplink_cuts_at_the_waist() -> None:
    link = Link(5.0, 80_000.0, None)  # 10 kB/s: the input takes 400 ms, the waist 4 ms
    chosen = best(cuts(bottleneck(), lambda op: 1.0), 90.0, 3.0, link)
    assert (chosen.index, chosen.after, chosen.crossing, chosen.up_bytes) == (2, "op1", ("waist",), 40)
    assert chosen.latency_ms(90.0, 3.0, link) == pytest.approx(60 + 5 + 4 + 1)


def test_narrower_activations_send_fewer_bytes_but_the_input_goes_as_it_is() -> None:
    assert [cut.up_bytes for cut in cuts(bottleneck(), lambda op: 1.0, width="int8")] == [4000, 500, 10, 0]
    assert [cut.up_bytes for cut in cuts(bottleneck(), lambda op: 1.0, input_bytes=333)] == [333, 2000, 40, 0]


def test_a_skip_from_the_input_crosses_until_it_was_read() -> None:
    facts = bottleneck()
    last = OperatorFacts("op2", "Add", "elementwise", 1, (), ("waist", "x"), ("y",))
    skipped = ModelFacts("skip", "network", 0, 0, (), (*facts.operators[:2], last), facts.edges, ("x",), ("y",))
    assert [set(cut.crossing) for cut in cuts(skipped, lambda op: 1.0)] == [{"x"}, {"x", "a"}, {"x", "waist"}, set()]


def test_a_roofline_is_the_longer_of_arithmetic_and_traffic() -> None:
    weights = (WeightFacts("w", (1000, 10), "linear", "fp32", 40_000),)
    edges = (EdgeFacts("x", (1000,), 4.0), EdgeFacts("y", (10,), 4.0))
    matmul = OperatorFacts("m", "MatMul", "matmul", 10_000, ("w",), ("x",), ("y",))
    facts = ModelFacts("m", "network", 10_000, 10_000, weights, (matmul,), edges, ("x",), ("y",))
    assert roofline(facts, rate=1e6, bandwidth=1e9)(matmul) == pytest.approx(20_000 / 1e6)
    assert roofline(facts, rate=1e12, bandwidth=1e6)(matmul) == pytest.approx((40_000 + 4000 + 40) / 1e6)


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(BadInput, match="no operators"):
        cuts(ModelFacts("7B", "size", 7, 7), lambda op: 1.0)
    with pytest.raises(BadInput, match="as 'fp8'"):
        cuts(bottleneck(), lambda op: 1.0, width="fp8")
    facts = bottleneck()
    nameless = ModelFacts("hole", "network", 0, 0, (), facts.operators, facts.edges[:2], ("x",), ("y",))
    with pytest.raises(BadInput, match="hole: the size of 'y'"):
        cuts(nameless, lambda op: 1.0)
