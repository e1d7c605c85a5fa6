"""Times our engine with the machine's limit measured between the repetitions, in the same process, and prints JSON.

    python tests/bench/run_shoal.py DIR --threads N --isa SET (--gen N | --prompt N) [--depth N] [--repetitions N]

What a shared machine can read changes within seconds, by a factor of two: a share of the limit means something only between
neighbours in time. Each repetition's limit is the mean of those right before and right behind it.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

from shoal.kernels.cpu import best_isa, limits
from shoal.runtime import bench
from shoal.runtime.config import EngineOptions
from shoal.runtime.engine import MAX_PREFILL_BESIDE_DECODE
from shoal.runtime.loading import load_engine
from shoal.runtime.thread_waiting import wait_passively

LIMIT_REPETITIONS = {"read": 3, "int8": 40}


def limit_rate(kind: str, isa: str, threads: int) -> float:
    """Bytes a second by the best loop of any set; or 8-bit operations a second of this set."""
    if kind == "read":
        return limits.read_rate(best_isa(), threads, repetitions=LIMIT_REPETITIONS[kind]).per_s
    return limits.dot_int8_rate(isa, threads, repetitions=LIMIT_REPETITIONS[kind]).per_s


def main() -> None:
    parser = argparse.ArgumentParser(description="our engine beside the machine's limits")
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--isa", default="auto")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--prompt", type=int)
    amount.add_argument("--gen", type=int)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    wait_passively()
    if options.prompt:
        context = options.depth + options.prompt + 1
    else:
        context = bench.decode_room(options.gen, options.depth, 1, MAX_PREFILL_BESIDE_DECODE)
    loaded = load_engine(
        options.model,
        EngineOptions(backend="cpu", threads=options.threads, isa=options.isa, parallel=1, context=max(context, 256)),
    )
    loaded.backend.make_present()
    engine = loaded.engine
    kind = "int8" if options.prompt else "read"
    isa = best_isa() if options.isa == "auto" else options.isa

    def run(seed: int) -> bench.Sample:
        if options.prompt:
            return bench.prefill(engine, options.prompt, options.depth, seed)
        return bench.decode(engine, options.gen, options.depth, 1, seed)

    run(0)
    samples, rates = [], [limit_rate(kind, isa, options.threads)]
    for number in range(options.repetitions):
        samples.append(run(1 + number))
        rates.append(limit_rate(kind, isa, options.threads))
    print(
        json.dumps(
            [
                {
                    "tokens_per_s": sample.tokens_per_s,
                    "seconds": sample.seconds,
                    "involuntary_switches": sample.involuntary_switches or 0,
                    "limit_per_s": (before + behind) / 2,
                }
                for sample, (before, behind) in zip(samples, pairwise(rates), strict=True)
            ]
        )
    )


if __name__ == "__main__":
    main()
