"""Prints a digest of everything that engines compute, a line for each weight format, instruction set and kind of cache.

Two builds that print the same lines compute the same bits: `make test-clang` compares compilers this way. A script, no test.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import packing
import tiny_models

from shoal.kernels.cpu import available_isas
from shoal.kernels.cpu.engine import DELTA, TopRequest
from shoal.kernels.cpu.quantise import quantise

SEEDS = range(4)
PROMPT, ANSWER = 75, 5


def digest(arrays):
    state = hashlib.sha256()
    for array in arrays:
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()[:24]


def computed(model, isa, kv_format):
    """Logits and best ids of a prompt in one piece, of a second sequence beside it and of an answer, and what is kept of it."""
    engine = model.engine(isa=isa, kv_format=kv_format, threads=2)
    ids = tiny_models.ids_of(model, PROMPT + ANSWER)
    pages, others = tiny_models.PAGES, (1, 3)
    best = [TopRequest(PROMPT - 1, 9)]
    result = tiny_models.step(engine, [(ids[:PROMPT], 0, 0, pages), (ids[:7], 0, 1, others)], top=best)
    yield from (result.full, result.top[0].ids, result.top[0].logits)
    for at in range(PROMPT, PROMPT + ANSWER):
        result = tiny_models.step(engine, [(ids[at : at + 1], at, 0, pages)], top=[TopRequest(0, 9)])
        yield from (result.full, result.top[0].ids, result.top[0].logits)
    table = tiny_models.int32(*pages)
    for i, kind in enumerate(engine.shape.layers):
        if kind == DELTA:
            yield from (engine.read_columns(i, 0), engine.read_state(i, 0, len(ids)))
        else:
            yield from (engine.read_keys(i, table, len(ids)), engine.read_values(i, table, len(ids)))


def packed(layout, isa):
    """What a converter writes for matrices of light and heavy tails."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        values = rng.standard_t(3 + seed, (70, 300)).astype(np.float32)
        yield quantise(layout, values, "F32", importance=rng.random(300).astype(np.float32) + 0.1, isa=isa).packed


def main():
    for isa in available_isas():
        for layout in ("int4", "int8", "rows8"):
            print(f"packed   {layout:5} {isa:8} {digest(packed(layout, isa))}")
    for weight_format in ("int4", "int8", "bf16"):
        models = [tiny_models.random_model(packing, seed, weight_format) for seed in SEEDS]
        for kv_format in ("bf16", "int8"):
            for isa in available_isas():
                arrays = (array for model in models for array in computed(model, isa, kv_format))
                print(f"computed {weight_format:5} {isa:8} kv {kv_format:5} {digest(arrays)}")


if __name__ == "__main__":
    main()
