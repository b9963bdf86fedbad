"""Numbers and names as people say them: bytes, ranges, durations, runtimes and units."""

from __future__ import annotations

from octavo.core.quantity import Quantity
from octavo.plan.reckon import ends, scaled

RUNTIMES = {
    "llamacpp": "llama.cpp",
    "onnxruntime": "ONNX Runtime",
    "litert": "LiteRT",
    "litert-micro": "LiteRT Micro",
    "executorch": "ExecuTorch",
    "coreml": "Core ML",
    "qnn": "QNN",
    "genie": "Genie",
}


def runtime(name: str) -> str:
    return RUNTIMES.get(name, name)


def size(count: float | None) -> str:
    """Bytes; 1 GB is 10⁹."""
    if count is None:
        return "unknown"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale * 0.9995:
            shown = count / scale
            return f"{shown:.3g} {unit}" if shown < 999.5 else f"{shown:,.0f} {unit}"
    return f"{count:.0f} B"


def number(value: float) -> str:
    """Two digits (three from a hundred on), no exponent where people would write none."""
    if value >= 1000:
        digits = 10 ** max(0, len(str(int(value))) - 3)
        return f"{round(value / digits) * digits:,.0f}"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def span(quantity: Quantity, unit: str = "") -> str:
    """`8–14 tokens/s`; a single figure where there is no interval; `unknown`."""
    after = f" {unit}" if unit else ""
    if quantity.value is None:
        return "unknown"
    low, high = quantity.low, quantity.high
    if low is None or high is None or number(low) == number(high):
        return f"{number(quantity.value)}{after}"
    return f"{number(low)}–{number(high)}{after}"


def milliseconds(quantity: Quantity) -> str:
    """A duration held in ms, in the unit that suits its upper end."""
    if quantity.value is None:
        return "unknown"
    longest = ends(quantity)[2]
    for unit, scale in (("min", 60_000.0), ("s", 1000.0), ("ms", 1.0)):
        if longest >= scale:
            return span(scaled(quantity, 1 / scale), unit)
    return span(scaled(quantity, 1000.0), "µs")


def listed(items: list[str], word: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {word} {items[-1]}" if items else ""
