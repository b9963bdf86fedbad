"""Native q4_0, scales searched here, beside llama.cpp's own Q4_0 of the same model: KL divergence to the float model.

Both files differ in nothing but the blocks of the projections: same container, same embedding bytes, same text, logits
from llama.cpp itself. The portable w4g32 (positive scales only) stands beside them.

    python benchmarks/q4_0.py --model DIR --data TEXT.txt [--windows 32] [--context 256] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import octavo
from octavo.api.original import open_original
from octavo.api.verify import verify_artifact

KEYS = ("kl", "agreement", "sqnr_db")


def requantize(ours: Path, model: Path, theirs: Path) -> int:
    """Copy `ours` and replace every Q4_0 tensor's blocks by llama.cpp's own quantisation of the float weights."""
    from gguf import GGUFReader

    from octavo.runtimes.llama.names import heads_interleaved, interleaved_rows
    from octavo.runtimes.llama.readback import GgufReadBack
    from octavo.runtimes.llama.session import quantize_chunk
    from octavo.sources.huggingface import open_huggingface

    shutil.copyfile(ours, theirs)
    read_back = GgufReadBack(ours)
    manifest = read_back.manifest
    assert manifest is not None
    read_back.close()
    tensors = {tensor.name: tensor for tensor in GGUFReader(theirs, "r+").tensors}
    source = open_huggingface(model)
    replaced = 0
    for item in manifest.tensors:
        if item.stored_as != "Q4_0":
            continue
        values = source.floats(item.name)
        heads = heads_interleaved(item.moves)
        if heads:
            values = values[interleaved_rows(values.shape[0], heads)]
        blocks, _ = quantize_chunk("Q4_0", np.ascontiguousarray(values))
        data = tensors[item.at[0]].data
        data[:] = np.frombuffer(blocks, np.uint8).reshape(data.shape)
        replaced += 1
    source.close()
    return replaced


def measure(model: Path, data: Path, windows: int, context: int) -> dict[str, Any]:
    """KL and agreement of the three files on the same windows, and the ratio to llama.cpp's."""
    original = open_original(model, data, windows=windows, context=context)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        files = {}
        for scheme in ("q4_0", "w4g32"):
            octavo.compress(model, scheme=scheme, out=work / scheme, allow_skip=True)
            octavo.export(work / scheme, runtime="llamacpp", out=work / f"{scheme}.gguf")
            files[f"octavo {scheme}"] = work / f"{scheme}.gguf"
        files["llama.cpp Q4_0"] = work / "ggml.gguf"
        replaced = requantize(files["octavo q4_0"], model, files["llama.cpp Q4_0"])
        for name, path in files.items():
            outputs = verify_artifact(path, original).outputs or {}
            found[name] = {key: outputs[key] for key in KEYS} | {"bytes": path.stat().st_size}
            found[name]["kl_interval"] = outputs["intervals"]["kl"]
    peer = found["llama.cpp Q4_0"]["kl"]
    for row in found.values():
        row["kl_ratio"] = row["kl"] / peer
    return {"model": model.parent.name if model.name == "hf" else model.name, "tensors": replaced, "files": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", required=True, help="Hugging Face directory; repeatable")
    parser.add_argument("--data", type=Path, required=True, help="text, UTF-8")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    groups = [measure(model, arguments.data, arguments.windows, arguments.context) for model in arguments.model]
    ratios = {group["model"]: group["files"]["octavo q4_0"]["kl_ratio"] for group in groups}
    result = {"overall": {"kl_ratio_q4_0": ratios, "aim": 0.95}, "groups": groups}
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for group in groups:
        print(f"{group['model']}: {group['tensors']} tensors in Q4_0, KL in nats per token, measured")
        for name, row in group["files"].items():
            low, high = row["kl_interval"]
            print(f"  {name:16} KL {row['kl']:.5f} [{low:.5f}, {high:.5f}]  ×{row['kl_ratio']:.3f}  {row['bytes']:,} B")


if __name__ == "__main__":
    main()
