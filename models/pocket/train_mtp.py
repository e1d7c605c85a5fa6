"""Trains the MTP block with the trunk frozen, and measures how many of its drafts the trunk accepts.

    python -m models.pocket.train_mtp --checkpoint runs/pocket/checkpoint.pt --out runs/pocket/with_mtp.pt

The block drafts token t + 2 from the trunk's normed state at t and token t + 1 (arXiv 2412.19437, section
2.2).  The second draft feeds the block its own output; it enters the loss with half the weight.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from models.pocket.batches import Batch, Stream, collate
from models.pocket.curriculum import MEASURED, Mix, measured_conversation
from models.pocket.delta_rule import Shape
from models.pocket.evaluate import last_turn
from models.pocket.model import Pocket
from models.pocket.optimiser import Optimiser
from models.pocket.tokenizer import Encoder, load
from models.pocket.train import keep_memory, save

PEAK = 4e-3
STEPS = 330
MIX = Mix(chat=0.45, tool=0.12, memory=0.12, sums=0.31)


def later(ids: Tensor, by: int) -> Tensor:
    """ids [B, T] moved ``by`` places to the left; the freed places hold token 0."""
    return F.pad(ids[:, by:], (0, by))


def answered(batch: Batch, by: int) -> Tensor:
    """Flat positions t [n] for which all of the tokens t + 1 .. t + by are answer tokens."""
    flags = torch.zeros(batch.ids.numel() + by, dtype=torch.bool)
    flags[batch.select] = True
    kept = batch.select
    for j in range(1, by):
        kept = kept[flags[kept + j]]
    return kept


def drafts(model: Pocket, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The trunk's states and the block's outputs for the first and the second draft, each [B, T, H]."""
    with torch.no_grad():
        states = model.hidden(batch.ids, batch.chunk)
        next_one = model.embed_tokens(later(batch.ids, 1))
        next_two = model.embed_tokens(later(batch.ids, 2))
    first: Tensor = model.mtp(next_one, states, model.p)
    second: Tensor = model.mtp(next_two, first, model.p)
    return states, first, second


def loss_of(model: Pocket, batch: Batch) -> Tensor:
    """Cross entropy of the first draft plus half of that of the second, over answer tokens."""
    _, *outputs = drafts(model, batch)
    total = torch.zeros(())
    for by, weight, y in zip((2, 3), (1.0, 0.5), outputs, strict=True):
        at = answered(batch, by)
        if len(at):
            target = later(batch.ids, by).flatten()[at]
            total = total + weight * F.cross_entropy(model.logits(y.flatten(0, 1)[at]), target)
    return total


@torch.no_grad()
def acceptance(model: Pocket, count: int, seed: int = 7) -> dict[str, dict[str, float]]:
    """Share in per cent of first and second drafts equal to the trunk's own choice, on held-out prompts."""
    encoder = Encoder(load())
    table: dict[str, dict[str, float]] = {}
    sums = [0, 0, 0, 0]
    for skill in MEASURED:
        rng = Random(f"drafts/{seed}/{skill}")
        hits = [0, 0, 0, 0]
        for _ in range(count):
            c = measured_conversation(rng, skill, encoder.count)
            batch = collate([last_turn(encoder.conversation(c), encoder, c)])
            states, first, second = drafts(model, batch)
            choice = model.logits(states).argmax(-1).flatten()
            for k, y in enumerate((first, second)):
                at = answered(batch, k + 2)
                guess = model.logits(y).argmax(-1).flatten()[at]
                hits[2 * k] += int((guess == choice[at + k + 1]).sum())
                hits[2 * k + 1] += len(at)
        table[skill] = {"first": _percent(hits[0], hits[1]), "second": _percent(hits[2], hits[3])}
        sums = [a + b for a, b in zip(sums, hits, strict=True)]
    table["all"] = {"first": _percent(sums[0], sums[1]), "second": _percent(sums[2], sums[3])}
    return table


def _percent(hits: int, total: int) -> float:
    return round(100 * hits / max(1, total), 1)


def main() -> None:
    p = argparse.ArgumentParser(description="Train the MTP block of pocket.")
    p.add_argument("--checkpoint", default="runs/pocket/checkpoint.pt")
    p.add_argument("--out", default="runs/pocket/with_mtp.pt")
    p.add_argument("--steps", type=int, default=STEPS)
    p.add_argument("--seed", type=int, default=2)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--precision", choices=("bf16", "f32"), default="bf16")
    p.add_argument("--start", default=None, help="take the block's first weights from this checkpoint")
    p.add_argument("--count", type=int, default=30, help="prompts a skill for the acceptance; 0: none")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    keep_memory()
    kept = torch.load(args.checkpoint, weights_only=True)
    model = Pocket(Shape(), args.precision)
    model.load_state_dict(kept["model"])
    if args.start:
        other = torch.load(args.start, weights_only=True)["model"]
        model.load_state_dict({n: w for n, w in other.items() if n.startswith("mtp.")}, strict=False)
    model.requires_grad_(False)
    model.mtp.requires_grad_(True)
    optimiser = Optimiser(dict(model.mtp.named_parameters()))
    stream = Stream(args.seed, Encoder(load()), lambda _: MIX)
    started, mean = time.process_time(), 0.0
    for step in range(args.steps):
        loss = loss_of(model, stream.next(step))
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(PEAK * min(1.0, (step + 1) / 20, 1.4 * (1 - step / args.steps)))
        value = float(loss.detach())
        mean = value if step == 0 else 0.95 * mean + 0.05 * value
        if (step + 1) % 20 == 0:
            print(f"step {step + 1} loss {mean:.4f} cpu {time.process_time() - started:.0f} s", flush=True)
    kept["model"] = model.state_dict()
    kept["mtp_steps"] = args.steps
    save(Path(args.out), kept)
    if args.count:
        print(json.dumps(acceptance(model, args.count)))


if __name__ == "__main__":
    main()
