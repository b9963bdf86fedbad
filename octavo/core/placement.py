"""Which unit runs each operator, why not the one that was asked for, and what can be done about it.

One record for every runtime. `source` says whose word it is: a runtime that placed the operator itself is believed
before a compiler that said what it would do, and that before a static table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from octavo.core.units import kind_of

OWN_REPORT, COMPILER, TABLE = "runtime's own report", "vendor's compiler", "vendor table"
FALLBACK = 5  # exit code
NAMED = 5  # operators that a gate's one sentence names

REPLACEMENTS = {
    "gelu": "a hard-swish or ReLU",
    "log_softmax": "a softmax (the logarithm keeps the order)",
    "logsoftmax": "a softmax (the logarithm keeps the order)",
    "arg_max": "nothing: return the scores, and take the index outside the model",
    "argmax": "nothing: return the scores, and take the index outside the model",
    "mean": "an average pool over the whole map",
    "erf": "a hard-swish or ReLU instead of the GELU it belongs to",
    "layernormalization": "a batch normalisation, which folds into the weights",
}
ENDS = "at the model's ends: export with --io int8; inside: quantise what stands beside it"
WAYS = {"transpose": "export with --layout nhwc"} | dict.fromkeys(
    ("quantize", "dequantize", "quantizelinear", "dequantizelinear"), ENDS
)
REASONS = (
    (r"float32|float16|\bfloat\b", "compress with w8a8, so that it is int8"),
    (r"dynamic|get shape|unknown shape", "give the lengths with --fix"),
)
ELSEWHERE = re.compile(r"no provider|not in this machine|no delegate|has no .* here|not installed", re.IGNORECASE)
ACCEPT = "keep it and accept: leave out --no-fallback"


@dataclass(frozen=True)
class Placement:
    """One operator: the unit that runs it, and the one asked for ("" where nobody asked).

    reason: why it is not the unit asked for, or what became of an operator without work of its own. share: of the
    unit's cost, 0 … 1; None where nobody says. source: OWN_REPORT, COMPILER or TABLE.
    """

    op: str
    unit: str
    reason: str = ""
    asked: str = ""
    share: float | None = None
    source: str = OWN_REPORT

    @property
    def fell_back(self) -> bool:
        """Whether another unit than the one asked for runs it."""
        return bool(self.asked) and kind_of(self.unit) != kind_of(self.asked)

    def row(self) -> dict[str, Any]:
        """The JSON form; an operator that fell back says what to do."""
        return asdict(self) | ({"do": advice(self)} if self.fell_back else {})


def asked_for(placements: Iterable[Placement], unit: str, absent: str) -> tuple[Placement, ...]:
    """The same, with the unit that was asked for; `absent` is the reason where a fallback has none."""
    found = []
    for item in placements:
        item = item if item.asked else replace(item, asked=unit)
        found.append(replace(item, reason=absent) if item.fell_back and not item.reason else item)
    return tuple(found)


def advice(placement: Placement) -> str:
    """What to do about a fallback: another type, a replacement, or accept it."""
    if ELSEWHERE.search(placement.reason):
        return f"run it on the device (`octavo doctor` says what is here); or {ACCEPT}"
    ways = [way for pattern, way in REASONS if re.search(pattern, placement.reason, re.IGNORECASE)]
    bracketed = re.search(r"\((\w+)\)$", placement.op)  # `name (Type)`, else `TYPE name`
    kind = (bracketed[1] if bracketed else placement.op.split(" ")[0]).lower()
    if not ways and kind in WAYS:
        ways.append(WAYS[kind])
    if kind in REPLACEMENTS:
        ways.append(f"replace it by {REPLACEMENTS[kind]}")
    return "; or ".join([*dict.fromkeys(ways), ACCEPT])


def fallbacks(rows: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The rows of the operators that another unit runs than the one asked for."""
    return tuple(row for row in rows if "do" in row)


def fallback_gates(rows: Sequence[dict[str, Any]], no_fallback: bool) -> tuple[dict[str, Any], ...]:
    """The gate that does not hold when a fallback was ruled out and there is one (or nobody knows whether)."""
    fell = fallbacks(rows)
    if not no_fallback or (rows and not fell):
        return ()
    if not rows:
        return ({"gate": "fallback", "code": FALLBACK, "reason": "which unit runs each operator is unknown"},)
    units = ", ".join(sorted({str(row["unit"]) for row in fell}))
    names = ", ".join(str(row["op"]) for row in fell[:NAMED]) + (", …" if len(fell) > NAMED else "")
    reason = f"{len(fell)} of {len(rows)} operators run on {units}, not {fell[0]['asked']}: {names}"
    return ({"gate": "fallback", "code": FALLBACK, "reason": reason},)
