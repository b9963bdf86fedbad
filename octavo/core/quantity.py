"""A physical number that remembers where it came from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """How a figure came to be known."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    DATASHEET = "datasheet"
    EXACT = "exact"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Quantity:
    """`value` in `unit`, with the interval [low, high] where one is known, its source, date and kind.

    A quantity that nobody knows has kind `unknown` and no value; it is never invented.

    Raises ValueError when the interval does not hold the value, or an unknown quantity carries a value.
    """

    value: float | None
    unit: str
    kind: Kind
    low: float | None = None
    high: float | None = None
    n: int | None = None
    source: str = ""
    date: str = ""

    def __post_init__(self) -> None:
        if (self.kind is Kind.UNKNOWN) != (self.value is None):
            raise ValueError(f"a quantity of kind '{self.kind}' with value {self.value}: unknown means no value")
        if self.value is None:
            return
        if (self.low is not None and self.low > self.value) or (self.high is not None and self.high < self.value):
            raise ValueError(f"{self.value} {self.unit} lies outside its own interval [{self.low}, {self.high}]")

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form: every field that is set."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "")}
