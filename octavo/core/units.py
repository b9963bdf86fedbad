"""The units that can be asked for: a kind, or a target by name."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.errors import BadInput, nearest

KINDS = ("cpu", "gpu", "npu")
ETHOS_U = tuple(
    f"ethos-{series}-{size}"
    for series, sizes in {"u55": (32, 64, 128, 256), "u65": (256, 512), "u85": (128, 256, 512, 1024, 2048)}.items()
    for size in sizes
)  # fmt: skip
HEXAGON = "hexagon"
TARGETS = {**dict.fromkeys(ETHOS_U, "litert"), HEXAGON: "onnxruntime"}  # the runtime whose file each is compiled from


def check_unit(name: str) -> str:
    """The name itself. Raises BadInput with the nearest for one that is no unit."""
    if name not in KINDS and name not in TARGETS:
        raise BadInput(f"Unknown unit '{name}'.", nearest(name, (*KINDS, *TARGETS)))
    return name


def parse_units(text: str | Sequence[str] | None) -> tuple[str, ...]:
    """`npu,gpu,cpu` → the unit asked for, then those that operators may fall back to, each once; None → the CPU.

    Raises BadInput.
    """
    if text is None:
        return ("cpu",)
    parts = text.split(",") if isinstance(text, str) else text
    names = tuple(dict.fromkeys(check_unit(part.strip()) for part in parts))
    if not names:
        raise BadInput("No unit was named.", nearest("", (*KINDS, *TARGETS)))
    return names


def kind_of(name: str) -> str:
    """cpu, gpu or npu; a name that is neither kind nor target (a provider's own) as it is."""
    return "npu" if name in TARGETS else name
