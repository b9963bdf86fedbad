"""Run an artifact once: text from a prompt, or outputs from inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from octavo.core.store import new_path
from octavo.errors import BadInput
from octavo.records import RunRecord


def run(
    artifact: str | Path,
    *,
    prompt: str | None = None,
    ids: Sequence[int] | None = None,
    input: str | Path | None = None,
    output: str | Path | None = None,
    max_tokens: int = 200,
    temperature: float = 0.0,
    threads: int | None = None,
    seed: int = 0,
    force: bool = False,
    on_token: Callable[[str], None] | None = None,
) -> RunRecord:
    """Generate from `prompt` or `ids`, or run once on the arrays of an .npz (`output` takes the results).

    Raises BadInput unless exactly one of prompt, ids and input is given, or for inputs that the artifact does not take.
    """
    from octavo.runtimes.base import runtime_of

    if sum(given is not None for given in (prompt, ids, input)) != 1:
        raise BadInput("Nothing to run on, or too much.", "Give one of -p PROMPT, --ids and --input X.npz.")
    session: Any = runtime_of(Path(artifact)).open(Path(artifact), threads=threads)
    try:
        if input is not None:
            return _once(session, Path(input), Path(output) if output else None, force)
        return _generate(session, prompt if prompt is not None else list(ids or ()), max_tokens, temperature, seed, on_token)
    finally:
        session.close()


def _generate(
    session: Any, prompt: str | list[int], max_tokens: int, temperature: float, seed: int, on_token: Any
) -> RunRecord:
    if not prompt:
        raise BadInput("The prompt is empty.", "Give at least one word, or one id.")
    start = time.perf_counter()
    if isinstance(prompt, str) and on_token is not None:
        on_token(prompt)
    made = session.generate(prompt, max_tokens, temperature, seed, on_token)
    rates = {"prefill": made.prefill_tokens_per_second, "decode": made.decode_tokens_per_second}
    return RunRecord(
        outputs={},
        text=made.text,
        placement=_placement(session),
        latency_ms=(time.perf_counter() - start) * 1e3,
        tokens=made.n,
        tokens_per_second=rates,
    )


def _once(session: Any, input: Path, output: Path | None, force: bool) -> RunRecord:
    from octavo.verify.data import read_arrays

    inputs = session.rename(read_arrays(input).inputs)
    start = time.perf_counter()
    outputs, _ = session.step(inputs, None)
    latency = (time.perf_counter() - start) * 1e3
    if output is not None:
        with new_path(output, force=force) as temporary, open(temporary, "wb") as file:
            np.savez(file, **outputs)
    described = {name: {"shape": list(value.shape), "dtype": str(value.dtype)} for name, value in outputs.items()}
    return RunRecord(described, None, _placement(session), latency)


def _placement(session: Any) -> tuple[dict[str, str], ...]:
    return tuple(asdict(item) for item in session.placement())
