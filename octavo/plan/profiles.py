"""Profiles: where they lie, reading them into a Device, writing one.

A profile `NAME.toml` is one of Octavo's own (`octavo/devices`) or lies in the user's directory (`$OCTAVO_DEVICES`, else
`~/.config/octavo/devices`), which comes first; `fitted/NAME.toml` beside it adds coefficients. docs: `read_document`.
"""

from __future__ import annotations

import os
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from octavo.errors import BadInput, nearest
from octavo.plan.device import Coefficients, Device
from octavo.plan.profile_document import read_document

OWN = Path(__file__).resolve().parents[1] / "devices"
HOST = "host"


def user_directory() -> Path:
    """Where the user's own profiles are kept."""
    if chosen := os.environ.get("OCTAVO_DEVICES"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "octavo" / "devices"


def names() -> tuple[str, ...]:
    """The names of all profiles, sorted: Octavo's own and the user's."""
    return tuple(sorted({path.stem for folder in (OWN, user_directory()) for path in folder.glob("*.toml")}))


def load(name_or_path: str | Path) -> Device:
    """The profile of this name, alias (`Samsung Galaxy S24`) or `.toml` path; `host` is this machine.

    Raises BadInput: no such profile (with the nearest names), or a fault in the file, with its key.
    """
    path = _find(str(name_or_path))
    if path == OWN / f"{HOST}.toml":
        from octavo.plan.host import unprobed

        return unprobed(template())
    fits = _fitted(path)
    return _load(path, path.stat().st_mtime_ns, tuple((fit, fit.stat().st_mtime_ns) for fit in fits))


def template() -> Device:
    """The profile of a machine that nobody has measured: no memory, no rates."""
    path = OWN / f"{HOST}.toml"
    return _load(path, path.stat().st_mtime_ns, ())


def load_all() -> tuple[Device, ...]:
    """Every profile, by name; the host's among them."""
    return tuple(load(name) for name in names())


def canonical(name: str) -> str | None:
    """The profile's name that `name` is, or is an alias of; None without one. Case and `(Proxy)` do not count."""
    wanted = _plain(name)
    return next((key for key, known in _aliases(_stamp()).items() if wanted in known), None)


def _find(name: str) -> Path:
    if name.endswith(".toml") or os.sep in name:
        path = Path(name).expanduser()
        if not path.is_file():
            raise BadInput(
                f"{name}: no such profile.", "Give a profile's name (`octavo devices list`) or a .toml file."
            )
        return path.resolve()
    for folder in (user_directory(), OWN):
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    found = canonical(name)
    if found is None:
        raise BadInput(f"Unknown device '{name}'.", nearest(name, names()))
    return _find(found)


def _fitted(path: Path) -> list[Path]:
    """Files of coefficients for the profile at `path`, the ones that count more last."""
    folders = dict.fromkeys((OWN, path.parent, user_directory()))
    files = [folder / "fitted" / path.name for folder in folders]
    return [file for file in files if file.is_file()]


@cache
def _load(path: Path, stamp: int, fits: tuple[tuple[Path, int], ...]) -> Device:
    return read_document(str(path), _parse(path), [(str(fit), _parse(fit)) for fit, _ in fits])


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not TOML: {error}.", "Mend the line that is named.") from None


def _stamp() -> tuple[tuple[Path, int], ...]:
    files = (file for folder in (OWN, user_directory()) for file in sorted(folder.glob("*.toml")))
    return tuple((file, file.stat().st_mtime_ns) for file in files)


@cache
def _aliases(files: tuple[tuple[Path, int], ...]) -> dict[str, set[str]]:
    documents = ((path.stem, _parse(path)) for path, _ in files)
    return {
        stem: {_plain(str(word)) for word in (stem, document.get("title", stem), *document.get("aliases", ()))}
        for stem, document in documents
    }


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("(proxy)", "").replace("-", " ").replace("_", " ").split())


def write(device: Device, path: Path, *, force: bool = False) -> None:
    """Write a profile that says everything itself; its coefficients go in beside the rest. Atomic.

    Raises BadInput when `path` exists and `force` is off.
    """
    from octavo.core.store import new_path
    from octavo.plan.profile_text import document_of

    with new_path(path, force=force) as temporary:
        temporary.write_text(document_of(device), "utf-8")


def write_fitted(
    device: str,
    coefficients: tuple[Coefficients, ...] | None,
    path: Path,
    *,
    head: str | None = None,
    force: bool = False,
) -> None:
    """Write what was fitted for the profile `device`: networks' `coefficients`, and the tables by runtime (how language
    models decode) as the TOML text `head`. Of either, None keeps what `path` holds already. Atomic.

    Raises BadInput when `path` exists and `force` is off, or what is kept of it is faulty.
    """
    from octavo.core.store import new_path
    from octavo.plan.profile_text import fitted_document, kept

    old = _parse(path) if path.is_file() else {}
    old_coefficients, old_head = kept(str(path), old)
    with new_path(path, force=force) as temporary:
        text = fitted_document(
            device,
            old_coefficients if coefficients is None else coefficients,
            old_head if head is None else head,
        )
        temporary.write_text(text, "utf-8")
