"""Run an artifact once: text from a prompt, or outputs from inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from octavo.api.placing import int8_form, open_on
from octavo.core.placement import fallback_gates, fallbacks
from octavo.core.store import new_path
from octavo.core.units import parse_units
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
    unit: str | Sequence[str] | None = None,
    no_fallback: bool = False,
    force: bool = False,
    on_token: Callable[[str], None] | None = None,
) -> RunRecord:
    """Generate from `prompt` or `ids`, or run once on the arrays of an .npz (`output` takes the results).

    `unit`: the one asked for, then those that operators may fall back to (`npu,gpu,cpu`; the CPU always); what falls
    back is in the record, and with `no_fallback` a gate that does not hold.
    Raises BadInput unless exactly one of prompt, ids and input is given, or for inputs that the artifact does not take.
    """
    from octavo.runtimes.base import runtime_of

    if sum(given is not None for given in (prompt, ids, input)) != 1:
        raise BadInput("Nothing to run on, or too much.", "Give one of -p PROMPT, --ids and --input X.npz.")
    if output is not None and input is None:
        raise BadInput("--output takes the arrays that --input leads to.", "Redirect text with the shell.")
    if max_tokens < 1:
        raise BadInput(f"{max_tokens} tokens to generate.", "Ask for 1 or more.")
    units = parse_units(unit)
    path, notes = int8_form(Path(artifact))
    opened = open_on(runtime_of(path), path, units, threads=threads)
    session: Any = opened.session
    try:
        if input is not None:
            record = _once(session, Path(input), Path(output) if output else None, force)
        else:
            given = prompt if prompt is not None else list(ids or ())
            record = _generate(session, given, max_tokens, temperature, seed, on_token)
        rows = opened.rows
        notes, native = (*notes, *getattr(session, "notes", ())), getattr(session, "timing_is_native", True)
    finally:
        session.close()
    return replace(
        record, placement=rows, unit=units[0], fallback=fallbacks(rows), gates=fallback_gates(rows, no_fallback),
        notes=notes, timing_is_native=native,
    )  # fmt: skip


def _generate(
    session: Any, prompt: str | list[int], max_tokens: int, temperature: float, seed: int, on_token: Any
) -> RunRecord:
    """llama.cpp generates by itself; for any other session the token loop is ours."""
    if not prompt:
        raise BadInput("The prompt is empty.", "Give at least one word, or one id.")
    if not isinstance(prompt, str) and min(prompt) < 0:  # runtimes may count those from the end of the vocabulary
        raise BadInput(f"Token id {min(prompt)} is negative.", "Ids count from 0.")
    if isinstance(prompt, str) and on_token is not None:
        on_token(prompt)
    start = time.perf_counter()
    if hasattr(session, "generate"):
        made = session.generate(prompt, max_tokens, temperature, seed, on_token)
        text, count, written = made.text, made.n, made.ids
        rates = {"prefill": made.prefill_tokens_per_second, "decode": made.decode_tokens_per_second}
    else:
        text, written, rates = _token_loop(session, prompt, max_tokens, temperature, seed, on_token)
        count = len(written)
    elapsed = (time.perf_counter() - start) * 1e3
    return RunRecord({}, text, (), elapsed, count, rates, written)


def _token_loop(
    session: Any, prompt: str | list[int], max_tokens: int, temperature: float, seed: int, on_token: Any
) -> tuple[str, tuple[int, ...], dict[str, float]]:
    """Text, the ids written, and rates in tokens per second; text streams as whole characters come."""
    from octavo.runtimes.generate import Sampling, generate
    from octavo.sources.tokenizer import tokenizer_of

    tokenizer = tokenizer_of(session.assets) if isinstance(prompt, str) or "tokenizer.json" in session.assets else None
    ids = (
        tokenizer.encode(prompt, special=True)
        if isinstance(prompt, str) and tokenizer
        else [int(token) for token in prompt]
    )
    extra = session.manifest.extra if session.manifest is not None else {}
    made: list[int] = []
    shown, times = "", [time.perf_counter()]

    def text_so_far() -> str:
        if tokenizer is None:
            return " ".join(map(str, made))
        return tokenizer.decode(ids + made)[len(tokenizer.decode(ids)) :]

    def on_id(token: int) -> None:
        nonlocal shown
        made.append(token)
        times.append(time.perf_counter())
        text = text_so_far()
        if on_token is not None and not text.endswith("\ufffd"):  # a character whose bytes are still coming
            on_token(text[len(shown) :])
            shown = text

    generate(
        session, ids, tokens=max_tokens, sampling=Sampling(temperature, seed=seed), eos=extra.get("eos", ()),
        context=extra.get("context"), on_token=on_id,
    )  # fmt: skip
    rates = {"prefill": len(ids) / (times[1] - times[0]), "decode": (len(made) - 1) / max(times[-1] - times[1], 1e-9)}
    return text_so_far(), tuple(made), rates


def _once(session: Any, input: Path, output: Path | None, force: bool) -> RunRecord:
    from octavo.verify.data import read_arrays

    inputs = read_arrays(input, _shapes(session)).inputs
    start = time.perf_counter()
    outputs, _ = session.step(inputs, None)
    latency = (time.perf_counter() - start) * 1e3
    if output is not None:
        with new_path(output, force=force) as temporary, open(temporary, "wb") as file:
            np.savez(file, **outputs)
    described = {name: {"shape": list(value.shape), "dtype": str(value.dtype)} for name, value in outputs.items()}
    return RunRecord(described, None, (), latency)


def _shapes(session: Any) -> dict[str, tuple[int, ...]]:
    """{name: shape} of what a session takes, −1 where a length is free."""
    if not hasattr(session, "inputs"):
        return {"ids": (1, -1)}
    return {
        name: tuple(size if isinstance(size, int) else -1 for size in shape)
        for name, (shape, _) in session.inputs.items()
    }


def bind_inputs(session: Any, arrays: dict[str, Any]) -> dict[str, Any]:
    """Arrays under the session's own input names: by name, else in order. Raises BadInput when they do not match."""
    names = list(session.inputs)
    if set(arrays) == set(names):
        return arrays
    if len(arrays) == len(names):
        return dict(zip(names, arrays.values(), strict=True))
    raise BadInput(f"The data has {', '.join(arrays)}; the model takes {', '.join(names)}.", "Name the arrays so.")
