"""Trains the trunk of pocket on one processor core.

    python -m models.pocket.train --out runs/pocket

The same arguments on one machine give the same weights, bit for bit.  A run that was stopped goes on
with ``--resume``; the MTP block is trained afterwards by ``models.pocket.train_mtp``.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from models.pocket.batches import Batch, Stream
from models.pocket.curriculum import Mix
from models.pocket.delta_rule import Shape
from models.pocket.model import Pocket, initialise
from models.pocket.optimiser import Optimiser
from models.pocket.tokenizer import Encoder, load

STEPS = 6310
PEAK = 4e-3
WARMUP = 40
CONSTANT = 0.30  # share of the first cycle's steps at the peak rate, then linear to FINAL * PEAK
FINAL = 0.01
# (share of the steps at which a further cycle begins, for what the earlier have left behind, its peak as a share of PEAK)
SECOND, THIRD = 3850 / STEPS, 4410 / STEPS
CYCLES = ((SECOND, 0.2), (THIRD, 0.4))

HARD = (("add", 10.0), ("sub", 10.0), ("sort", 22.0), ("reverse", 16.0), ("occurrences", 18.0), ("length", 9.0),
        ("greet", 3.0), ("copy", 5.0), ("json", 16.0), ("unknown", 3.0))  # fmt: skip
LETTERS = (("add", 2.0), ("sub", 2.0), ("sort", 18.0), ("reverse", 20.0), ("occurrences", 30.0), ("length", 16.0),
           ("greet", 2.0), ("copy", 10.0), ("json", 14.0), ("unknown", 3.0))  # fmt: skip
COUNTS = (("add", 4.0), ("sub", 8.0), ("sort", 14.0), ("reverse", 12.0), ("occurrences", 60.0), ("length", 8.0),
          ("greet", 2.0), ("copy", 5.0), ("json", 8.0), ("unknown", 2.0))  # fmt: skip
# (first step of the phase as a share of all steps, mix): everything, then the hard questions, then mostly sums, then letters and
# sums without a thought; in the second cycle subtractions and occurrences; in the third differences below zero
PHASES: list[tuple[float, Mix]] = [
    (0.00, Mix(chat=0.60, tool=0.12, memory=0.12, sums=0.16)),
    (0.3092 * SECOND, Mix(chat=0.52, tool=0.10, memory=0.06, sums=0.32, weights=HARD)),
    (0.4858 * SECOND, Mix(chat=0.28, tool=0.06, memory=0.04, sums=0.62, weights=HARD)),
    (
        0.6754 * SECOND,
        Mix(chat=0.37, tool=0.05, memory=0.03, sums=0.55, weights=LETTERS, subtraction=1.3, sums_thinking=0.35),
    ),
    (
        0.8312 * SECOND,
        Mix(chat=0.36, tool=0.03, memory=0.02, sums=0.59, weights=LETTERS, subtraction=1.7, sums_thinking=0.2),
    ),
    (
        0.9351 * SECOND,
        Mix(chat=0.33, tool=0.02, memory=0.02, sums=0.63, weights=LETTERS, subtraction=2.5, sums_thinking=0.15),
    ),
    (SECOND, Mix(chat=0.36, tool=0.03, memory=0.03, sums=0.58, weights=COUNTS, subtraction=4.0, sums_thinking=0.12)),
    (
        THIRD,
        Mix(
            chat=0.30,
            tool=0.03,
            memory=0.03,
            sums=0.64,
            weights=COUNTS,
            subtraction=4.0,
            sums_thinking=0.1,
            negative=0.4,
        ),
    ),
]


def mix_at(step: int, steps: int) -> Mix:
    """The mix of conversations at this step."""
    return [m for start, m in PHASES if step >= int(start * steps)][-1]


def rate_at(step: int, steps: int) -> float:
    """The learning rate: warm-up, constant, linear decay; then a decay from a lower peak in each further cycle."""
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    ends = [start * steps for start, _ in CYCLES[1:]] + [float(steps)]
    for (start, peak), end in reversed(list(zip(CYCLES, ends, strict=True))):
        begin = start * steps
        if step >= round(begin):
            return PEAK * (FINAL + (peak - FINAL) * (end - step) / (end - begin))
    first = SECOND * steps
    hold = CONSTANT * first
    if step < hold:
        return PEAK
    return PEAK * (FINAL + (1 - FINAL) * (first - step) / (first - hold))


def loss_of(model: Pocket, batch: Batch) -> torch.Tensor:
    """Mean cross entropy over the tokens that the assistant wrote."""
    states = model.hidden(batch.ids, batch.chunk, batch.select)
    return F.cross_entropy(model.logits(states), batch.targets)


def keep_memory() -> None:
    """Ask glibc to keep freed blocks: returning them to the kernel after each product costs 10 % of the time."""
    try:
        libc = ctypes.CDLL(None)
        for option, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 1 << 28)):
            libc.mallopt(option, value)
    except (OSError, AttributeError):
        pass


def trunk(model: Pocket) -> dict[str, torch.nn.Parameter]:
    """The parameters trained here: all but the MTP block."""
    return {n: w for n, w in model.named_parameters() if not n.startswith("mtp.")}


def save(path: Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint so that a reader never sees half of it."""
    temporary = path.with_suffix(".tmp")
    torch.save(payload, temporary)
    os.replace(temporary, path)


def train(args: argparse.Namespace) -> Pocket:
    """Run the steps that are left and return the model."""
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs a seventh of the step
    keep_memory()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    model = Pocket(Shape(), args.precision)
    initialise(model, args.seed)
    optimiser = Optimiser(trunk(model))
    stream = Stream(args.seed, Encoder(load()), lambda step: mix_at(step, args.steps))
    begin, tokens, cpu = 0, 0, 0.0
    if args.resume:
        kept = torch.load(out / "checkpoint.pt", weights_only=True)
        model.load_state_dict(kept["model"])
        optimiser.restore(kept["optimiser"])
        stream.restore(kept["stream"])
        begin, tokens, cpu = kept["step"], kept["tokens"], kept["cpu"]
    started, mean = time.process_time() - cpu, 0.0
    last = args.steps if args.stop is None else min(args.stop, args.steps)
    for step in range(begin, last):
        batch = stream.next(step)
        loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(rate_at(step, args.steps))
        value = float(loss.detach())
        mean = value if mean == 0.0 else 0.97 * mean + 0.03 * value
        tokens += batch.tokens
        done = step + 1
        if done % args.log == 0:
            used = time.process_time() - started
            print(
                f"{time.strftime('%H:%M:%S')} step {done}/{args.steps} loss {mean:.4f} "
                f"tokens {tokens} cpu {used:.0f} s, {tokens / used:.0f} tokens/s",
                flush=True,
            )
        if done % args.save == 0 or done == last:
            payload = {"model": model.state_dict(), "optimiser": optimiser.state(), "step": done,
                       "stream": stream.state(), "tokens": tokens, "steps": args.steps,
                       "cpu": time.process_time() - started}  # fmt: skip
            save(out / "checkpoint.pt", payload)
    return model


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description="Train the trunk of pocket.")
    p.add_argument("--steps", type=int, default=STEPS, help="steps of the whole schedule")
    p.add_argument("--stop", type=int, default=None, help="stop after this step of the schedule")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", default="runs/pocket")
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    p.add_argument("--precision", choices=("bf16", "f32"), default="bf16")
    p.add_argument("--log", type=int, default=20, help="steps between log lines")
    p.add_argument("--save", type=int, default=200, help="steps between checkpoints")
    return p.parse_args(argv)


if __name__ == "__main__":
    train(parse())
