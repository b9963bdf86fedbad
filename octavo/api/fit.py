"""The main job, in its first form: every scheme on every runtime, folded, proved, measured; and which build to ship."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from octavo.api.compress import compress
from octavo.api.export import export
from octavo.api.verify import Original, open_original, parse_share, verify_artifact
from octavo.core.store import new_path
from octavo.errors import BadInput, OctavoError, Refused
from octavo.records import FitRecord, VerifyRecord, exit_code

Progress = Callable[[str, int, int], None]
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
PROMPT_TOKENS, DECODE_TOKENS = 64, 32


def fit(
    model: Any,
    *,
    out: str | Path,
    schemes: list[str] | tuple[str, ...] = ("w8", "w4g32"),
    runtimes: list[str] | tuple[str, ...] = ("llamacpp",),
    device: str = "host",
    slice: int | str | None = None,
    data: str | Path | None = None,
    max_drop: float | str | None = None,
    windows: int = 16,
    context: int = 256,
    embedding: str | None = None,
    head: str | None = None,
    allow_skip: bool = False,
    module: str | None = None,
    weights: str | Path | None = None,
    trust: bool = False,
    example_inputs: tuple[Any, ...] | None = None,
    threads: int | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> FitRecord:
    """Try each of `schemes` on each of `runtimes`; write the artifacts and `report.json` to the directory `out`.

    Chosen is the smallest file whose weights are exact, whose measured peak memory is within `slice`, and whose paired
    accuracy drop is within `max_drop` (with `data`). Raises BadInput; a candidate that a runtime refuses is a row with
    the reason.
    """
    if device != "host":
        raise BadInput(f"Device '{device}': only 'host' is measured so far.", "Use --device host.")
    granted, budget = parse_size(slice), parse_share(max_drop)
    if budget is not None and data is None:
        raise BadInput("--max-drop needs --data to measure the accuracy on.")
    _check_names(schemes, runtimes)
    given: dict[str, Any] = {"module": module, "weights": weights, "trust": trust, "example_inputs": example_inputs}
    options = {"embedding": embedding, "head": head, "allow_skip": allow_skip, "threads": threads, **given}
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        directory = stack.enter_context(new_path(Path(out), force=force, directory=True))
        original = None
        if data is not None:
            original = open_original(model, Path(data), windows=windows, context=context, seed=seed, **given)
            stack.callback(original.source.close)
        for number, scheme in enumerate(schemes):
            progress("fit", number, len(schemes))
            rows += _scheme_rows(model, scheme, runtimes, directory, original, budget, granted, options)
        record = _record(rows, granted, budget, Path(out))
        (directory / "report.json").write_text(record.to_json(), "utf-8")
    return record


def _check_names(schemes: Sequence[str], runtimes: Sequence[str]) -> None:
    """Raise BadInput for an unknown one now, not after the first has been tried for minutes."""
    from octavo.core.scheme import scheme
    from octavo.runtimes.base import runtime

    for name in schemes:
        scheme(name)
    for name in runtimes:
        runtime(name)


def parse_size(value: int | str | None) -> int | None:
    """`2GB` (10⁹), `1.5GiB` (2³⁰), `500MB` or a number of bytes. Raises BadInput."""
    if value is None or isinstance(value, int):
        return value
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?i?)b?\s*", value.lower())
    if not match or match[2] not in UNITS:
        raise BadInput(f"'{value}' is no size.", "Write it like 2GB, 1.5GiB or 500MB.")
    return int(float(match[1]) * UNITS[match[2]])


def _scheme_rows(
    model: Any, scheme: str, runtimes: Any, directory: Path, original: Original | None, budget: float | None,
    granted: int | None, options: dict[str, Any],
) -> list[dict[str, Any]]:  # fmt: skip
    """Fold once, then one row per runtime."""
    folded = directory / f"{scheme}.octavo"
    try:
        record = compress(model, scheme=scheme, out=folded, **options)
    except Refused as error:
        return [{"scheme": scheme, "runtime": name, "reason": str(error)} for name in runtimes]
    summary = {key: value for key, value in record.to_dict().items() if key not in ("tensors", "path")}
    return [
        {"scheme": scheme, "runtime": name, "compress": summary}
        | _runtime_row(folded, scheme, name, directory, original, budget, granted, options["threads"])
        for name in runtimes
    ]


def _runtime_row(
    folded: Path, scheme: str, name: str, directory: Path, original: Original | None, budget: float | None,
    granted: int | None, threads: int | None,
) -> dict[str, Any]:  # fmt: skip
    """Export, verify and measure one artifact; what fails is a reason, not an end."""
    from octavo.runtimes.base import runtime

    path = directory / f"{scheme}{runtime(name).suffix}"
    try:
        exported = export(folded, runtime=name, out=path)
        verified = verify_artifact(path, original, compressed=folded, max_drop=budget, threads=threads)
        bench = _bench(path, original, threads)
    except Refused as error:
        return {"reason": str(error)}
    except OctavoError as error:
        return {"reason": str(error), "failed": True}
    gates = list(verified.gates)
    peak = bench["peak_memory_bytes"]
    if granted is not None and peak > granted:
        reason = f"{scheme} on {name} needs {peak:,} bytes (measured peak), the slice is {granted:,}"
        gates.append({"gate": "slice", "code": 3, "reason": reason})
    fields = exported.to_dict() | {"path": path.name, "run_line": exported.run_line.replace(str(directory), "DIR")}
    return {"export": fields, "verify": _plain(verified, path), "bench": bench, "gates": gates}


def _plain(verified: VerifyRecord, path: Path) -> dict[str, Any]:
    return verified.to_dict() | {"artifact": path.name}


def _bench(path: Path, original: Original | None, threads: int | None) -> dict[str, Any]:
    """Latency and peak memory in a fresh process, on the data's own inputs where there are some."""
    from octavo.bench.fresh import measure_fresh

    opener = "octavo.runtimes.base:open_artifact"
    if original is not None and not original.is_language:
        inputs = next(iter(original.data.batches(original.batch))).inputs
        return measure_fresh(opener, path, inputs, threads=threads, repeat=200).as_dict()
    if original is not None:
        ids = np.concatenate([window.ids for window in original.data.windows])[None, :PROMPT_TOKENS]
    else:
        ids = np.arange(PROMPT_TOKENS, dtype=np.int64)[None] % 100
    found = measure_fresh(opener, path, {"ids": ids}, threads=threads, repeat=3, decode=DECODE_TOKENS)
    return found.as_dict()


def _record(rows: list[dict[str, Any]], granted: int | None, budget: float | None, out: Path) -> FitRecord:
    """Choose the smallest file that holds every gate; if none does, the gates of the one that came closest."""
    done = [row for row in rows if "export" in row]
    passed = [row for row in done if not row["gates"]]
    best = min(passed, key=lambda row: row["export"]["bytes"], default=None)
    gates: tuple[dict[str, Any], ...] = ()
    if best is None and done:
        closest = min(done, key=lambda row: (len(row["gates"]), exit_code(tuple(row["gates"]))))
        gates = tuple(closest["gates"])
    if not done:
        reasons = "; ".join(sorted({row["reason"] for row in rows}))
        raise Refused(f"No candidate could be built: {reasons}")
    return FitRecord(
        device="host",
        slice_bytes=granted,
        candidates=tuple(rows),
        chosen=best["export"]["path"] if best else None,
        rule=_rule(granted, budget),
        report=str(out / "report.json"),
        gates=gates,
    )


def _rule(granted: int | None, budget: float | None) -> str:
    """What `chosen` means in this run, in words: a gate that was not asked for did not choose."""
    held = ["exact weights"]
    held += [f"a peak of at most {granted:,} bytes"] if granted is not None else []
    held += [f"a drop of at most {budget:.3g}"] if budget is not None else []
    rule = f"the smallest file with {' and '.join(held)}"
    return rule if budget is not None else f"{rule}; no accuracy budget was given (--data, --max-drop)"
