"""Measures an exported model on held-out prompts, one exact right answer each.

    python -m models.pocket.evaluate [--model DIR] [--format int4] [--json FILE]

A greedy answer equals the right one exactly when the right token has the largest logit at every answer
position of one forward pass over the whole conversation, so nothing has to be generated.
Exits with 1 when a skill is below its bar.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from models.pocket.batches import Batch, Row, collate
from models.pocket.curriculum import MEASURED, Conversation, measured_conversation
from models.pocket.export import HERE, read
from models.pocket.model import Pocket
from models.pocket.tokenizer import Encoder, load

BAR = 95.0
BARS = {"add": 90.0, "sub": 90.0}


@dataclass(frozen=True)
class Scored:
    """One conversation: whether all of the last turn is right, and the smallest top-1 minus top-2 logit."""

    right: bool
    margin: float
    wrong: str


def last_turn(row: Row, encoder: Encoder, c: Conversation) -> Row:
    """Keep the loss flags of what the assistant wrote after the last user message only."""
    ids, loss = row
    queries = [i for i, m in enumerate(c.messages) if m["role"] == "user"]
    earlier = sum(m["role"] == "assistant" for m in c.messages[: queries[-1]])
    seen, flags = 0, []
    before = False
    for flag in loss:
        seen += flag and not before
        before = flag
        flags.append(flag and seen > earlier)
    return ids, flags


Predict = Callable[[Row, Batch], Tensor]
"""Logits [n, V] at the positions of the batch's one row whose next token counts."""


def by_training_form(model: Pocket) -> Predict:
    """The model as it is trained."""
    return lambda row, batch: model.logits(model.hidden(batch.ids, batch.chunk, batch.select))


def by_engine(folder: Path, weight_format: str) -> Predict:
    """The model as it is served, in this weight format."""
    from models.pocket.serving import ServedModel  # an installed shoal; training needs none

    served = ServedModel(folder, weight_format)
    return lambda row, batch: served.logits(row[0])[batch.select]


@torch.no_grad()
def score(predict: Predict, encoder: Encoder, conversations: list[Conversation]) -> list[Scored]:
    """Teacher-forced greedy comparison of the last turn of each conversation."""
    out: list[Scored] = []
    for c in conversations:
        row = last_turn(encoder.conversation(c), encoder, c)
        batch = collate([row])
        logits = predict(row, batch)
        top = logits.topk(2, -1)
        best = top.indices[:, 0]
        right = bool((best == batch.targets).all())
        margin = float((top.values[:, 0] - top.values[:, 1]).min())
        wrong = "" if right else encoder.tok.decode(best.tolist(), skip_special_tokens=False)
        out.append(Scored(right, margin, wrong))
    return out


def measure(predict: Predict, count: int, seed: int, skills: list[str], show: int = 0) -> dict[str, Any]:
    """Exact match in per cent for each skill."""
    encoder = Encoder(load())
    result: dict[str, Any] = {}
    for skill in skills:
        rng = Random(f"measure/{seed}/{skill}")
        n = count if skill != "memory_1000" else max(1, count // 2)
        drawn = [measured_conversation(rng, skill, encoder.count) for _ in range(n)]
        scored = score(predict, encoder, drawn)
        right = sum(s.right for s in scored)
        margins = sorted(s.margin for s in scored if s.right)
        bar = BARS.get(skill, BAR)
        exact = 100 * right / n
        result[skill] = {"prompts": n, "right": right, "exact": round(exact, 1), "bar": bar,
                         "passed": exact >= bar,
                         "median_margin": round(margins[len(margins) // 2], 2) if margins else None}  # fmt: skip
        for c, s in zip(drawn, scored, strict=True):
            if show and not s.right:
                show_of = c.messages[-1]
                print(f"  {skill}: want {show_of['content']!r} {show_of.get('reasoning_content')!r} got {s.wrong!r}")
    return result


def table(result: dict[str, Any]) -> str:
    """A Markdown table of :func:`measure`'s result."""
    lines = ["| skill | prompts | exact match | bar | |", "|---|---|---|---|---|"]
    for skill, r in result.items():
        mark = "" if r["passed"] else "below"
        lines.append(f"| {skill} | {r['prompts']} | {r['exact']:.1f} % | {r['bar']:.0f} % | {mark} |")
    return "\n".join(lines)


def main() -> int:
    p = argparse.ArgumentParser(description="Measure pocket on held-out prompts.")
    p.add_argument("--model", default=str(HERE))
    p.add_argument("--count", type=int, default=200, help="prompts a skill (half for memory_1000)")
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--skills", default=",".join(MEASURED))
    p.add_argument("--precision", choices=("bf16", "f32"), default="f32")
    p.add_argument("--format", choices=("bf16", "int8", "int4"), help="measure what the engine serves in this format")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--json", default=None, help="also write the result to this file")
    p.add_argument("--show", action="store_true", help="print the wrong answers")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    folder = Path(args.model)
    predict = by_training_form(read(folder, args.precision)) if args.format is None else by_engine(folder, args.format)
    result = measure(predict, args.count, args.seed, args.skills.split(","), args.show)
    print(table(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if all(r["passed"] for r in result.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
