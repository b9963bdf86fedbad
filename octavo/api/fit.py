"""The main job, in its first form: every scheme on every runtime, folded, proved, measured; and which build to ship."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo.api.compress import compress
from octavo.api.compress_static import SAMPLES, is_static
from octavo.api.export import export
from octavo.api.forecast import DECODE_TOKENS, HOST, PROMPT_TOKENS, Forecast, beside, forecast
from octavo.api.load import Fixed, load
from octavo.api.original import Original, open_original
from octavo.api.plan import DOES_NOT_FIT
from octavo.api.verify import Budget, parse_share, verify_artifact
from octavo.core.store import new_path
from octavo.core.units import parse_units
from octavo.errors import BadInput, Missing, OctavoError, Refused
from octavo.records import FitRecord, exit_code

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """What is the same for every candidate. `granted`: the memory slice in bytes, where one is a gate; `forecast`: what
    the planner expects; `options`: of `compress`; `static`: what a static scheme takes besides."""

    model: Any
    directory: Path
    out: Path
    original: Original | None
    static: dict[str, Any]
    budget: Budget
    device: str
    granted: int | None
    forecast: Forecast
    threads: int | None
    options: dict[str, Any]
    units: tuple[str, ...] = ("cpu",)
    no_fallback: bool = False


def fit(
    model: Any = None,
    *,
    out: str | Path,
    scheme: str | Sequence[str] = ("w8", "w4g32"),
    runtime: str | Sequence[str] = ("llamacpp",),
    device: str = "host",
    slice: int | str | None = None,
    data: str | Path | None = None,
    calibration: str | Path | None = None,
    preprocess: str | Path | None = None,
    samples: int = SAMPLES,
    target: str = "common",
    observer: str = "mse",
    keep: Sequence[str] = (),
    x: str = "x",
    y: str = "y",
    max_drop: float | str | None = None,
    confidence: float | str | None = None,
    windows: int = 16,
    window: int = 256,
    context: int | None = None,
    kv: str | None = None,
    embedding: str | None = None,
    head: str | None = None,
    allow_skip: bool = False,
    module: str | None = None,
    weights: str | Path | None = None,
    trust: bool = False,
    example_inputs: tuple[Any, ...] | None = None,
    fix: Fixed = None,
    threads: int | None = None,
    unit: str | Sequence[str] | None = None,
    no_fallback: bool = False,
    seed: int = 0,
    force: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> FitRecord:
    """Plan each `scheme` on each `runtime` for `device`, best first; build, verify and measure what the plan does not
    reject; write the artifacts and `report.json` to the directory `out`.

    Out before anything is folded: what certainly exceeds the slice at `context` positions of a `kv` cache (default: the
    plan's own; `slice` defaults to the device's), and what a runtime cannot carry. Measured is on this machine, beside
    what the plan predicted for it. Chosen is the smallest file whose weights are exact, whose measured peak memory (and
    what is planned for the rest of the context) is within the slice, and whose paired accuracy drop is within
    `max_drop` (with `data`: `windows` of `window` tokens).

    A static scheme (w8a8, …) calibrates on `samples` of `calibration`, else on a seeded fifth of `data` that then no
    candidate is measured on; `target`, `observer`, `keep` as in `compress`.

    `unit`: where operators shall run, as in `export`; with `no_fallback` one that runs elsewhere is a gate.

    Raises BadInput; a candidate that a runtime refuses is a row with the reason.
    """
    budget = Budget(parse_share(max_drop), parse_share(confidence))
    if budget.max_drop is not None and data is None:
        raise BadInput("--max-drop needs --data to measure the accuracy on.")
    schemes, runtimes = _listed(scheme), _listed(runtime)
    _check_names(schemes, runtimes)
    calibrated = any(is_static(name) for name in schemes)
    if calibrated and data is None and calibration is None:
        raise BadInput("A static scheme is calibrated on samples: none were given.", "Give --calibration or --data.")
    given: dict[str, Any] = {
        "module": module, "weights": weights, "trust": trust, "example_inputs": example_inputs, "fix": fix,
    }  # fmt: skip
    grids: dict[str, Any] = {"embedding": embedding, "head": head, "allow_skip": allow_skip}
    expected = forecast(
        model, device, given, scheme=schemes, runtime=runtimes, context=context, slice=slice, kv=kv, **grids
    )  # fmt: skip
    gated = slice is not None or device != HOST
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        directory = stack.enter_context(new_path(Path(out), force=force, directory=True))
        original = None
        if data is not None:
            original = open_original(
                model, Path(data), windows=windows, context=window, seed=seed, x=x, y=y, preprocess=preprocess,
                calibration=calibration, samples=samples, divide=calibrated, **given,
            )  # fmt: skip
            stack.callback(original.source.close)
        static: dict[str, Any] = {
            "calibration": calibration if original is None else original.calibration, "preprocess": preprocess,
            "samples": samples, "target": target, "observer": observer, "keep": tuple(keep), "x": x, "seed": seed,
        }  # fmt: skip
        job = Job(
            model, directory, Path(out), original, static, budget, device,
            expected.target.slice_bytes if gated else None, expected, threads, grids | given, parse_units(unit),
            no_fallback,
        )  # fmt: skip
        for number, (name, places) in enumerate(expected.order(schemes, runtimes)):
            progress("fit", number, len(schemes))
            rows += _scheme_rows(job, name, places)
        record = _record(job, rows)
        (directory / "report.json").write_text(record.to_json(), "utf-8")
    return record


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _check_names(schemes: Sequence[str], runtimes: Sequence[str]) -> None:
    """Raise BadInput for an unknown one now, not after the first has been tried for minutes."""
    from octavo.core.scheme import scheme
    from octavo.runtimes.base import runtime

    for name in schemes:
        scheme(name)
    for name in runtimes:
        runtime(name)


def _scheme_rows(job: Job, scheme: str, runtimes: Sequence[str]) -> list[dict[str, Any]]:
    """One row per runtime: rejected by the plan, or folded (once for all of them), built and measured."""
    out = {name: row for name in runtimes if (row := job.forecast.rejection(scheme, name))}
    built = [name for name in runtimes if name not in out]
    if not built:
        return list(out.values())
    folded = job.directory / f"{scheme}.octavo"
    try:
        options = job.options | (job.static if is_static(scheme) else {})
        record = compress(job.model, scheme=scheme, out=folded, threads=job.threads, **options)
    except Refused as error:
        return [*out.values(), *({"scheme": scheme, "runtime": name, "reason": str(error)} for name in built)]
    summary = {key: value for key, value in record.to_dict().items() if key not in ("tensors", "path")}
    rows = []
    for name in built:
        row = {"scheme": scheme, "runtime": name, **job.forecast.expected(scheme, name), "compress": summary}
        row |= _runtime_row(job, folded, scheme, name)
        rows.append(row | ({"beside": beside(row, row["bench"])} if "bench" in row else {}))
    return [*rows, *out.values()]


def _runtime_row(job: Job, folded: Path, scheme: str, name: str) -> dict[str, Any]:
    """Export, verify and measure one artifact; what fails is a reason, not an end."""
    from octavo.runtimes.base import runtime

    path = job.directory / f"{scheme}{runtime(name).suffix}"
    try:
        exported = export(folded, runtime=name, out=path, unit=job.units)
        verified = verify_artifact(
            path, job.original, compressed=folded, budget=job.budget, threads=job.threads, units=job.units,
            no_fallback=job.no_fallback,
        )  # fmt: skip
        bench = _bench(job, folded, path)
    except Refused as error:
        return {"reason": str(error)}
    except OctavoError as error:
        return {"reason": str(error), "failed": True}
    gates = list(verified.gates)
    peak, more = bench.get("peak_memory_bytes", 0), job.forecast.growth(scheme, name)
    if job.granted is not None and peak + more > job.granted:
        where = "measured peak" if job.device == HOST else "measured peak on this machine"
        where += f"; {more:,} of them planned for the rest of the context" if more else ""
        reason = f"{scheme} on {name} needs {peak + more:,} bytes ({where}), the slice is {job.granted:,}"
        gates.append({"gate": "slice", "code": DOES_NOT_FIT, "reason": reason})
    run_line = exported.run_line.replace(str(job.directory), str(job.out))
    return {
        "export": exported.to_dict() | {"path": path.name, "run_line": run_line},
        "verify": verified.to_dict() | {"artifact": path.name},
        ("bench" if "peak_memory_bytes" in bench else "not_measured"): bench,
        "gates": gates,
    }


def _bench(job: Job, folded: Path, path: Path) -> dict[str, Any]:
    """Latency and peak memory in a fresh process, or why they cannot be measured here."""
    try:
        return _measured(job, folded, path)
    except Missing as error:
        return {"reason": str(error)}


def _measured(job: Job, folded: Path, path: Path) -> dict[str, Any]:
    """On the data's own inputs, or on made-up ones."""
    from octavo.bench.fresh import measure_fresh
    from octavo.runtimes.base import runtime_of

    opener = "octavo.runtimes.base:open_artifact"
    original = job.original
    if load(folded).program.kind == "graph":
        inputs = next(iter(original.data.batches(original.batch))).inputs if original else _blank(path)
        return measure_fresh(opener, path, inputs, threads=job.threads, repeat=200).as_dict()
    positions = job.forecast.positions or PROMPT_TOKENS + DECODE_TOKENS
    prompt = max(1, positions - DECODE_TOKENS)
    ids = np.arange(prompt, dtype=np.int64)[None] % 100
    if original is not None:
        ids = np.concatenate([window.ids for window in original.data.windows])[None, :prompt]
    found = measure_fresh(
        opener, path, {"ids": ids}, threads=job.threads, repeat=3, decode=max(1, positions - prompt),
        context=positions, kv=job.forecast.kv(runtime_of(path).name),
    )  # fmt: skip
    return found.as_dict()


def _blank(path: Path) -> dict[str, Any]:
    """Zeros for every input of a network, one where a length is free."""
    from octavo.runtimes.base import open_artifact

    session: Any = open_artifact(path)
    try:
        types = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
        return {
            name: np.zeros([n if isinstance(n, int) else 1 for n in shape], types.get(kind, np.float32))
            for name, (shape, kind) in session.inputs.items()
        }
    finally:
        session.close()


def _record(job: Job, rows: list[dict[str, Any]]) -> FitRecord:
    """Choose the smallest file that holds every gate; if none does, the gates of the one that came closest."""
    judged = [row for row in rows if "gates" in row]
    if not judged:
        reasons = "; ".join(sorted({row["reason"] for row in rows}))
        raise Refused(f"No candidate could be built: {reasons}")
    passed = [row for row in judged if not row["gates"] and "bench" in row]  # what was not measured is not chosen
    best = min(passed, key=lambda row: row["export"]["bytes"], default=None)
    gates: tuple[dict[str, Any], ...] = ()
    if best is None and not all(row["gates"] for row in judged):
        gates = ({"gate": "measured", "code": 1, "reason": "nothing that holds its gates can be measured here"},)
    elif best is None:
        closest = min(judged, key=lambda row: (len(row["gates"]), exit_code(tuple(row["gates"]))))
        gates = tuple(closest["gates"])
    return FitRecord(
        device=job.device,
        slice_bytes=job.granted,
        candidates=tuple(rows),
        chosen=best["export"]["path"] if best else None,
        rule=_rule(job),
        report=str(job.out / "report.json"),
        gates=gates,
    )


def _rule(job: Job) -> str:
    """What `chosen` means in this run, in words: a gate that was not asked for did not choose."""
    held = ["exact weights"]
    held += [f"a peak of at most {job.granted:,} bytes"] if job.granted is not None else []
    held += [f"a drop of at most {job.budget.max_drop:.3g}"] if job.budget.max_drop is not None else []
    rule = f"the smallest file with {' and '.join(held)}"
    return rule if job.budget.max_drop is not None else f"{rule}; no accuracy budget was given (--data, --max-drop)"
