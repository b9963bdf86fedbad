"""This machine before anybody has measured it: its memory is known, the rest is not."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path

from octavo.core.quantity import Kind, Quantity
from octavo.plan.device import Device

PACKAGES = {
    "onnxruntime": "onnxruntime",
    "llamacpp": "xllamacpp",
    "litert": "ai_edge_litert",
    "executorch": "executorch",
}  # what has to be installed for a runtime to be there
CGROUPS = (("/sys/fs/cgroup", "memory.max", "memory.current"),
           ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))  # fmt: skip


def unprobed(template: Device) -> Device:
    """`template` with this machine's RAM, what of it is free, and the runtimes that are installed."""
    today = date.today().isoformat()
    total, free, limit = memory()
    slice_bytes = free if limit is None else min(free, limit)
    units = tuple(replace(unit, runtimes=installed(unit.runtimes)) for unit in template.units)
    return replace(
        template,
        soc=processor(),
        ram=Quantity(float(total), "B", Kind.MEASURED, source="the operating system", date=today),
        slice_bytes=Quantity(float(slice_bytes), "B", Kind.MEASURED, n=1, source="memory available now", date=today),
        units=units,
        notes=(*template.notes, "Not measured yet: run `octavo devices probe`."),
    )


def installed(runtimes: dict[str, str]) -> dict[str, str]:
    """Those of `runtimes` (and their delegates) whose package is installed here."""
    return {name: how for name, how in runtimes.items() if find_spec(PACKAGES.get(name, name))}


def memory() -> tuple[int, int, int | None]:
    """Bytes: RAM, what of it is available now, and what a container's limit leaves (None where there is no limit)."""
    import psutil

    now = psutil.virtual_memory()
    return int(now.total), int(now.available), container_room(int(now.total))


def container_room(total: int, cgroups: Iterable[tuple[str, str, str]] = CGROUPS) -> int | None:
    """Bytes that this container may still take: its limit less its use, pages of files that can go not counted."""
    for folder, limit_name, used_name in cgroups:
        try:
            limit = int(Path(folder, limit_name).read_text())
            used = int(Path(folder, used_name).read_text())
            stat = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such file, or the word "max"
            continue
        if limit < total:
            files = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            return max(0, limit - max(0, used - files))
    return None


def processor() -> str:
    """The processor's own name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return (names or [platform.processor() or platform.machine()])[0]


def last_cache_bytes() -> int:
    """The largest cache of the first core, as Linux lists it; 32 MiB where it lists none."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    scale = {"K": 2**10, "M": 2**20, "G": 2**30}
    return max((int(size[:-1]) * scale[size[-1]] for size in sizes if size[-1:] in scale), default=32 << 20)


def processors() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> float | None:
    """Processes that wanted to run in the last minute, on average; None where the system keeps no count."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
