"""Where to cut a network between the device and a server: every single cut of the order it runs in.

Cut k lets the device run the first k operators and the server the rest. What crosses upwards is every value that the
device holds (its own results and the model's inputs) and the server still reads, once each; what comes down are the
model's outputs that the server computes. Cut 0 is all cloud, cut n is all device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from octavo.core.facts import EdgeFacts, ModelFacts, OperatorFacts
from octavo.errors import BadInput, nearest

WIDTHS: dict[str, float] = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0}
BITS = 8
Cost = Callable[[OperatorFacts], float]


@dataclass(frozen=True)
class Link:
    """The way to the server: round trip in ms without payload, bit/s each way (None: not given, transfers count 0)."""

    round_trip_ms: float
    uplink: float | None
    downlink: float | None

    def transfer_ms(self, up: float, down: float) -> float:
        """ms to send `up` and receive `down` bytes at full rate."""
        return sum(1e3 * BITS * sent / rate for sent, rate in ((up, self.uplink), (down, self.downlink)) if rate)


@dataclass(frozen=True)
class Cut:
    """Behind operator number `index` (name `after`, "" at the start). Bytes that cross, the values' names, and the
    parts of the device's and of the server's own time that remain with each (fractions of the whole model)."""

    index: int
    after: str
    up_bytes: int
    down_bytes: int
    crossing: tuple[str, ...]
    device_share: float
    server_share: float

    @property
    def on_device(self) -> bool:
        """Whether the server has nothing to do."""
        return self.server_share == 0 and not self.crossing

    def latency_ms(self, device_ms: float, server_ms: float, link: Link) -> float:
        """Latency of one query through this cut, `device_ms` and `server_ms` being those of the whole model."""
        own = self.device_share * device_ms
        if self.on_device:
            return own
        away = link.round_trip_ms + link.transfer_ms(self.up_bytes, self.down_bytes)
        return own + away + self.server_share * server_ms


def cuts(
    facts: ModelFacts,
    device: Cost,
    server: Cost | None = None,
    width: str | None = None,
    input_bytes: int | None = None,
    output_bytes: int | None = None,
) -> tuple[Cut, ...]:
    """All n + 1 cuts, in order. `device`, `server`: any cost per operator that is proportional to its time (the
    server's is the device's unless given). `width`: what activations are narrowed to before they are sent (None: as
    computed; never wider than that); the model's own inputs and outputs go as they are, or in `input_bytes` (a JPEG)
    and `output_bytes` all together.

    Raises BadInput for a model without a graph, an unknown width, or a value of unknown size.
    """
    if not facts.operators:
        raise BadInput(f"{facts.name} has no operators to cut between.", "Give a model with a graph, such as an .onnx.")
    if width is not None and width not in WIDTHS:
        raise BadInput(f"Activations cannot cross as '{width}'.", nearest(width, WIDTHS))
    sizes = _Sizes(facts, width, input_bytes)
    order, last_read = facts.operators, _last_read(facts.operators)
    device_parts, server_parts = _running_shares(order, device), _running_shares(order, server or device)
    by_server = set().union(*(operator.outputs for operator in order)) & set(facts.outputs)
    held = list(dict.fromkeys(facts.inputs))
    found = []
    for index in range(len(order) + 1):
        if index:
            made = order[index - 1].outputs
            held += made
            by_server -= set(made)
        held = [name for name in held if last_read.get(name, -1) >= index]
        found.append(
            Cut(
                index, order[index - 1].name if index else "", sizes.together(held),
                sizes.down(by_server, output_bytes), tuple(held),
                device_parts[index], 1.0 - server_parts[index] if index < len(order) else 0.0,
            )
        )  # fmt: skip
    return tuple(found)


def roofline(facts: ModelFacts, rate: float, bandwidth: float) -> Cost:
    """Seconds of one operator on a unit of `rate` operations/s (a multiply-accumulate is two) and `bandwidth` bytes/s:
    the longer of its arithmetic and its traffic (weights, inputs and outputs, each once)."""
    edges = {edge.name: edge.bytes for edge in facts.edges}
    weights = {weight.name: weight.stored_bytes or 4 * weight.parameters for weight in facts.weights}

    def seconds(operator: OperatorFacts) -> float:
        traffic = sum(edges.get(name, 0) for name in (*operator.inputs, *operator.outputs))
        if operator.kind != "gather":  # a lookup reads its rows, not its table
            traffic += sum(weights.get(name, 0) for name in operator.weights)
        return max(2 * operator.macs / rate, traffic / bandwidth)

    return seconds


def best(found: tuple[Cut, ...], device_ms: float, server_ms: float, link: Link) -> Cut:
    """The cut of the least latency; among equals the one that sends least, then the earliest."""
    return min(found, key=lambda cut: (cut.latency_ms(device_ms, server_ms, link), cut.up_bytes, cut.index))


class _Sizes:
    """Bytes of each value when it crosses."""

    def __init__(self, facts: ModelFacts, width: str | None, input_bytes: int | None) -> None:
        self._edges: Mapping[str, EdgeFacts] = {edge.name: edge for edge in facts.edges}
        self._inputs, self._input_bytes = set(facts.inputs), input_bytes
        self._width = WIDTHS[width] if width else None
        self._model = facts.name

    def of(self, name: str, whole: bool = False) -> int:
        """Bytes of one value; `whole`: not narrowed."""
        if name not in self._edges:
            raise BadInput(
                f"{self._model}: the size of '{name}', which may cross, is not known.",
                "Fix the free dimensions of the model's inputs.",
            )
        edge = self._edges[name]
        if name in self._inputs or self._width is None or whole:
            return edge.bytes
        return int(edge.elements * min(self._width, edge.element_bytes))

    def down(self, names: set[str], output_bytes: int | None) -> int:
        """The model's outputs that come from the server."""
        return sum(self.of(name, whole=True) for name in names) if output_bytes is None else output_bytes * bool(names)

    def together(self, names: list[str]) -> int:
        """All of them; the model's inputs count `input_bytes` together where that is given."""
        if self._input_bytes is None:
            return sum(self.of(name) for name in names)
        inner = sum(self.of(name) for name in names if name not in self._inputs)
        return inner + (self._input_bytes if any(name in self._inputs for name in names) else 0)


def _last_read(order: tuple[OperatorFacts, ...]) -> dict[str, int]:
    """Number of the last operator that reads each value."""
    return {name: index for index, operator in enumerate(order) for name in operator.inputs}


def _running_shares(order: tuple[OperatorFacts, ...], cost: Cost) -> list[float]:
    """Share of the whole cost in the first k operators, k = 0 … n; by count where everything costs nothing."""
    sums = [0.0]
    for operator in order:
        sums.append(sums[-1] + cost(operator))
    if sums[-1] <= 0:
        return [index / len(order) for index in range(len(order) + 1)]
    return [part / sums[-1] for part in sums]
