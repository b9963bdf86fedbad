"""Which runtimes and extras work here, and what to do about those that do not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING, Any

from octavo.api.doctor_units import unit_rows
from octavo.errors import OctavoError
from octavo.records import DoctorRecord

if TYPE_CHECKING:
    from octavo.runtimes.base import Availability

LEFT_OUT = ("all", "dev")  # a sum of the others; the developers' tools


def doctor() -> DoctorRecord:
    """Let every runtime that is installed do something small on this machine, and list the package's extras."""
    from octavo.runtimes.base import REGISTRY, runtime

    found = {name: runtime(name).doctor() for name in REGISTRY}
    if found["llamacpp"].works:
        found["llamacpp"] = _llama(found["llamacpp"])
    runtimes: tuple[dict[str, Any], ...] = tuple({"runtime": name} | asdict(item) for name, item in found.items())
    listed = tuple(_extra(name, packages) for name, packages in extras().items())
    return DoctorRecord(runtimes, listed, unit_rows(found))


def extras(requirements: Iterable[str] | None = None) -> dict[str, tuple[str, ...]]:
    """{extra: packages} out of the installed package's own metadata; none when Octavo is not installed as one."""
    if requirements is None:
        try:
            requirements = requires("octavo") or ()
        except PackageNotFoundError:
            requirements = ()
    found: dict[str, tuple[str, ...]] = {}
    for line in requirements:
        extra = re.search(r"""\bextra\s*==\s*["']([^"']+)["']""", line)
        package = re.match(r"[A-Za-z0-9._-]+", line)
        if extra and package and extra[1] not in LEFT_OUT:
            found[extra[1]] = (*found.get(extra[1], ()), package[0])
    return found


def _llama(found: Availability) -> Availability:
    """Load llama.cpp's library in a worker, prove its struct layout, and let it encode one block of ones."""
    import numpy as np

    from octavo.runtimes.llama.session import quantize_chunk

    try:
        block, _ = quantize_chunk("q8_0", np.ones((1, 32), np.float32))
    except OctavoError as error:
        remedy = error.remedy or "pip install --force-reinstall xllamacpp"
        return replace(found, works=False, units=(), reason=error.message, remedy=remedy)
    expected = np.float16(1 / 127).tobytes() + bytes([127] * 32)
    if block != expected:
        reason = f"It encodes 32 ones in Q8_0 as {block.hex()}, not {expected.hex()}."
        return replace(found, works=False, units=(), reason=reason, remedy="pip install --force-reinstall xllamacpp")
    return found


def _extra(name: str, packages: tuple[str, ...]) -> dict[str, object]:
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    complete = all(versions.values())
    remedy = "" if complete else f"pip install 'octavo[{name}]'"
    return {"extra": name, "installed": complete, "packages": versions, "remedy": remedy}
