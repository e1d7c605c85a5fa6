"""Times the native bf16 matrix-vector product against numpy and torch, one thread each, and writes JSON.

    OPENBLAS_NUM_THREADS=1 python tests/bench/matvec.py [--rounds N] [--out FILE]

The contestants take turns within a round and the median over the rounds counts, so that a machine that changes its
clock or shares its cores treats all alike. Weights are cycled through copies larger than the caches: what is timed is
decoding, which reads each weight once a token. numpy has no bf16 and reads twice the bytes; it is here as the
well-known yardstick, torch's bf16 as the one with equal work.
"""

import argparse
import statistics
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import report
import torch

from shoal.kernels import cpu

SHAPES = {"1024x1024": (1024, 1024), "3584x1024": (3584, 1024), "2560x9728": (2560, 9728)}  # out x in
CYCLED_BYTES = 256 << 20


def contestants(num_out, num_in):
    """name -> (bytes of weights a call reads, a call without arguments). All compute y[out] = W[out, in] @ x[in]."""
    rng = np.random.default_rng(0)
    copies = max(2, CYCLED_BYTES // (num_out * num_in * 2))
    w32 = torch.from_numpy(rng.standard_normal((num_out, num_in), np.float32))
    x = rng.standard_normal(num_in, np.float32)
    x16, w16 = torch.from_numpy(x).bfloat16(), [w32.bfloat16().clone() for _ in range(copies)]
    wide = [w32.numpy().copy() for _ in range(copies // 2)]
    out = np.empty(num_out, np.float32)
    bytes16 = num_out * num_in * 2

    def native(isa):
        turn = cycle([w.view(torch.uint16).numpy() for w in w16])
        return lambda: cpu.matvec_bf16(next(turn), x, out, isa)

    wide_turn, torch_turn = cycle(wide), cycle(w16)
    calls = {f"shoal bf16 {isa}": (bytes16, native(isa)) for isa in cpu.available_isas()}
    calls["numpy f32"] = (2 * bytes16, lambda: np.matmul(next(wide_turn), x, out=out))
    calls["torch bf16"] = (bytes16, lambda: torch.mv(next(torch_turn), x16))
    return calls


def measure(shape, rounds):
    calls = contestants(*shape)
    seconds = {name: [] for name in calls}
    for _, call in calls.values():
        call()
    for _ in range(rounds):
        for name, (_, call) in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "median_us": round(statistics.median(seconds[name]) * 1e6, 1),
            "best_us": round(min(seconds[name]) * 1e6, 1),
            "weights_gb_per_s": round(num_bytes / statistics.median(seconds[name]) / 1e9, 2),
        }
        for name, (num_bytes, _) in calls.items()
    }


def main():
    parser = argparse.ArgumentParser(description="native matvec against numpy and torch")
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--out", type=Path, help="default: build/bench/matvec-<commit>.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    written = report.header("matvec_bf16", "numpy", "torch") | {
        "threads": 1,
        "rounds": options.rounds,
        "shapes": {name: measure(shape, options.rounds) for name, shape in SHAPES.items()},
    }
    for name, results in written["shapes"].items():
        for contestant, r in results.items():
            print(f"{name:>10}  {contestant:18} {r['median_us']:>9} us  {r['weights_gb_per_s']:>6} GB/s")
    print(report.write(written, options.out))


if __name__ == "__main__":
    main()
