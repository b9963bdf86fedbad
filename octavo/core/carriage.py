"""The carriage table: scheme × runtime × operator → exact, widened to …, or refused and why."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from octavo.core.scheme import SCHEMES
from octavo.errors import Refused

if TYPE_CHECKING:  # the planner reads this table, and needs no arrays
    from octavo.core.model import TensorRecord

SAME_AS = {"embedding": "matmul", "head": "matmul"}


@dataclass(frozen=True)
class Carriage:
    """How a runtime holds a scheme for an operator; the fields are explained at the head of carriage.toml."""

    how: Literal["exact", "widened", "refused"]
    stored_as: str = ""
    bits: float | None = None
    why: str = ""
    multiple: int = 1
    otherwise: Carriage | None = None

    def for_row(self, columns: int) -> Carriage | None:
        """This cell or the first of its alternatives that holds rows of `columns`; None when none does."""
        if columns % self.multiple == 0:
            return self
        return self.otherwise.for_row(columns) if self.otherwise else None


@cache
def table() -> dict[str, dict[str, dict[str, Carriage]]]:
    """The whole table: {runtime: {operator: {scheme: Carriage}}}."""
    text = resources.files("octavo.core").joinpath("carriage.toml").read_text("utf-8")
    return {
        runtime: {
            operator: {scheme: _carriage(cell) for scheme, cell in schemes.items()}
            for operator, schemes in operators.items()
        }
        for runtime, operators in tomllib.loads(text).items()
    }


def possible(runtime: str, operator: str) -> dict[str, Carriage]:
    """Every scheme that `runtime` can hold for `operator` (embedding and head follow matmul unless listed)."""
    operators = table().get(runtime, {})
    cells = operators.get(operator) or operators.get(SAME_AS.get(operator, ""), {})
    return {scheme: cell for scheme, cell in cells.items() if cell.how != "refused"}


def carriage(runtime: str, record: TensorRecord) -> Carriage:
    """How `runtime` holds this tensor. Raises Refused, naming tensor, rule and the schemes that would do."""
    cells = possible(runtime, record.role)
    cell = cells.get(record.scheme)
    columns = record.shape[-1] if record.shape else 1
    where = f"{record.name} {list(record.shape)}"
    if cell is None:
        raise Refused(
            f"{where}: {runtime} has no exact form of {record.scheme} for '{record.role}'.",
            f"It holds {', '.join(name for name in cells if name in SCHEMES)}."
            if cells
            else f"It holds nothing for '{record.role}'.",
        )
    fitting = cell.for_row(columns) if len(record.shape) > 1 else cell
    if fitting is None:
        fits = [name for name, other in cells.items() if name in SCHEMES and other.for_row(columns)]
        last = cell
        while last.otherwise:
            last = last.otherwise
        raise Refused(
            f"{where}: {runtime} holds {record.scheme} as {last.stored_as}, in rows of a multiple of "
            f"{last.multiple}, and {columns} is not.",
            f"For this row it holds {', '.join(fits)}; another runtime may hold {record.scheme}.",
        )
    return fitting


def _carriage(cell: dict[str, Any]) -> Carriage:
    other = _carriage(cell["else"]) if "else" in cell else None
    return Carriage(
        cell["how"], cell.get("as", ""), cell.get("bits"), cell.get("why", ""), cell.get("multiple", 1), other
    )
