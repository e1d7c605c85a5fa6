"""The best tokens of a row: found through a coarse scan, they are those of the whole row, in its order, with its bits."""

import numpy as np
import pytest
from shoal_test_tiny_models import PAGES, assert_same_bits, ids_of, run, step

from shoal.kernels.cpu.engine import TopRequest

FORMATS = ("bf16", "int8", "int4")


def best_of(logits, k, adjust_ids=(), adjust_values=(), limit=None):
    adjusted = logits.copy()
    adjusted[list(adjust_ids)] += np.array(adjust_values, np.float32)
    ids = np.lexsort((np.arange(len(logits)), -adjusted))
    ids = ids[ids < (len(logits) if limit is None else limit)][:k]
    return ids, adjusted[ids], logits[ids]


def assert_best(row, want):
    ids, *logits = row
    assert ids == want[0].tolist()
    assert_same_bits([np.array(values, np.float32) for values in logits], want[1:])


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_best_are_those_of_the_whole_row(models, weight_format, threads):
    rng = np.random.default_rng(0)
    for seed, vocab in ((0, 333), (1, 5000), (2, 70)):
        model = models(weight_format, seed, vocab_size=vocab)
        engine = model.engine(threads=threads, isa="auto")
        ids = ids_of(model, 50, seed)
        requests, wants = [], []
        full = run(engine, ids)
        for at, k in ((49, 1), (0, 20), (7, 256), (7, 5), (30, 64), (31, 40)):
            adjust = rng.permutation(vocab)[: rng.integers(0, 40)].astype(np.int32)
            values = rng.normal(0, 20, len(adjust)).astype(np.float32)
            values[rng.random(len(adjust)) < 0.2] = -np.inf
            requests.append(TopRequest(at, k, adjust, values))
            wants.append(best_of(full[at], k, adjust, values))
        for row, want in zip(step(engine, [(ids, 0, 0, PAGES)], [], requests).top, wants, strict=True):
            assert_best(row, want)


def test_ids_that_nobody_may_draw_are_never_among_the_best(models):
    model = models("int4", 1, vocab_size=5000)
    engine = model.engine(drawable_vocab_size=45)
    ids = ids_of(model, 5)
    full = run(engine, ids)
    rows = step(engine, [(ids, 0, 0, PAGES)], [], [TopRequest(4, 20), TopRequest(3, 100)]).top
    assert_best(rows[0], best_of(full[4], 20, limit=45))
    assert_best(rows[1], best_of(full[3], 100, limit=45))
    assert len(rows[1][0]) == 45


def test_too_many_candidates_are_all_scored(models):
    """A ban of all but three ids: nothing bounds the fourth."""
    model = models("int4", 1, vocab_size=5000)
    engine = model.engine(threads=2)
    ids = ids_of(model, 5)
    full = run(engine, ids)
    banned = np.setdiff1d(np.arange(5000), [17, 4000, 4999]).astype(np.int32)
    bans = np.full(len(banned), -np.inf, np.float32)
    top = [TopRequest(4, 4, banned, bans), TopRequest(2, 6)]
    rows = step(engine, [(ids, 0, 0, PAGES)], [], top).top
    assert_best(rows[0], best_of(full[4], 4, banned, bans))
    assert_best(rows[1], best_of(full[2], 6))
