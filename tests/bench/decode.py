"""Times greedy decoding of the pocket model against transformers on the same checkpoint, one thread each, and writes JSON.

    OMP_NUM_THREADS=1 python tests/bench/decode.py [--model DIR] [--rounds N] [--tokens N] [--out FILE]

Both compute in f32. The contestants take turns within a round and the median over the rounds counts; a figure stands beside
its ratio, because machines differ and share their cores. shoal's time includes its scheduler, sampler and parser.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import report
import torch
from transformers import AutoModelForCausalLM, logging

from shoal.runtime import wire
from shoal.runtime.config import EngineOptions
from shoal.runtime.loading import load_engine

BATCHES = (1, 8)
PROMPT = list(range(32, 64))


def shoal_seconds(loaded, batch, num_tokens):
    """Decode `batch` sequences side by side through the engine."""
    start = time.perf_counter()
    for index in range(batch):
        loaded.engine.add(
            wire.Request(
                request_id=f"bench-{index}", prompt=wire.IdsPrompt(PROMPT), max_tokens=num_tokens, ignore_eos=True,
                sampling=wire.Sampling(temperature=0.0),
            )
        )  # fmt: skip
    produced = 0
    while loaded.engine.has_work:
        produced += sum(len(output.token_ids) for output in loaded.engine.step())
    assert produced == batch * num_tokens
    return time.perf_counter() - start


def peer_seconds(model, batch, num_tokens):
    """The same with `generate`, which has a cache of its own."""
    ids = torch.tensor([PROMPT] * batch)
    start = time.perf_counter()
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False
    )
    assert out.shape == (batch, len(PROMPT) + num_tokens)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description="decoding against transformers")
    parser.add_argument("--model", type=Path, default=report.ROOT / "models" / "pocket")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--out", type=Path, help="default: build/bench/decode-<commit>.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    loaded = load_engine(options.model, EngineOptions(threads=1, context=1024))
    peer = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    batches = {}
    for batch in BATCHES:
        contestants = {
            "shoal": lambda n, batch=batch: shoal_seconds(loaded, batch, n),
            "transformers": lambda n, batch=batch: peer_seconds(peer, batch, n),
        }
        seconds = {name: [] for name in contestants}
        for run in contestants.values():
            run(8)
        for _ in range(options.rounds):
            for name, run in contestants.items():
                seconds[name].append(run(options.tokens))
        speed = {name: batch * options.tokens / statistics.median(taken) for name, taken in seconds.items()}
        batches[batch] = {
            "tokens_per_s": {name: round(value, 1) for name, value in speed.items()},
            "ratio": round(speed["shoal"] / speed["transformers"], 2),
        }
        print(f"batch {batch}: {batches[batch]}")
    header = report.header("decode", "torch", "transformers")
    print(report.write(header | {"threads": 1, "rounds": options.rounds, "batches": batches}, options.out))


if __name__ == "__main__":
    main()
