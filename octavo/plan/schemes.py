"""What the planner knows of a scheme: exact bytes of a tensor, bits, the type of its activations, who writes it today.

Octavo's own schemes are core/scheme.py's. Beside them stand those that a plan can answer for and no step makes yet:
static schemes (weights as their base's, activations quantised too) and llama.cpp's block formats.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import prod
from typing import Literal

from octavo.core.carriage import Carriage
from octavo.core.carriage import table as carriage_table
from octavo.core.scheme import SCHEMES, Scheme
from octavo.errors import BadInput, Refused, nearest

Activation = Literal["float", "int8", "int16"]

# ggml's block formats: (weights per block, bytes per block), as in ggml-common.h and gguf-py's GGML_QUANT_SIZES (0.19).
BLOCKS: dict[str, tuple[int, int]] = {
    "q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24), "q8_0": (32, 34),
    "q2_k": (256, 84), "q3_k": (256, 110), "q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210),
    "iq1_s": (256, 50), "iq1_m": (256, 56), "iq2_xxs": (256, 66), "iq2_xs": (256, 74), "iq2_s": (256, 82),
    "iq3_xxs": (256, 98), "iq3_s": (256, 110), "iq4_nl": (32, 18), "iq4_xs": (256, 136),
    "tq1_0": (256, 54), "tq2_0": (256, 66), "mxfp4": (32, 17),
}  # fmt: skip
STATIC: dict[str, tuple[str, Activation]] = {
    "w8a8": ("w8", "int8"), "w8ta8": ("w8t", "int8"), "w8a16": ("w8", "int16"), "w4a16": ("w4", "int16"),
}  # fmt: skip
FLOAT_BITS = {"fp32": 32, "fp16": 16, "bf16": 16}
AS_IS = "as is"  # of a file whose weights are what they are


@dataclass(frozen=True)
class PlanScheme:
    """`base`: the scheme whose weights it has; `block`: ggml's, instead. `bits`: per weight, scales not counted."""

    name: str
    base: Scheme | None = None
    block: tuple[int, int] | None = None
    activation: Activation = "float"

    @property
    def bits(self) -> float:
        """Bits of a code: what a bare parameter count is multiplied with."""
        if self.base is None:
            weights, nbytes = self.block or (1, 4)
            return 8 * nbytes / weights
        return self.base.range.bits if self.base.range else FLOAT_BITS[self.name]

    @property
    def is_float(self) -> bool:
        return self.base is not None and self.base.is_float

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise Refused when this scheme cannot hold a tensor of `shape`."""
        if self.base is not None:
            self.base.check(name, shape)
        elif self.block and (len(shape) != 2 or shape[1] % self.block[0]):
            raise Refused(
                f"{name} {list(shape)}: {self.name} wants the rows of a matrix, of a multiple of {self.block[0]}.",
                "w8 and w8g32 hold it, or --allow-skip leaves it in float.",
            )

    def bytes(self, shape: tuple[int, ...]) -> int:
        """Exact bytes of a tensor's codes and scales."""
        if self.base is not None:
            return self.base.bytes(shape)
        weights, nbytes = self.block or (1, 4)
        return prod(shape) // weights * nbytes


def _known() -> dict[str, PlanScheme]:
    found = {name: PlanScheme(name, base=scheme) for name, scheme in SCHEMES.items()}
    found |= {name: PlanScheme(name, SCHEMES[base], activation=kind) for name, (base, kind) in STATIC.items()}
    return found | {name: PlanScheme(name, block=block) for name, block in BLOCKS.items() if name not in found}


KNOWN: dict[str, PlanScheme] = _known()
FEWER_BITS = ("w8", "w4g32", "w4", "w3g32", "w2g32", "ternary")  # offered when nothing fits, most bits first
MUST_BE_TRAINED = ("ternary",)  # schemes that only a model trained for them survives


def plan_scheme(name: str) -> PlanScheme:
    """Look a scheme up by name. Raises BadInput with the nearest names."""
    if name not in KNOWN:
        raise BadInput(f"Unknown scheme '{name}'.", nearest(name, KNOWN))
    return KNOWN[name]


@dataclass(frozen=True)
class Door:
    """How a runtime holds a scheme for an operator: `made` by Octavo now, or planned; else refused, and `why`.

    `bits`: of the form in the file where it is wider than the scheme; `multiple`: of the row length; `otherwise`: for
    rows of another length.
    """

    holds: bool
    made: bool = False
    bits: float | None = None
    multiple: int = 1
    stored_as: str = ""
    why: str = ""
    otherwise: Door | None = None

    def for_row(self, columns: int) -> Door | None:
        """This door or the first of its alternatives that takes rows of `columns`; None when none does."""
        if columns % self.multiple == 0:
            return self
        return self.otherwise.for_row(columns) if self.otherwise else None

    @property
    def least_multiple(self) -> int:
        """What a row's length must be a multiple of, in the last of the alternatives."""
        return self.otherwise.least_multiple if self.otherwise else self.multiple


@cache
def planned() -> dict[str, dict[str, tuple[frozenset[str], str]]]:
    """The table of planned pairs: {runtime: {operator: (schemes, why not the others)}}."""
    text = resources.files("octavo.plan").joinpath("planned.toml").read_text("utf-8")
    return {
        runtime: {name: (frozenset(row["schemes"]), row.get("why", "")) for name, row in operators.items()}
        for runtime, operators in tomllib.loads(text).items()
    }


@cache
def runtimes() -> tuple[str, ...]:
    """Every runtime that a plan can answer for, those that Octavo exports to first."""
    return tuple(dict.fromkeys((*carriage_table(), *planned())))


@cache
def door(runtime: str, operator: str, scheme: str) -> Door:
    """How `runtime` holds `scheme` for `operator` (matmul, conv, embedding, head, other)."""
    cell = carriage_table().get(runtime, {})
    wanted = operator if operator in cell else "matmul" if operator in ("embedding", "head") else operator
    found = cell.get(wanted, {}).get(scheme)
    if found is not None and found.how != "refused":
        return _carried(found)
    rows = planned().get(runtime, {})
    schemes, why = rows.get(operator) or rows.get("conv" if operator == "conv" else "matmul", (frozenset(), ""))
    if scheme in schemes or (operator == "other" and scheme in FLOAT_BITS and runtime in planned()):
        return Door(True)
    return Door(False, why=found.why if found is not None else why)


def _carried(cell: Carriage) -> Door:
    other = _carried(cell.otherwise) if cell.otherwise else None
    return Door(True, True, cell.bits, cell.multiple, cell.stored_as, cell.why, other)
