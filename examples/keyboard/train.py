"""Trains the next-word predictor in under a minute on two cores.

    python -m examples.keyboard.train --out build/keyboard [--corpus FILE] [--steps 900] [--seed 0]

Same text, seed, steps and threads: the same bytes. The number of steps is fixed, not the time, for that reason.
The last tenth of the text, in whole documents, is held out before the vocabulary is counted and never trained on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from examples.keyboard.corpus import Document, read_file, read_python, split
from examples.keyboard.model import Config, NextWord, create
from examples.keyboard.vocabulary import START, UNKNOWN, Pairs, Vocabulary, pairs, stream

Report = Callable[[int, int, float], None]
"""(step, steps, loss in nats per word), called now and then."""


@dataclass(frozen=True)
class Plan:
    """How to train. `often` words are scored at every step, of the others `rarely` drawn afresh (see `loss`)."""

    steps: int = 900
    windows: int = 128
    rate: float = 3e-3
    decay: float = 0.1
    often: int = 512
    rarely: int = 256
    noise: float = 0.1
    embedding_rate: float = 0.3
    seed: int = 0
    threads: int = 2


def train(documents: list[Document], vocabulary: Vocabulary, config: Config, plan: Plan, report: Report) -> NextWord:
    """AdamW (Loshchilov & Hutter 2019), warm-up and a cosine to zero. Raises FloatingPointError where the loss is no number."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(plan.threads)
    model, _ = create(config)
    batches = _batches(documents, vocabulary, config.context, plan)
    with torch.no_grad():
        model.head.bias.copy_(_unigram(documents, vocabulary))
        model.embedding.weight.copy_(neighbours_svd(documents, vocabulary, config.width))
    optimiser = torch.optim.AdamW(_groups(model, plan), betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [group["lr"] for group in optimiser.param_groups], total_steps=plan.steps, pct_start=0.1, cycle_momentum=False, div_factor=25, final_div_factor=100
    )
    model.train()
    smooth = 0.0
    for step in range(1, plan.steps + 1):
        value = loss(model, *next(batches), plan)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if not np.isfinite(value.item()):
            raise FloatingPointError(f"step {step}: the loss is {value.item()}. Lower the rate ({plan.rate}).")
        smooth = value.item() if step == 1 else 0.98 * smooth + 0.02 * value.item()
        if step % 20 == 0 or step == plan.steps:
            report(step, plan.steps, smooth)
    return model.eval()


def _groups(model: NextWord, plan: Plan) -> list[dict[str, Any]]:
    """Parameters by how they are stepped: the embedding slower (it starts near its goal), no decay on vectors."""
    named = {name: parameter for name, parameter in model.named_parameters() if name != "embedding.weight"}
    matrices = [parameter for parameter in named.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in named.values() if parameter.ndim == 1]
    return [
        {"params": [model.embedding.weight], "lr": plan.rate * plan.embedding_rate, "weight_decay": plan.decay},
        {"params": matrices, "lr": plan.rate, "weight_decay": plan.decay},
        {"params": vectors, "lr": plan.rate, "weight_decay": 0.0},
    ]


def loss(model: NextWord, ids: Tensor, targets: Tensor, plan: Plan) -> Tensor:
    """Cross-entropy with a stratified estimate of the softmax's denominator; ids and targets int64 [windows, context].

    Scoring 8,192 words at every position is most of the work, and nearly all of it goes to words that were never likely.
    So the `often` commonest words (ids are sorted by frequency) are summed exactly, and of the rest a sample that all positions
    share, scaled up by its share: an unbiased estimate of the sum (importance sampling after Bengio & Senécal 2003; the
    proposal is uniform within the stratum). Targets that are no word of the vocabulary are left out.
    """
    hidden = model.hidden(ids)
    asked = targets > UNKNOWN
    hidden, target = hidden[asked], targets[asked]
    weight, bias = model.embedding.weight, model.head.bias
    size = len(weight)
    often = min(plan.often, size)
    rarely = min(plan.rarely, size - often)
    drawn = often + torch.randperm(size - often)[:rarely]
    candidates = torch.cat([torch.arange(often), drawn])
    stands_for = torch.zeros(len(candidates))
    stands_for[often:] = float(np.log((size - often) / max(1, rarely)))
    logits = torch.nn.functional.linear(hidden, weight[candidates], bias[candidates] + stands_for)
    wanted = (hidden * weight[target]).sum(-1) + bias[target]
    # the target is scored once and by itself, drawn or not
    column = torch.full((size,), -1)
    column[candidates] = torch.arange(len(candidates))
    scored = (column[target] >= 0).nonzero()[:, 0]
    logits[scored, column[target[scored]]] = float("-inf")
    return (torch.logaddexp(logits.logsumexp(1), wanted) - wanted).mean()


def _batches(documents: list[Document], vocabulary: Vocabulary, context: int, plan: Plan) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids, targets) without end, int64 [windows, context] each: every pass cuts the text elsewhere and shuffles the windows."""
    pad = [START] * context
    text = torch.tensor([t for d in documents for t in pad + [token for token, _ in stream(d, vocabulary)]])
    while True:
        offset = int(torch.randint(context, ()))
        usable = (len(text) - 1 - offset) // context * context
        ids = text[offset : offset + usable].reshape(-1, context)
        targets = text[offset + 1 : offset + 1 + usable].reshape(-1, context)
        order = torch.randperm(len(ids))
        for start in range(0, max(1, len(ids) - plan.windows + 1), plan.windows):
            rows = order[start : start + plan.windows]
            noisy = torch.rand(len(rows), context) < plan.noise
            yield ids[rows].where(~noisy, text[torch.randint(len(text), (len(rows), context))]), targets[rows]


def _unigram(documents: list[Document], vocabulary: Vocabulary) -> Tensor:
    """float32 [vocabulary]: each word's log frequency, where the head's bias starts."""
    ids = [token for document in documents for token, letters in stream(document, vocabulary) if letters]
    counts = torch.bincount(torch.tensor(ids), minlength=len(vocabulary.words)).float() + 0.5
    return torch.log(counts / counts.sum())


def neighbours_svd(documents, vocabulary, width):
    ids=torch.tensor([t for d in documents for t in [START]*4 + [k for k,_ in stream(d,vocabulary)]])
    V=len(vocabulary.words); blocks=[]
    rows,cols,vals=[],[],[]
    off=0
    for dist in (1,2):
        for l,r in ((ids[:-dist],ids[dist:]),(ids[dist:],ids[:-dist])):
            key,c=torch.unique(l*V+r,return_counts=True)
            i,j=key//V,key%V; c=c.float()
            pi=torch.bincount(i,weights=c,minlength=V); pj=torch.bincount(j,weights=c,minlength=V)**0.75
            pmi=torch.log(c*pj.sum()/(pi[i]*pj[j])).clamp(min=0)
            rows.append(i);cols.append(j+off);vals.append(pmi.float());off+=V
    A=torch.sparse_coo_tensor(torch.stack([torch.cat(rows),torch.cat(cols)]),torch.cat(vals),(V,off)).coalesce()
    g=torch.randn(off,width+16)
    Y=A@g
    At=A.t().coalesce()
    for _ in range(2):
        Q,_=torch.linalg.qr(Y); Y=A@(At@Q)
    Q,_=torch.linalg.qr(Y)
    B=(At@Q).t()
    u,s,_=torch.linalg.svd(B@B.t())
    E=(Q@u)[:,:width]*s[:width]**0.25
    E=E/E.norm(dim=1,keepdim=True).clamp(min=1e-6)
    return E
