"""A device: what its maker fixed, what an app is granted of it, and how fast it was seen to run things.

Profiles are `octavo/devices/*.toml` (facts, hand-written, each number with its source) and
`octavo/devices/fitted/*.toml` (coefficients, written by `octavo devices fit`); a user's own is a path.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.core.quantity import Kind, Quantity

UNKNOWN_BYTES = Quantity(None, "B", Kind.UNKNOWN)


@dataclass(frozen=True)
class Unit:
    """What computes: `cpu`, `gpu`, `npu` or `dsp`. `rates`: peak operations per second (a multiply-accumulate is two)
    by type (`fp32`, `fp16`, `int8`, `int4`); `energy`: J per operation by type; `runtimes`: which runtimes reach this
    unit, and through which delegate; `types`: what the unit computes in. `overhead_ms`: per operator, by runtime.
    `vector_rates`: of a matrix times a vector, which memory limits."""

    kind: str
    name: str
    rates: dict[str, Quantity]
    energy: dict[str, Quantity]
    runtimes: dict[str, str]
    types: tuple[str, ...]
    overhead_ms: dict[str, Quantity] = field(default_factory=dict)
    vector_rates: dict[str, Quantity] = field(default_factory=dict)


@dataclass(frozen=True)
class Coefficients:
    """Latency of networks as fitted to measurements: t [ms] = Σ terms[k] · features[k] (see plan/latency.py).

    `low`, `high`: the 80 % interval as factors on the prediction, from models left out of the fit; `median_error`,
    `p90_error`: relative, of the same; `ranges`: of each feature among the models fitted, outside of which the interval
    widens. Every figure rests on `rows` measurements of `models` models.
    """

    runtime: str
    unit: str
    precision: str
    terms: dict[str, float]
    low: float
    high: float
    median_error: float
    p90_error: float
    rows: int
    models: int
    ranges: dict[str, tuple[float, float]]
    source: str
    date: str


@dataclass(frozen=True)
class Device:
    """A profile. Units: bytes, bytes/s, Wh, W, s, J; whatever nobody published is a Quantity of kind `unknown`.

    `slice_bytes`: what the system grants one app before it kills it. `decode_efficiency`: share of `bandwidth` that
    decoding a language model reaches, by runtime; `cliff`: what happens above the slice, in words; `process`, `memory`:
    the node and memory type that energies were scaled to; `weight_storage`: memory besides RAM that weights are read
    from in place (a microcontroller's flash), where there is any; `notes`: what the reader of a plan should be told.
    """

    name: str
    title: str
    year: int
    kind: str  # phone, tablet, laptop, board, car, microcontroller, host
    soc: str
    aliases: tuple[str, ...]
    ram: Quantity
    slice_bytes: Quantity
    bandwidth: Quantity
    dram_energy: Quantity  # J per byte
    battery: Quantity
    sustained_power: Quantity
    peak_power: Quantity
    thermal_tau: Quantity
    units: tuple[Unit, ...]
    decode_efficiency: dict[str, Quantity] = field(default_factory=dict)
    prefill_efficiency: dict[str, Quantity] = field(default_factory=dict)
    runtime_memory: dict[str, Quantity] = field(default_factory=dict)
    coefficients: tuple[Coefficients, ...] = ()
    cliff: str = ""
    weight_storage: Quantity = UNKNOWN_BYTES
    process: str = ""
    memory: str = ""
    notes: tuple[str, ...] = ()

    def unit(self, kind: str) -> Unit | None:
        """The unit of this kind (`cpu`, `gpu`, `npu`, `dsp`), or None."""
        return next((unit for unit in self.units if unit.kind == kind), None)
