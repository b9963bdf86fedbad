"""Native q4_0, scales searched here, beside llama.cpp's own Q4_0 of the same model: KL divergence to the float model.

The two files differ in nothing but the blocks of the projections: same container, same embedding bytes, same text,
logits from llama.cpp itself. The portable w4g32 (positive scales only) stands beside them. The whole text counts unless
--windows says otherwise: 32 windows are too few to tell 0.95 from 1 for a model of 260,000 weights. It takes up to ten
minutes per model on two cores.

    python benchmarks/q4_0.py --model DIR --data TEXT.txt [--windows N] [--context 256] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

import octavo
from octavo.api.original import open_original
from octavo.core.estimate import Proportion, Ratio
from octavo.core.metrics import agreement, kl_divergence, row_blocks
from octavo.runtimes.base import runtime_of

OURS, PORTABLE, PEER = "octavo q4_0", "octavo w4g32", "llama.cpp Q4_0"


def requantize(ours: Path, model: Path, theirs: Path) -> int:
    """Copy `ours` and replace every Q4_0 tensor's blocks by llama.cpp's own quantisation of the float weights."""
    from _ggml import Q4_0_BLOCK, Q4_0_BYTES, Ggml
    from gguf import GGUFReader

    from octavo.runtimes.llama.names import heads_interleaved, interleaved_rows
    from octavo.runtimes.llama.readback import GgufReadBack
    from octavo.sources.huggingface import open_huggingface

    shutil.copyfile(ours, theirs)
    read_back = GgufReadBack(ours)
    manifest = read_back.manifest
    assert manifest is not None
    read_back.close()
    tensors = {tensor.name: tensor for tensor in GGUFReader(theirs, "r+").tensors}
    source = open_huggingface(model)
    ggml = Ggml()
    replaced = 0
    for item in manifest.tensors:
        if item.stored_as != "Q4_0":
            continue
        values = source.floats(item.name)
        heads = heads_interleaved(item.moves)
        if heads:
            values = values[interleaved_rows(values.shape[0], heads)]
        rows, columns = values.shape
        blocks = np.empty((rows, columns // Q4_0_BLOCK * Q4_0_BYTES), np.uint8)
        ggml.q4_0(np.ascontiguousarray(values, np.float32), blocks)
        data = tensors[item.at[0]].data
        data[:] = blocks.reshape(data.shape)
        replaced += 1
    source.close()
    return replaced


def compared(original: Any, files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """KL (nats per token) and agreement of every file with the float model on every window, and the ratio of its KL to
    the peer's, each with a 95 % interval over documents (the ratio's is paired: both files saw the same windows)."""
    kl: dict[str, dict[Any, float]] = {name: {} for name in files}
    tokens: dict[Any, int] = {}
    agreed = {name: Proportion() for name in files}
    with ExitStack() as stack:
        sessions = {}
        for name, path in files.items():
            sessions[name] = runtime_of(path).open(path, threads=1)  # more would spin, waiting for each other
            stack.callback(sessions[name].close)
        pool = stack.enter_context(ThreadPoolExecutor())

        def run(name: str, window: Any, reference: Any) -> None:
            logits = sessions[name].step({"ids": np.asarray(window.ids, np.int64)[None]}, None)[0]["logits"][0]
            blocks = row_blocks(*reference.shape)
            lost = sum(float(kl_divergence(reference[rows], logits[rows]).sum()) for rows in blocks)
            kl[name][window.cluster] = kl[name].get(window.cluster, 0.0) + lost
            agreed[name].add(window.cluster, int(agreement(reference, logits).sum()), len(reference))

        for window in original.data.windows:
            reference = original.run(window.ids)
            tokens[window.cluster] = tokens.get(window.cluster, 0) + len(reference)
            list(pool.map(run, files, repeat(window), repeat(reference)))
    found = {}
    for name in files:
        mean, ratio = Ratio(), Ratio()
        for cluster, lost in kl[name].items():
            mean.add(cluster, lost, tokens[cluster])
            ratio.add(cluster, lost, kl[PEER][cluster], tokens[cluster])
        found[name] = {
            "kl": mean.estimate().as_dict(), "ratio": ratio.estimate().as_dict(),
            "agreement": agreed[name].estimate().as_dict(),
        }  # fmt: skip
    return found


def measure(model: Path, data: Path, windows: int | None, context: int) -> dict[str, Any]:
    """The three files of one model on one text."""
    start = time.perf_counter()
    original = open_original(model, data, windows=windows or 1 << 40, context=context)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        files = {}
        for name, scheme in ((OURS, "q4_0"), (PORTABLE, "w4g32")):
            octavo.compress(model, scheme=scheme, out=work / scheme, allow_skip=True)
            octavo.export(work / scheme, runtime="llamacpp", out=work / f"{scheme}.gguf")
            files[name] = work / f"{scheme}.gguf"
        files[PEER] = work / "ggml.gguf"
        replaced = requantize(files[OURS], model, files[PEER])
        found = compared(original, files)
        for name, path in files.items():
            found[name]["bytes"] = path.stat().st_size
    text = original.data
    return {
        "model": model.parent.name if model.name == "hf" else model.name, "data": data.name, "tensors": replaced,
        "windows": len(text.windows), "of_windows": text.available, "clusters": text.clustered_by,
        "seconds": time.perf_counter() - start, "files": found,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", required=True, help="Hugging Face directory; repeatable")
    parser.add_argument("--data", type=Path, action="append", required=True, help="text, UTF-8; repeatable")
    parser.add_argument("--windows", type=int, help="this many, chosen at random; default: the whole text")
    parser.add_argument("--context", type=int, default=256, help="tokens per window")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    pairs = [(model, data) for model in arguments.model for data in arguments.data]
    groups = [measure(model, data, arguments.windows, arguments.context) for model, data in pairs]
    ratios = {f"{group['model']} on {group['data']}": group["files"][OURS]["ratio"]["value"] for group in groups}
    result = {"overall": {"kl_ratio_q4_0": ratios, "aim": 0.95}, "groups": groups}
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for group in groups:
        print(
            f"{group['model']} on {group['data']}: {group['tensors']} tensors in Q4_0; {group['windows']} of "
            f"{group['of_windows']} windows, {group['seconds']:.0f} s; KL in nats per token, measured"
        )
        for name, row in group["files"].items():
            kl, ratio = (
                f"{row[key]['value']:.{n}f} [{row[key]['low'] or 0:.{n}f}, {row[key]['high'] or 0:.{n}f}]"
                for key, n in (("kl", 5), ("ratio", 3))
            )
            print(f"  {name:16} KL {kl}  ×{ratio}  {row['bytes']:,} B")


if __name__ == "__main__":
    main()
