"""Trains the next-word predictor in under a minute on two cores.

    python -m examples.keyboard.train --out build/keyboard [--corpus FILE] [--steps 1100] [--seed 0]

Same text, seed, steps, threads and torch: the same bytes. The number of steps is fixed, not the time, for that
reason. The last tenth of the text, in whole documents, is held out before the vocabulary is counted and never trained
on; what is held out does not depend on the seed, so that seeds can be compared.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from examples.keyboard.corpus import Document, read_file, read_python, split
from examples.keyboard.embedding import neighbours_embedding
from examples.keyboard.model import Config, NextWord, create
from examples.keyboard.vocabulary import START, UNKNOWN, Ids, Vocabulary, pairs, stream

Report = Callable[[int, int, float], None]
"""(step, steps, loss in nats per word), called now and then."""


@dataclass(frozen=True)
class Plan:
    """How to train. `often` words are scored at every step, of the others `rarely` drawn afresh (see `loss`)."""

    steps: int = 1100
    windows: int = 64
    rate: float = 3e-3
    decay: float = 0.1
    often: int = 512
    rarely: int = 256
    seed: int = 0
    threads: int = 2


def train(documents: list[Document], vocabulary: Vocabulary, config: Config, plan: Plan, report: Report) -> NextWord:
    """AdamW (Loshchilov & Hutter 2019), warm-up, a cosine to zero. Raises FloatingPointError if the loss is none."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(plan.threads)
    text = _text(documents, vocabulary, config.context)
    model = _started(text, config)
    batches = _batches(torch.from_numpy(text), config.context, plan.windows)
    optimiser = torch.optim.AdamW(_groups(model, plan), lr=plan.rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, plan.rate, total_steps=plan.steps, pct_start=0.1, cycle_momentum=False, final_div_factor=100
    )
    model.train()
    smooth = 0.0
    for step in range(1, plan.steps + 1):
        value = loss(model, *next(batches), plan)
        if not torch.isfinite(value):
            raise FloatingPointError(f"step {step}: the loss is {value.item()}. Lower the rate ({plan.rate}).")
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        smooth += (value.item() - smooth) * max(0.02, 1 / step)
        if step % 20 == 0 or step == plan.steps:
            report(step, plan.steps, smooth)
    return model.eval()


def loss(model: NextWord, ids: Tensor, targets: Tensor, plan: Plan) -> Tensor:
    """Cross-entropy with a stratified estimate of the softmax's denominator; ids and targets int64 [windows, context].

    Scoring 8,192 words at every position is most of the work, and nearly all of it goes to words that were never
    likely. So the `often` commonest words (ids are sorted by frequency) are summed exactly, and of the rest a sample
    that all positions share, scaled up by its share: an unbiased estimate of the sum (importance sampling after
    Bengio & Senécal 2003; the proposal is uniform within the stratum). Targets that are no word of the vocabulary are
    left out.
    """
    hidden = model.hidden(ids)
    asked = targets > UNKNOWN
    hidden, target = hidden[asked], targets[asked]
    weight, bias = model.embedding.weight, model.head.bias
    size = len(weight)
    often = min(plan.often, size)
    rarely = min(plan.rarely, size - often)
    candidates = torch.cat([torch.arange(often), often + torch.randperm(size - often)[:rarely]])
    stands_for = torch.zeros(len(candidates))
    if rarely:
        stands_for[often:] = float(np.log((size - often) / rarely))
    logits = torch.nn.functional.linear(hidden, weight[candidates], bias[candidates] + stands_for)
    wanted = (hidden * weight[target]).sum(-1) + bias[target]
    # the target is scored once and by itself, drawn or not
    column = torch.full((size,), -1)
    column[candidates] = torch.arange(len(candidates))
    scored = (column[target] >= 0).nonzero()[:, 0]
    logits[scored, column[target[scored]]] = float("-inf")
    return (torch.logaddexp(logits.logsumexp(1), wanted) - wanted).mean()


def _text(documents: list[Document], vocabulary: Vocabulary, context: int) -> Ids:
    """All ids in a row, each document opened by a whole context of <s>."""
    pad = [START] * context
    ids = [token for document in documents for token in [*pad, *(t for t, _ in stream(document, vocabulary))]]
    return np.array(ids, np.int64)


def _started(text: Ids, config: Config) -> NextWord:
    """The network before the first step: the embedding knows words by their company, the bias by their frequency."""
    model, _ = create(config)
    counts = np.bincount(text, minlength=config.vocabulary) + 0.5
    counts[: UNKNOWN + 1] = 0.5
    with torch.no_grad():
        model.embedding.weight.copy_(neighbours_embedding(text, config.vocabulary, config.width))
        model.head.bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))
    return model


def _batches(text: Tensor, context: int, windows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, targets) without end, int64 [windows, context] each: every pass cuts the text elsewhere and shuffles."""
    while True:
        offset = int(torch.randint(context, ()))
        usable = (len(text) - 1 - offset) // context * context
        ids = text[offset : offset + usable].reshape(-1, context)
        targets = text[offset + 1 : offset + 1 + usable].reshape(-1, context)
        order = torch.randperm(len(ids))
        for start in range(0, max(1, len(ids) - windows + 1), windows):
            rows = order[start : start + windows]
            yield ids[rows], targets[rows]


def _groups(model: NextWord, plan: Plan) -> list[dict[str, Any]]:
    """Vectors (biases and norms) are not decayed."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return [{"params": matrices, "weight_decay": plan.decay}, {"params": vectors, "weight_decay": 0.0}]


def save(folder: Path, model: NextWord, config: Config, vocabulary: Vocabulary) -> None:
    """model.safetensors (the tied head under the embedding's name alone), config.json, vocabulary.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "head.weight"}
    save_file(tensors, folder / "model.safetensors")
    config.save(folder / "config.json")
    vocabulary.save(folder / "vocabulary.json")


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    folder: Path = options.out
    config, plan = Config(), Plan(seed=options.seed, threads=options.threads)
    plan = plan if options.steps is None else replace(plan, steps=options.steps)
    try:
        documents = read_file(options.corpus) if options.corpus else read_python()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seen, unseen = split(documents)
    vocabulary = Vocabulary.of(seen, config.vocabulary)
    training, heldout = pairs(seen, vocabulary, config.context), pairs(unseen, vocabulary, config.context)
    print(f"{len(training):,} words to train on, {len(heldout):,} held out", file=sys.stderr)

    started, cpu = time.monotonic(), time.process_time()
    model = train(seen, vocabulary, config, plan, _progress(started))
    took = f"{time.monotonic() - started:.0f} s, {time.process_time() - cpu:.0f} s of CPU"
    save(folder, model, config, vocabulary)
    heldout.save(folder, "heldout")
    training.save(folder, "training")
    sample = np.random.default_rng(plan.seed).choice(len(training), size=min(2000, len(training)), replace=False)
    np.savez(folder / "calibration.npz", x=training.x[sample], y=training.y[sample])
    print(f"{plan.steps} steps in {took} -> {folder}/model.safetensors", file=sys.stderr)
    return 0


def _progress(started: float) -> Report:
    """One line on standard error: rewritten in place on a terminal, every 200 steps elsewhere."""

    def report(step: int, steps: int, value: float) -> None:
        left = (time.monotonic() - started) * (steps - step) / step
        line = f"step {step:5}/{steps}  loss {value:.3f} nats/word  {left:3.0f} s left"
        if sys.stderr.isatty():
            print(f"\r{line}", end="\n" if step == steps else "", file=sys.stderr, flush=True)
        elif step % 200 == 0 or step == steps:
            print(line, file=sys.stderr, flush=True)

    return report


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="examples.keyboard.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/keyboard"), help="where everything is written")
    parser.add_argument("--corpus", type=Path, help="any plain text instead of Python's own documentation")
    parser.add_argument("--steps", type=int, help=f"training steps (default {Plan.steps}, under a minute on two cores)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
