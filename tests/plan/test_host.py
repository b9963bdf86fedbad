"""This machine: what a container leaves of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.plan import host

V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def cgroup(folder: Path, names: tuple[str, str], limit: str, used: int, stat: str) -> tuple[str, str, str]:
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(stat)
    return (str(folder), *names)


@pytest.mark.parametrize(
    ("names", "stat"),
    [(V2, "anon 300\ninactive_file 200\n"), (V1, "inactive_file 1\ntotal_inactive_file 200\n")],
)
def test_a_container_leaves_its_limit_less_what_it_holds(tmp_path: Path, names: tuple[str, str], stat: str) -> None:
    group = cgroup(tmp_path, names, "1000", 500, stat)
    assert host.container_room(4000, [group]) == 700  # the 200 bytes of files can go


def test_a_container_without_a_limit_of_its_own_leaves_everything(tmp_path: Path) -> None:
    assert host.container_room(4000, [cgroup(tmp_path, V2, "max", 500, "inactive_file 0\n")]) is None
    assert host.container_room(4000, [cgroup(tmp_path, V1, "9223372036854771712", 500, "inactive_file 0\n")]) is None
    assert host.container_room(4000, [("/nowhere", *V2)]) is None


def test_this_machine_is_known() -> None:
    total, free, _ = host.memory()
    assert total >= free > 0
    assert host.processors() >= 1
    assert host.processor()
    assert host.last_cache_bytes() >= 1 << 15
