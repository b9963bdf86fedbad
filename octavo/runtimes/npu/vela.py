"""The child's end of the Ethos-U compiler: Arm's Vela, which writes files and prints its reasons.

Vela reports by four ways: a summary CSV (memory, traffic, cycles), a per-layer CSV and a debug database (which operator
of the input file each part of the NPU's program came from), and sentences about operators left on the CPU. What the
compiled file really holds is counted in the file itself.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from octavo.errors import BadInput, OctavoError

ETHOS_OPERATOR = "ethos-u"  # the custom operator that a stretch of NPU work becomes
WARNING = re.compile(
    r"operator: (?P<op>[^,\n]+), ofm: '(?P<name>[^']*)'\n(?P<reason>.*?)(?=\n\s*\n|\nWarning|\n#####|\Z)", re.S
)
TABLE = re.compile(r'<table name="(\w+)">\s*<!\[CDATA\[(.*?)\]\]>', re.S)


def compile_tflite(params: dict[str, Any], arrays: dict[str, Any], emit: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compile `path` for `accelerator` into `directory`. Returns the names of the files written and all reports.

    Raises BadInput for a file that is no .tflite, OctavoError with Vela's last words when it gives up.
    """
    path, directory = Path(params["path"]), Path(params["directory"])
    source = operators_of(path)
    arguments = [
        str(path), "--accelerator-config", params["accelerator"], "--system-config", params["system_config"],
        "--memory-mode", params["memory_mode"], "--config", "Arm/vela.ini", "--output-dir", str(directory),
        "--enable-debug-db", "--verbose-performance", "--show-cpu-operations",
    ]  # fmt: skip
    log = directory / "vela.log"
    with _output_to(log):
        code = _vela(arguments)
    said = log.read_text("utf-8", "replace")
    made = sorted(directory.glob("*_vela.tflite"))
    if code or not made:
        words = "\n".join(said.strip().splitlines()[-6:])
        raise OctavoError(f"{path}: Vela gave up (status {code}). Its last words:\n{words}")
    return {
        "compiled": made[0].name,
        "source": source,
        "target": operators_of(made[0]),
        "summary": next(_rows(directory, "*_summary_*.csv"), {}),
        "rows": list(_rows(directory, "*_per-layer.csv")),
        "database": _database(directory),
        "reasons": [match.groupdict() for match in WARNING.finditer(said)],
    }, {}


def operators_of(path: Path) -> list[dict[str, Any]]:
    """Every operator of every subgraph: {"op", "name" of its first output, "types" of its inputs and outputs}."""
    from ethosu.vela.tflite import BuiltinOperator, Model, TensorType

    builtin = {value: name for name, value in vars(BuiltinOperator.BuiltinOperator).items() if isinstance(value, int)}
    types = {value: name for name, value in vars(TensorType.TensorType).items() if isinstance(value, int)}
    data = path.read_bytes()
    try:
        if data[4:8] != b"TFL3":
            raise ValueError(f"it says {data[4:8]!r}, not b'TFL3'")
        model = Model.Model.GetRootAs(data, 0)
        found = []
        for graph in (model.Subgraphs(index) for index in range(model.SubgraphsLength())):
            for operator in (graph.Operators(index) for index in range(graph.OperatorsLength())):
                code = model.OperatorCodes(operator.OpcodeIndex())
                number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
                custom = code.CustomCode()
                name = custom.decode() if custom is not None else builtin.get(number, f"operator {number}")
                indices = [operator.Inputs(i) for i in range(operator.InputsLength())]
                indices += [operator.Outputs(i) for i in range(operator.OutputsLength())]
                used = {types.get(graph.Tensors(i).Type(), "?") for i in indices if i >= 0}
                ends = [graph.Tensors(operator.Outputs(i)).Name() for i in range(operator.OutputsLength())]
                out = (ends[0] or b"").decode("utf-8", "replace") if ends else ""
                found.append({"op": name, "name": out, "types": sorted(used)})
        return found
    except Exception as error:  # flatbuffers of a damaged file raise anything
        raise BadInput(
            f"{path}: not a .tflite, or damaged ({type(error).__name__}: {error}).", "Export it again."
        ) from error


def version(params: dict[str, Any], arrays: dict[str, Any], emit: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Import the compiler, native part included: {"version"}."""
    from importlib.metadata import version as of

    import ethosu.regor  # noqa: F401

    return {"version": of("ethos-u-vela")}, {}


def _vela(arguments: list[str]) -> int:
    from ethosu.vela.vela import main

    try:
        return int(main(arguments) or 0)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        return 1


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send both output streams of this process to a file, the native compiler's as well."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(path, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, old in zip((1, 2), kept, strict=True):
                os.dup2(old, descriptor)
                os.close(old)


def _rows(directory: Path, pattern: str) -> Iterator[dict[str, str]]:
    for path in directory.glob(pattern):
        with open(path, newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


def _database(directory: Path) -> dict[str, list[dict[str, str]]]:
    """The debug database's tables of operators; none is written where nothing runs on the NPU."""
    found: dict[str, list[dict[str, str]]] = {}
    for path in directory.glob("*_debug.xml"):
        for name, body in TABLE.findall(path.read_text("utf-8", "replace")):
            if name in ("source", "perf", "group"):
                found[name] = list(csv.DictReader(body.strip().splitlines(), skipinitialspace=True))
    return found
