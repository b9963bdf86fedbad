"""Which runtimes and extras work here, and what to do about those that do not."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from octavo.records import DoctorRecord

EXTRAS = {
    "compress": ("torch", "transformers", "onnxscript"),
    "llama": ("xllamacpp",),
}


def doctor() -> DoctorRecord:
    """Ask every runtime whether it works on this machine."""
    from octavo.runtimes.base import REGISTRY, runtime

    runtimes = tuple({"runtime": name} | asdict(runtime(name).doctor()) for name in REGISTRY)
    return DoctorRecord(runtimes, tuple(_extra(name, packages) for name, packages in EXTRAS.items()))


def _extra(name: str, packages: tuple[str, ...]) -> dict[str, object]:
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    complete = all(found.values())
    return {
        "extra": name,
        "installed": complete,
        "packages": found,
        "remedy": "" if complete else f"pip install 'octavo[{name}]'",
    }
