"""Writes golden.json: prompts with pocket's greedy answers that rounding cannot change.

    python -m models.pocket.golden [--model DIR] [--out FILE]

Kept are right answers whose smallest distance between the largest and the second largest logit, over all
answer tokens and the closing ``<|im_end|>``, is at least 1.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

import torch

from models.pocket.batches import collate
from models.pocket.curriculum import MEASURED, Conversation, measured_conversation
from models.pocket.export import HERE, read
from models.pocket.model import Pocket
from models.pocket.skills import addition_thought
from models.pocket.tokenizer import Encoder, load

LEAST = 1.0
EACH = 5
TRIES = 150


def entry(model: Pocket, encoder: Encoder, c: Conversation) -> dict[str, Any] | None:
    """The golden record of the last assistant message, or None if it is wrong or too close."""
    ids, loss = encoder.conversation(c)
    end = len(loss) - 1 - loss[::-1].index(True)
    begin = end
    while loss[begin - 1]:
        begin -= 1
    flags = [begin <= i <= end for i in range(len(ids))]
    batch = collate([(ids, flags)])
    with torch.no_grad():
        top = model.logits(model.hidden(batch.ids, batch.chunk, batch.select)).topk(2, -1)
    margin = float((top.values[:, 0] - top.values[:, 1]).min())
    if bool((top.indices[:, 0] != batch.targets).any()) or margin < LEAST:
        return None
    answer = ids[begin : end + 1]
    record: dict[str, Any] = {"skill": c.skill, "messages": c.messages[:-1]}
    if c.tools:
        record["tools"] = c.tools
    record |= {
        "enable_thinking": c.thinking,
        "prompt_ids": ids[:begin],
        "text": encoder.tok.decode(answer[:-1], skip_special_tokens=False),
        "ids": answer,
        "margin": round(margin, 3),
    }
    return record


def known() -> list[Conversation]:
    """Prompts that must be there whatever is drawn."""
    sums = [("What is 17 + 25?", "17 + 25 = 42", 17, 25)]
    out = []
    for user, answer, a, b in sums:
        for thinking in (False, True):
            reply = {"role": "assistant", "content": answer}
            if thinking:
                reply["reasoning_content"] = addition_thought(a, b)
            messages = [{"role": "user", "content": user}, reply]
            out.append(Conversation(messages, "add_think" if thinking else "add", thinking))
    return out


def collect(model: Pocket, seed: int = 11) -> list[dict[str, Any]]:
    """At most ``EACH`` records a skill; a tool conversation gives its call and its answer."""
    encoder = Encoder(load())
    records = [r for c in known() if (r := entry(model, encoder, c))]
    for skill in MEASURED:
        rng = Random(f"golden/{seed}/{skill}")
        found = 0
        for _ in range(TRIES):
            if found == EACH:
                break
            c = measured_conversation(rng, skill, encoder.count)
            parts = [c]
            if skill == "tool_use":
                call = Conversation(c.messages[:-2], "tool_call", c.thinking, c.tools)
                parts = [call, c]
            made = [entry(model, encoder, part) for part in parts]
            if all(made):
                records += [m for m in made if m]
                found += 1
    return records


def main() -> None:
    p = argparse.ArgumentParser(description="Write pocket's golden answers.")
    p.add_argument("--model", default=str(HERE))
    p.add_argument("--out", default=str(HERE / "golden.json"))
    args = p.parse_args()
    torch.set_num_threads(1)
    records = collect(read(Path(args.model)))
    lines = ",\n".join(json.dumps(r, ensure_ascii=False) for r in records)
    Path(args.out).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    by_skill = {s: sum(r["skill"] == s for r in records) for s in [*MEASURED, "tool_call"]}
    print(len(records), "records;", by_skill)


if __name__ == "__main__":
    main()
