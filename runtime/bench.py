"""Tokens a second through the engine's own step loop: scheduler, sampler and parser included, no client and no process between.

prefill   one sequence of `depth` + N prompt tokens; the steps after the first `depth` count, the draw of one id with them
decode    `parallel` sequences with `depth` tokens each; the steps count in which all of them draw, until each has drawn N ids
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .engine import Engine
from .wire import IdsPrompt, Output, Request, Sampling

try:
    import resource
except ImportError:  # Windows counts no such switches
    resource = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Sample:
    """One repetition."""

    num_tokens: int
    seconds: float
    involuntary_switches: int | None
    """How often the system took the processor from one of this process's threads; None where it does not say."""

    @property
    def tokens_per_s(self) -> float:
        """Of all sequences together."""
        return self.num_tokens / self.seconds


def prefill(engine: Engine, num_tokens: int, depth: int, seed: int) -> Sample:
    """One repetition. The ids are random, and others in each, so that nothing can be remembered."""
    engine.add(_request("prefill", engine, depth + num_tokens, 1, seed))
    num_prefilled = 0
    while num_prefilled < depth:
        num_prefilled += sum(output.num_prefilled - num_prefilled for output in engine.step(depth - num_prefilled))
    started_at, switches = engine.clock(), _switches()
    while engine.has_work:
        engine.step()
    return Sample(depth + num_tokens - num_prefilled, engine.clock() - started_at, _since(switches))


def decode(engine: Engine, num_tokens: int, depth: int, parallel: int, seed: int) -> Sample:
    """One repetition."""
    room = engine.intake.max_model_len - max(depth, 1)
    for index in range(parallel):
        engine.add(_request(f"decode-{index}", engine, max(depth, 1), room, seed + index))
    drawing: set[str] = set()
    while len(drawing) < parallel:
        drawing |= {output.request_id for output in engine.step() if output.token_ids}
    started_at, switches, num_drawn = engine.clock(), _switches(), 0
    while num_drawn < num_tokens * parallel:
        num_drawn += _count(engine.step())
    sample = Sample(num_drawn, engine.clock() - started_at, _since(switches))
    for index in range(parallel):
        engine.abort((f"decode-{index}", 0))
    return sample


def decode_room(num_tokens: int, depth: int, parallel: int, max_prefill_beside_decode: int) -> int:
    """Context that a sequence of `decode` may come to need: the first draws while the last are still read."""
    steps = parallel * -(-max(depth, 1) // max_prefill_beside_decode) + parallel
    return max(depth, 1) + num_tokens + steps + 1


def repeat(run: Callable[[int], Sample], repetitions: int) -> dict[str, Any]:
    """A warm-up, then so many; the figures of all, their median, and that of the undisturbed where there are any."""
    run(0)
    samples = [run(1 + number) for number in range(repetitions)]
    calm = [one.tokens_per_s for one in samples if one.involuntary_switches == 0]
    return {
        "num_tokens": samples[0].num_tokens,
        "tokens_per_s": round(statistics.median(one.tokens_per_s for one in samples), 2),
        "undisturbed_tokens_per_s": round(statistics.median(calm), 2) if calm else None,
        "samples": [
            {
                "tokens_per_s": round(one.tokens_per_s, 2),
                "seconds": round(one.seconds, 6),
                "involuntary_switches": one.involuntary_switches,
            }
            for one in samples
        ],
    }


def _request(name: str, engine: Engine, num_prompt_tokens: int, max_tokens: int, seed: int) -> Request:
    draw = random.Random(seed)
    ids = [draw.randrange(engine.intake.tokenizer.vocab_size) for _ in range(num_prompt_tokens)]
    sampling = Sampling(temperature=0.0, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0)
    return Request(
        request_id=name, prompt=IdsPrompt(token_ids=ids), sampling=sampling, max_tokens=max_tokens, ignore_eos=True
    )


def _count(outputs: list[Output]) -> int:
    return sum(len(output.token_ids) for output in outputs)


def _switches() -> int | None:
    return None if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _since(before: int | None) -> int | None:
    now = _switches()
    return None if before is None or now is None else now - before
