"""Arm Ethos-U: an int8 .tflite in, the file for the NPU and a full account out.

The compiler (Vela) runs in a worker with a time limit, since it is native code that has been seen to die of SIGFPE.
It turns stretches of the graph into one custom operator each and leaves the rest where it was: that rest is what the
CPU runs. Every operator of the input file gets a line; cycles and traffic are Vela's own estimates, not measurements.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from octavo.core.placement import COMPILER, Placement
from octavo.core.units import ETHOS_U
from octavo.errors import BadInput, Missing, OctavoError, WorkerDied, WorkerTimeout, nearest
from octavo.runtimes.npu.report import NpuReport
from octavo.runtimes.npu.vela import ETHOS_OPERATOR

TIME_LIMIT = 600.0  # seconds
INSTALL = "pip install 'octavo[ethos]'"
SETTINGS = {  # Vela's own choice for each series (architecture_features.py), stated instead of defaulted
    "u55": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "u65": ("Ethos_U65_Client_Server", "Dedicated_Sram_384KB"),
    "u85": ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB"),
}
MEMORIES = {"sram": "SRAM", "dram": "DRAM", "on_chip_flash": "on-chip flash", "off_chip_flash": "off-chip flash"}
FUSED = "fused with its neighbours: no cycles of its own"
LONG_NAME = re.compile(r"\(([^();]*);[^()]*\)")


def compile_for(path: Path, target: str, out: Path, *, timeout: float = TIME_LIMIT) -> NpuReport:
    """Compile the int8 .tflite `path` for `target` (a name of core.units.ETHOS_U) to `out`.

    Raises BadInput for an unknown target or a damaged file, Missing without Vela, OctavoError when Vela gives up, dies
    or takes longer than `timeout` seconds.
    """
    if target not in ETHOS_U:
        raise BadInput(f"Unknown Ethos-U configuration '{target}'.", nearest(target, ETHOS_U))
    system, memory = SETTINGS[target.split("-")[1]]
    with tempfile.TemporaryDirectory(prefix="octavo-vela-") as directory:
        told = _call(
            "compile_tflite",
            {
                "path": str(path.resolve()), "directory": directory, "accelerator": target, "system_config": system,
                "memory_mode": memory,
            },
            timeout, f"{path} for {target}",
        )  # fmt: skip
        shutil.copyfile(Path(directory) / told["compiled"], out)
    return _report(target, {"system_config": system, "memory_mode": memory}, told)


def compiler_version() -> str:
    """`ethos-u-vela 5.2.0`, after its native part has been loaded in a worker. Raises Missing, OctavoError."""
    return f"ethos-u-vela {_call('version', {}, 60.0, 'a check')['version']}"


def _call(function: str, params: dict[str, Any], timeout: float, what: str) -> dict[str, Any]:
    from importlib.util import find_spec

    from octavo.workers.local import Worker

    if find_spec("ethosu") is None:
        raise Missing("Compiling for Ethos-U needs Arm's Vela (ethos-u-vela).", INSTALL)
    with Worker(threads=1) as worker:
        try:
            return worker.call(f"octavo.runtimes.npu.vela:{function}", params, timeout=timeout).result
        except WorkerDied as error:
            raise OctavoError(f"Vela died while it compiled {what}: {error.message}", "Try another unit.") from error
        except WorkerTimeout as error:
            raise OctavoError(f"Vela took longer than {timeout:g} s for {what} and was stopped.") from error


def _report(target: str, setting: dict[str, Any], told: dict[str, Any]) -> NpuReport:
    from importlib.metadata import version

    rows, summary = told["rows"], told["summary"]
    operators = _operators(rows, told["database"])
    placement = _placement(told)
    compiler = f"ethos-u-vela {version('ethos-u-vela')}"
    clock = float(summary["core_clock"]) if summary else None
    return NpuReport(
        target=target,
        compiler=compiler,
        setting=setting | {"core_clock_hz": clock},
        placement=placement,
        operators=operators,
        counts=dict(Counter(row["unit"] for row in operators if not row["fused"])),
        cycles=int(float(summary["cycles_total"])) if summary else None,
        latency_ms=_latency(summary, compiler, setting),
        memory=_memory(summary),
        traffic=_traffic(summary),
        macs=int(float(summary["nn_macs"])) if summary else None,
        notes=_notes(placement, target),
    )


def _operators(rows: list[dict[str, str]], database: dict[str, list[dict[str, str]]]) -> tuple[dict[str, Any], ...]:
    """The per-layer report, and which of its lines are done within another's (a ReLU in its convolution)."""
    grouped = {row["id"] for row in database.get("group", ())}
    ids = [row["id"] for row in database.get("perf", ())]
    ids = ids if len(ids) == len(rows) else [""] * len(rows)  # the debug database is written only beside NPU work
    return tuple(
        {
            "op": row["NNG Operator"], "from": row["Original Operator"], "unit": row["Target"].lower(),
            "fused": number in grouped, "cycles": int(float(row["Op Cycles"])), "macs": int(float(row["MAC Count"])),
            "name": row["Name"],
        }
        for row, number in zip(rows, ids, strict=True)
    )  # fmt: skip


def _latency(summary: dict[str, str], compiler: str, setting: dict[str, Any]) -> dict[str, Any] | None:
    if not summary:
        return None
    clock = f"NPU at {float(summary['core_clock']) / 1e6:g} MHz"
    source = f"{compiler}, {setting['system_config']}, {setting['memory_mode']}, {clock}"
    return {"value": float(summary["inference_time"]) * 1e3, "kind": "estimated", "source": source}


def _memory(summary: dict[str, str]) -> dict[str, int]:
    """Bytes used per memory; Vela writes KiB."""
    used = {name: float(summary.get(f"{name}_memory_used", 0)) for name in MEMORIES} if summary else {}
    return {name: round(value * 1024) for name, value in used.items() if value}


def _traffic(summary: dict[str, str]) -> dict[str, dict[str, int]]:
    """Bytes that one inference reads and writes per memory."""
    found = {}
    for name in MEMORIES if summary else ():
        total = int(float(summary[f"{name}_total_bytes"]))
        if total:
            read, written = (
                sum(int(float(summary[f"{name}_{what}_{way}_bytes"])) for what in ("feature_map", "weight"))
                for way in ("read", "write")
            )
            found[name] = {"read": read, "write": written, "total": total}
    return found


def _placement(told: dict[str, Any]) -> tuple[Placement, ...]:
    """Every operator of the input file, and those that only the compiled file has and the CPU runs."""
    left = Counter((item["op"], item["name"]) for item in told["target"] if item["op"] != ETHOS_OPERATOR)
    cycles = _cycles(told["database"])
    total = sum(cycles.values())
    reasons = {item["name"]: _reason(item["reason"]) for item in told["reasons"]}
    found = []
    for index, item in enumerate(told["source"]):
        key, shown = (item["op"], item["name"]), _shown(item)
        if left[key]:
            left[key] -= 1
            reason = reasons.get(item["name"], "")
            if not reason or "opType" in reason:
                reason = f"no {item['op']} on Ethos-U (inputs and outputs: {', '.join(item['types'])})"
            found.append(Placement(shown, "cpu", reason, source=COMPILER))
        else:
            spent = cycles.get(index, 0)
            share = spent / total if total else None
            found.append(Placement(shown, "npu", "" if spent else FUSED, share=share, source=COMPILER))
    for (op, name), count in left.items():
        found += [Placement(f"{op} {name}", "cpu", "added by the compiler", source=COMPILER)] * count
    return tuple(found)


def _cycles(database: dict[str, list[dict[str, str]]]) -> Counter[int]:
    """Cycles of the NPU per operator of the input file, by its index there."""
    index = {row["id"]: int(row["ext_key"]) for row in database.get("source", ())}
    spent: Counter[int] = Counter()
    for row in database.get("perf", ()):
        if row["source_id"] in index:
            spent[index[row["source_id"]]] += int(row["op_cycles"])
    return spent


def _shown(item: dict[str, Any]) -> str:
    """`SOFTMAX Identity`; converters name an output after all that was fused into it, joined by semicolons."""
    return f"{item['op']} {item['name'].split(';')[0]}".strip()


def _reason(text: str) -> str:
    """Vela's reason on one line, without the word, names cut at the first semicolon."""
    return LONG_NAME.sub(r"(\1)", " ".join(text.split()).removeprefix("Reason: "))


def _notes(placement: tuple[Placement, ...], target: str) -> tuple[str, ...]:
    elsewhere = sum(item.unit != "npu" for item in placement)
    notes = [f"{elsewhere} of {len(placement)} operators stay on the CPU beside {target}."] if elsewhere else []
    if elsewhere:
        notes.append("Cycles and memory are the NPU's part alone: Vela does not know what the CPU takes.")
    return tuple(notes)
