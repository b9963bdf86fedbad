"""Measure this machine into a profile: bench measures, runtimes write what it runs, plan says what a profile is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.api.probe_networks import network_coefficients
from octavo.bench.probe import (
    FULL,
    QUICK,
    Effort,
    RuntimeFigures,
    Trial,
    float_products,
    runtime_figures,
    stream,
    trial_seconds,
)
from octavo.core.quantity import Kind, Quantity
from octavo.errors import OctavoError
from octavo.plan import host
from octavo.plan.device import Coefficients, Device

OPENER = "octavo.runtimes.base:open_artifact"
Progress = Callable[[str, int, int], None]
STEPS = 4  # memory, products, two runtimes
BUSY = 0.5  # processes per core that wanted to run before the measurement began
ONNX_LINKS, LLAMA_LAYERS = (4, 104), (2, 34)
PROMPT = 32
LAYERS = (6, 1024, 2816)  # layers, width and inner width of the decoder whose weights are streamed: some 50 million
STORED = {"w8": "Q8_0", "w4": "Q4_0"}  # precision: what llama.cpp keeps it in


@dataclass(frozen=True)
class Rates:
    """What a runtime's trials say of the processor and of itself, by the keys of a profile."""

    rates: dict[str, Quantity]
    vector_rates: dict[str, Quantity]
    decode: dict[str, Quantity]
    prefill: dict[str, Quantity]
    coefficients: list[Coefficients] = field(default_factory=list)


def probe_host(template: Device, *, quick: bool, progress: Progress, threads: int | None = None) -> Device:
    """A profile of this machine; `template` gives what is not measured. A runtime that fails is named in the notes.

    `threads`: of everything that is measured (default: all that this process may use).
    """
    effort, threads = (QUICK if quick else FULL), threads or host.processors()
    load = host.load_average()
    _, free, limit = host.memory()
    progress("measuring", 0, STEPS)
    memory = stream(threads, host.last_cache_bytes(), free if limit is None else min(free, limit), effort)
    bandwidth = max(memory.read, memory.copy, key=lambda found: found.value or 0.0)
    progress("measuring", 1, STEPS)
    products = float_products(threads, effort)
    rates = Rates({"fp32": products["matrix"]}, {"fp32": products["vector"]}, {}, {})
    costs: dict[str, RuntimeFigures] = {}
    notes = [
        _said("reading", memory.read),
        _said("copying", memory.copy),
        _said("reading, one thread", memory.read_one),
    ]
    with tempfile.TemporaryDirectory(prefix="octavo-probe-") as folder:
        for step, (name, measure) in enumerate({"onnxruntime": _onnx, "llamacpp": _llama}.items()):
            progress("measuring", 2 + step, STEPS)
            if name not in host.installed({name: ""}):
                notes.append(f"{name} is not installed here and was not measured.")
                continue
            try:
                costs[name] = measure(Path(folder), threads, effort, bandwidth, rates)
            except OctavoError as error:
                notes.append(f"{name} was not measured: {error.message}")
    progress("measuring", STEPS, STEPS)
    if load is not None and load > BUSY * threads:
        notes.append(f"The machine was busy (load {load:.1f} on {threads} cores): measure again when it is idle.")
    return _profile(template, bandwidth, rates, costs, tuple(notes))


def _profile(
    template: Device, bandwidth: Quantity, rates: Rates, costs: dict[str, RuntimeFigures], notes: tuple[str, ...]
) -> Device:
    known = host.unprobed(template)
    cpu = known.units[0]
    unit = replace(
        cpu,
        name=f"{host.processor()} ({host.processors()} cores)",
        rates=rates.rates,
        vector_rates=rates.vector_rates,
        overhead_ms={name: cost.overhead_ms for name, cost in costs.items()},
    )
    return replace(
        known,
        title=f"This machine, measured {date.today().isoformat()}",
        year=date.today().year,
        units=(unit,),
        bandwidth=bandwidth,
        decode_efficiency=rates.decode,
        prefill_efficiency=rates.prefill,
        coefficients=tuple(rates.coefficients),
        runtime_memory={name: cost.memory for name, cost in costs.items()},
        notes=notes,
    )


def _onnx(folder: Path, threads: int, effort: Effort, bandwidth: Quantity, rates: Rates) -> RuntimeFigures:
    """ONNX Runtime: overhead per operator, int8 products, and int4 weights streamed past a vector."""
    from octavo.runtimes.onnx import tiny

    short, long = (_chain(folder / f"chain{links}.onnx", links, tiny.write_chain) for links in ONNX_LINKS)
    sizes = {"int8 matrix": ("int8", 768, 768, 768), "int8 vector": ("int8", 1, 4096, 4096)}
    sizes["int4 vector"] = ("int4", 1, 4096, 4096)
    trials = []
    for name, (number, rows, inner, columns) in sizes.items():
        path = folder / f"{name}.onnx"
        inputs = tiny.write_product(path, number, rows, inner, columns)
        trials.append(Trial(name, path, inputs, 2.0 * rows * inner * columns, float(path.stat().st_size)))
    operators = (ONNX_LINKS[1] - ONNX_LINKS[0]) * tiny.OPERATORS
    found = runtime_figures("onnxruntime", OPENER, short, long, operators, trials, threads=threads, effort=effort)
    for trial in trials:
        number, _, shape = trial.name.partition(" ")
        table = rates.rates if shape == "matrix" else rates.vector_rates
        table[number] = inverse(found.seconds[trial.name], trial.operations, "op/s")
    if effort is FULL:
        rates.coefficients.extend(network_coefficients(folder, OPENER, threads, effort))
        _onnx_decoder(folder, threads, effort, bandwidth, rates, found.overhead_ms)
    return found


def _onnx_decoder(
    folder: Path, threads: int, effort: Effort, bandwidth: Quantity, rates: Rates, overhead_ms: Quantity
) -> None:
    """The weights of a decoder streamed past one row (decode) and past a prompt's."""
    from octavo.runtimes.onnx import tiny

    for precision, bits in {"w8": 8, "w4": 4}.items():
        path = folder / f"layers.{precision}.onnx"
        weights, operators = tiny.write_layers(path, bits, *LAYERS)
        nbytes = float(path.stat().st_size)
        inputs = {rows: {"x0": np.ones((rows, LAYERS[1]), np.float32)} for rows in (1, PROMPT)}
        trials = [Trial(f"decode {precision}", path, inputs[1], 2.0 * weights, nbytes)]
        trials += [Trial(f"prompt of {PROMPT} {precision}", path, inputs[PROMPT], 2.0 * PROMPT * weights)]
        seconds = trial_seconds("onnxruntime", OPENER, trials, threads=threads, effort=effort)
        net = less(seconds[trials[0].name], operators, overhead_ms)
        rates.decode[f"onnxruntime.{precision}"] = share(net, tiny.EXPORTS_PACE * nbytes, bandwidth)
        rates.prefill[f"onnxruntime.{precision}"] = inverse(seconds[trials[1].name], trials[1].operations, "op/s")


def less(seconds: Quantity, operators: int, overhead_ms: Quantity) -> Quantity:
    """The time without that of starting `operators`, which a plan counts by itself; at least half is left."""
    each = 1e-3 * (overhead_ms.value or 0.0) * operators
    value, low, high = (max(float(part or 0) - each, 0.5 * float(part or 0)) for part in
                        (seconds.value, seconds.low or seconds.value, seconds.high or seconds.value))  # fmt: skip
    return replace(seconds, value=value, low=low, high=high)


def _llama(folder: Path, threads: int, effort: Effort, bandwidth: Quantity, rates: Rates) -> RuntimeFigures:
    """llama.cpp: overhead per operator, decoding and reading a prompt with weights in Q8_0."""
    from octavo.runtimes.llama import tiny

    short, long = (_chain(folder / f"chain{layers}.gguf", layers, tiny.write_chain) for layers in LLAMA_LAYERS)
    trials = []
    if effort is FULL:
        sizes = {"decode": 1, f"prompt of {PROMPT}": PROMPT}
        for precision, number in STORED.items():
            path = folder / f"decoder.{precision}.gguf"
            weights = tiny.write_decoder(path, *LAYERS, number)
            for name, tokens in sizes.items():
                ids = {"ids": np.ones((1, tokens), np.int64)}
                nbytes = weights * tiny.BLOCKS[number] / 32
                trials.append(Trial(f"{name} {precision}", path, ids, 2.0 * tokens * weights, nbytes))
    operators = (LLAMA_LAYERS[1] - LLAMA_LAYERS[0]) * tiny.OPERATORS
    # Its threads wait for one another after every operator: beside a busy neighbour one alone is often the quicker.
    every = [
        runtime_figures("llamacpp", OPENER, short, long, operators, trials, threads=count, effort=effort)
        for count in ((threads, 1) if effort is FULL and threads > 1 else (1,))
    ]
    found = replace(every[0], overhead_ms=least([one.overhead_ms for one in every]))
    for trial in trials:
        seconds = least([one.seconds[trial.name] for one in every])
        key = f"llamacpp.{trial.name.rpartition(' ')[2]}"
        if trial.name.startswith("decode"):
            net = less(seconds, LAYERS[0] * tiny.OPERATORS, found.overhead_ms)
            rates.decode[key] = share(net, trial.nbytes, bandwidth)
        else:
            rates.prefill[key] = inverse(seconds, trial.operations, "op/s")
    return found


def _chain(path: Path, length: int, write: Callable[[Path, int], dict[str, NDArray[Any]]]) -> Trial:
    return Trial(f"chain of {length}", path, write(path, length))


def least(found: Sequence[Quantity]) -> Quantity:
    """The smallest of those that are known; the first when none is."""
    known = [one for one in found if one.value is not None]
    return min(known, key=lambda one: float(one.value or 0)) if known else found[0]


def inverse(seconds: Quantity, amount: float, unit: str) -> Quantity:
    """`amount` per the time that was measured."""
    value, low, high = (amount / float(part) for part in (seconds.value or 0, seconds.high or 0, seconds.low or 0))
    return Quantity(value, unit, Kind.MEASURED, low, high, seconds.n, seconds.source, seconds.date)


def share(seconds: Quantity, nbytes: float, bandwidth: Quantity) -> Quantity:
    """The share of `bandwidth` at which `nbytes` were read; its interval is that of the time alone."""
    rate = inverse(seconds, nbytes, "B/s")
    whole = float(bandwidth.value or 1)
    value, low, high = (float(part) / whole for part in (rate.value or 0, rate.low or 0, rate.high or 0))
    source = f"{rate.source}: {(rate.value or 0) / 1e9:.2f} GB/s of the {whole / 1e9:.2f} measured"
    return Quantity(value, "1", Kind.MEASURED, low, high, rate.n, source, rate.date)


def _said(what: str, rate: Quantity) -> str:
    low, high = (f"{(bound or 0) / 1e9:.1f}" for bound in (rate.low, rate.high))
    return f"Memory, {what}: {(rate.value or 0) / 1e9:.1f} GB/s [{low}, {high}], {rate.source}."
