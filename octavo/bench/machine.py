"""What the machine shows of itself while something runs on it: temperature, clock, and who else is computing.

Linux only, and only where the kernel shows it: virtual machines mostly have neither sensors nor clocks. What is not
shown is None, never a guess.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from octavo.bench.fresh import descendants

THERMAL, CLOCKS = Path("/sys/class/thermal"), Path("/sys/devices/system/cpu")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class Moment:
    """One look: °C of the hottest zone, MHz (mean over cores), processor seconds of this process and those that it
    started (`own`), of the whole machine (`busy`, its hypervisor's theft included), and the clock on the wall."""

    celsius: float | None
    megahertz: float | None
    own: float
    busy: float | None
    wall: float


def look() -> Moment:
    """What can be seen now."""
    return Moment(temperature(), clock(), own_seconds(), busy_seconds(), time.monotonic())


def others(before: Moment, after: Moment) -> float | None:
    """The share of all cores that others took between two looks, a hypervisor's neighbours included; None unseen."""
    if before.busy is None or after.busy is None or after.wall <= before.wall:
        return None
    taken = (after.busy - before.busy) - (after.own - before.own)
    return min(1.0, max(0.0, taken / ((after.wall - before.wall) * (os.cpu_count() or 1))))


def temperature(zones: Path = THERMAL) -> float | None:
    """°C of the hottest thermal zone that gives a believable number."""
    found = [_number(zone / "temp") for zone in sorted(zones.glob("thermal_zone*"))]
    celsius = [value / 1000 for value in found if value is not None]
    return max((value for value in celsius if 0 < value < 150), default=None)


def clock(cores: Path = CLOCKS) -> float | None:
    """MHz, the mean over cores, as the governor says."""
    found = [_number(path) for path in sorted(cores.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    kilohertz = [value for value in found if value]
    return sum(kilohertz) / len(kilohertz) / 1000 if kilohertz else None


def own_seconds() -> float:
    """Processor seconds of this process and of those that it started and that are still there."""
    total = time.process_time()
    for pid in descendants():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def busy_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """Processor seconds of the whole machine since it started, without idle and waiting; stolen time counts."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        user, nice, system, _, _, irq, soft, stolen = (int(n) for n in stat.read_text().splitlines()[0].split()[1:9])
        return (user + nice + system + irq + soft + stolen) / TICKS
    return None


def _number(path: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        return float(path.read_text())
    return None
