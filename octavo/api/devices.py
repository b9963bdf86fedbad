"""Profiles: list them, show one, measure this machine, fit coefficients to measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from octavo.api.devices_fit import devices_fit
from octavo.core.quantity import Quantity
from octavo.errors import BadInput
from octavo.plan import profiles
from octavo.plan.device import Device
from octavo.records import DeviceRecord, DevicesRecord

__all__ = ["devices_fit", "devices_list", "devices_probe", "devices_show", "figures"]
Progress = Callable[[str, int, int], None]
BY_UNIT = ("rates", "vector_rates", "energy", "overhead_ms")
BY_RUNTIME = ("runtime_memory", "decode_efficiency", "prefill_efficiency")
PLAIN = (
    "ram", "slice_bytes", "weight_storage", "bandwidth", "dram_energy", "battery", "sustained_power", "peak_power",
    "thermal_tau",
)  # fmt: skip


def devices_list() -> DevicesRecord:
    """Every profile in a line."""
    return DevicesRecord(tuple(_line(device) for device in profiles.load_all()))


def devices_show(name: str | Path) -> DeviceRecord:
    """Every figure of one profile: by name, alias, path of a `.toml`, or `host`. Raises BadInput."""
    return _record(profiles.load(name), None)


def devices_probe(
    out: str | Path | None = None,
    *,
    quick: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> DeviceRecord:
    """Measure this machine and write its profile to `out` (default: the user's own `host.toml`, which it replaces).

    `quick`: a quarter of a minute instead of most of one, with wider intervals and without a language model.
    Raises BadInput when `out` exists and `force` is off.
    """
    from octavo.api.probe import probe_host

    target = profiles.user_directory() / "host.toml" if out is None else Path(out)
    if target.suffix != ".toml":
        raise BadInput(f"{target}: a profile is a .toml file.", f"Use -o {target.with_suffix('.toml')}.")
    if out is not None and target.exists() and not force:  # before a minute is spent
        raise BadInput(f"{target} exists already.", "Choose another -o, or replace it with --force.")
    device = probe_host(
        profiles.template(), quick=quick, progress=progress or (lambda what, done, total: None), threads=threads
    )
    profiles.write(device, target, force=force or out is None)
    return _record(device, target)


def _line(device: Device) -> dict[str, Any]:
    runtimes = dict.fromkeys(runtime for unit in device.units for runtime in unit.runtimes)
    return {
        "name": device.name,
        "title": device.title,
        "kind": device.kind,
        "year": device.year,
        "ram_bytes": _whole(device.ram),
        "slice_bytes": _whole(device.slice_bytes),
        "bandwidth": device.bandwidth.value,
        "units": [unit.kind for unit in device.units],
        "runtimes": list(runtimes),
        "coefficients": len(device.coefficients),
        "rows": sum(one.rows for one in device.coefficients),
    }


def _whole(size: Quantity) -> int | None:
    return None if size.value is None else round(size.value)


def _record(device: Device, path: Path | None) -> DeviceRecord:
    return DeviceRecord(
        name=device.name,
        title=device.title,
        year=device.year,
        kind=device.kind,
        soc=device.soc,
        aliases=device.aliases,
        path=None if path is None else str(path),
        units=tuple(
            {"kind": unit.kind, "name": unit.name, "types": unit.types, "runtimes": unit.runtimes}
            for unit in device.units
        ),
        figures={key: quantity.as_dict() for key, quantity in figures(device)},
        coefficients=tuple(asdict(one) for one in device.coefficients),
        cliff=device.cliff,
        notes=device.notes,
    )


def figures(device: Device) -> Iterator[tuple[str, Quantity]]:
    """Every quantity of a profile under its key."""
    for key in PLAIN:
        if key != "weight_storage" or getattr(device, key).value is not None:
            yield key, getattr(device, key)
    for unit in device.units:
        for table in BY_UNIT:
            for name, quantity in getattr(unit, table).items():
                yield f"units.{unit.kind}.{table}.{name}", quantity
    for table in BY_RUNTIME:
        for name, quantity in getattr(device, table).items():
            yield f"{table}.{name}", quantity
