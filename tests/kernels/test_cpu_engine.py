"""The native engine on tiny random models: against the reference model, and against itself in every other arrangement.

Tolerances against the reference: it sees the same weights but keeps activations in f32, while int8 and int4 products round them
to 8 bits (relative error of a 256-block about 0.5 %, growing over four layers), and keys and values are stored in bf16 by both
(rounding that differs by one unit where the last bits of f32 differ). Between arrangements of the same engine: none, all bits
are equal.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kernels.cpu import available_isas
from shoal.kernels.cpu.engine import (
    ATTENTION,
    DELTA,
    Engine,
    Step,
    TopRequest,
    UnsupportedIsa,
    UnsupportedShape,
    check_shape,
    expected_tensors,
    pool_bytes,
)
from shoal.runtime.batch import Batch, Row
from shoal.runtime.cache import HybridCache
from shoal.runtime.config import EngineOptions, ModelConfig
from shoal.runtime.model import HybridModel
from shoal.runtime.plan import plan_memory

torch.set_num_threads(1)

FORMATS = ("bf16", "int8", "int4")
RELATIVE_ERROR = {"bf16": 1e-3, "int8": 0.02, "int4": 0.02}
PAGES = (7, 2, 19, 0)


@pytest.fixture(scope="module")
def models(packing, tiny_models):
    made = {}

    def get(weight_format, seed=0, **changes):
        key = weight_format, seed, tuple(changes.items())
        if key not in made:
            made[key] = tiny_models.random_model(packing, seed, weight_format, **changes)
        return made[key]

    return get


def ids_of(model, count, seed=0):
    return np.random.default_rng(seed).integers(0, model.shape.vocab_size, count).astype(np.int32)


def int32(*values):
    return np.array(values, np.int32)


def step(engine, rows, full_at=None, top=()):
    """rows: (ids, start, slot, pages) each; whole logits of every token unless told otherwise."""
    ids = np.concatenate([row[0] for row in rows])
    begins = np.cumsum([0, *(len(row[3]) for row in rows)])
    table = [(len(row[0]), row[1], row[2], begin) for row, begin in zip(rows, begins, strict=False)]
    pages = np.concatenate([int32(*row[3]) for row in rows])
    at = np.arange(len(ids), dtype=np.int32) if full_at is None else int32(*full_at)
    return engine.step(Step(ids, np.array(table, np.int32), pages, at, top))


def run(engine, ids, start=0, slot=0, pages=PAGES):
    return step(engine, [(ids, start, slot, pages)]).full


def left_behind(engine, num_tokens, slot=0, pages=PAGES):
    """Everything that a sequence keeps, by layer."""
    kept = []
    for i, kind in enumerate(engine.shape.layers):
        if kind == DELTA:
            kept += [engine.read_columns(i, slot), engine.read_state(i, slot, num_tokens)]
        else:
            table = int32(*pages)
            kept += [engine.read_keys(i, table, num_tokens), engine.read_values(i, table, num_tokens)]
    return kept


def assert_same_bits(got, want):
    for a, b in zip(got, want, strict=True):
        assert np.array_equal(a.view(np.uint32), b.view(np.uint32))


def relative_error(got, want):
    return np.sqrt(((got - want) ** 2).mean() / (want**2).mean())


def reference(model, ids):
    config = ModelConfig.from_mapping(model.config)
    weights = {name: torch.from_numpy(value.copy()) for name, value in model.published.items()}
    plan = plan_memory(config, EngineOptions(context=512, parallel=1, dtype="f32"))
    cache = HybridCache.allocate(config, plan)
    row = Row(len(ids), 0, tuple(range(cache.num_blocks)), 0)
    logits = HybridModel.of(weights, config).forward(Batch(ids.tolist(), [row], list(range(len(ids)))), cache)
    kept = []
    for i in range(config.num_layers):
        if i in config.linear_layers:
            kept += [cache.columns[i][0].numpy(), cache.states[i][0].numpy()]
        else:
            kept += [pool[i].float().flatten(0, 1)[: len(ids)].numpy() for pool in (cache.keys, cache.values)]
    return logits.numpy(), kept


# --- against the reference model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_logits_and_states_equal_the_reference(models, weight_format, seed):
    model = models(weight_format, seed)
    for num_tokens in (1, 7, 90):
        ids = ids_of(model, num_tokens, seed)
        engine = model.engine()
        want, kept = reference(model, ids)
        assert relative_error(run(engine, ids), want) < RELATIVE_ERROR[weight_format]
        for ours, theirs in zip(left_behind(engine, num_tokens), kept, strict=True):
            assert relative_error(ours, theirs) < 3 * RELATIVE_ERROR[weight_format]


def test_int8_pages_differ_by_their_rounding(models):
    model = models("bf16", 1)
    ids = ids_of(model, 90)
    want, _ = reference(model, ids)
    assert relative_error(run(model.engine(kv_format="int8"), ids), want) < 0.03


def test_models_of_one_kind_of_layer(models):
    for layers in ((DELTA, DELTA), (ATTENTION,)):
        model = models("bf16", 2, layers=layers)
        ids = ids_of(model, 20)
        assert relative_error(run(model.engine(), ids), reference(model, ids)[0]) < RELATIVE_ERROR["bf16"]


def test_positions_turn_by_the_amplitude(models):
    model = models("bf16", 1)
    loud = models("bf16", 1, rotary_amplitude=1.25)
    ids = ids_of(model, 9)
    assert relative_error(run(loud.engine(), ids), run(model.engine(), ids)) > 0.01


# --- the same bits however it is arranged ----------------------------------------------------------------------------


@pytest.mark.parametrize("weight_format", ["int8", "int4"])
def test_every_instruction_set_gives_the_same_bits(models, weight_format):
    for seed in range(2):
        model = models(weight_format, seed)
        ids = ids_of(model, 40)
        engines = [model.engine(isa=isa) for isa in available_isas()]
        results = [[run(engine, ids), run(engine, ids[:1], start=40), *left_behind(engine, 41)] for engine in engines]
        for result in results[1:]:
            assert_same_bits(result, results[0])


@pytest.mark.parametrize("kv_format", ["bf16", "int8"])
@pytest.mark.parametrize("weight_format", FORMATS)
@settings(max_examples=8)
@given(cuts=st.lists(st.integers(1, 89), max_size=6, unique=True), threads=st.integers(1, 3))
def test_prefill_cut_anywhere_on_any_number_of_threads(models, weight_format, kv_format, cuts, threads):
    model = models(weight_format, 0)
    ids = ids_of(model, 90)
    whole, cut = model.engine(kv_format=kv_format), model.engine(threads=threads, kv_format=kv_format)
    pieces = [run(cut, ids[a:b], start=a) for a, b in itertools.pairwise([0, *sorted(cuts), 90])]
    assert_same_bits([np.concatenate(pieces), *left_behind(cut, 90)], [run(whole, ids), *left_behind(whole, 90)])


@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("isa", available_isas())
def test_token_by_token_equals_the_whole_prompt(models, weight_format, isa):
    model = models(weight_format, 3)
    ids = ids_of(model, 35)
    whole, single = model.engine(isa=isa), model.engine(isa=isa, threads=2)
    steps = [run(single, ids[t : t + 1], start=t) for t in range(35)]
    assert_same_bits([np.concatenate(steps), *left_behind(single, 35)], [run(whole, ids), *left_behind(whole, 35)])


@pytest.mark.parametrize("weight_format", FORMATS)
@settings(max_examples=8)
@given(data=st.data())
def test_a_sequence_is_the_same_alone_and_in_any_batch(models, weight_format, data):
    model = models(weight_format, 1)
    together, alone = model.engine(threads=2), [model.engine() for _ in range(4)]
    ids = [ids_of(model, 120, seed) for seed in range(4)]
    done = [0] * 4
    for _ in range(3):
        chosen = data.draw(st.permutations(range(4)))[: data.draw(st.integers(1, 4))]
        counts = {i: data.draw(st.integers(1, 30)) for i in chosen}
        rows = [(ids[i][done[i] : done[i] + counts[i]], done[i], i, (4 * i + 1, 4 * i)) for i in chosen]
        results = np.split(step(together, rows).full, np.cumsum([counts[i] for i in chosen])[:-1])
        for i, row, result in zip(chosen, rows, results, strict=True):
            assert_same_bits([result], [run(alone[i], *row[:2])])
            done[i] += counts[i]
            assert_same_bits(left_behind(together, done[i], i, row[3]), left_behind(alone[i], done[i]))


def test_only_wanted_rows_do_not_change_them(models):
    model = models("int4", 1)
    ids = ids_of(model, 60)
    whole, some, none = (model.engine() for _ in range(3))
    want = run(whole, ids)
    assert_same_bits([step(some, [(ids, 0, 0, PAGES)], full_at=[59, 3, 17]).full], [want[[59, 3, 17]]])
    step(none, [(ids, 0, 0, PAGES)], full_at=[])
    assert_same_bits(left_behind(none, 60), left_behind(whole, 60))


def test_a_slot_that_was_used_begins_anew(models):
    model = models("int4", 0)
    first, second = ids_of(model, 50, 1), ids_of(model, 20, 2)
    engine = model.engine()
    run(engine, first)
    assert_same_bits([run(engine, second)], [run(model.engine(), second)])


def test_copies_go_on_like_the_original(models):
    model = models("int4", 1)
    ids = ids_of(model, 70)
    engine = model.engine()
    run(engine, ids[:66], slot=1, pages=(3, 4))
    engine.copy_slot(1, 2)
    engine.copy_page(3, 8)
    engine.copy_page(4, 9)
    copied = run(engine, ids[66:], start=66, slot=2, pages=(8, 9))
    assert_same_bits([copied], [run(engine, ids[66:], start=66, slot=1, pages=(3, 4))])


def test_the_heap_is_left_alone(models):
    for weight_format in FORMATS:
        model = models(weight_format, 0)
        engine = model.engine(threads=2)
        if engine.allocations_in_last_step < 0:
            pytest.skip("this build cannot count allocations")
        ids = ids_of(model, 40)
        adjusted = TopRequest(39, 20, int32(5, 3), np.array([1, -1], np.float32))
        step(engine, [(ids, 0, 0, PAGES)], top=[adjusted, TopRequest(2, 1)])
        assert engine.allocations_in_last_step == 0
        step(engine, [(ids[:1], 40, 0, PAGES)], full_at=[], top=[TopRequest(0, 40)])
        assert engine.allocations_in_last_step == 0


# --- the best tokens -------------------------------------------------------------------------------------------------


def best_of(logits, k, adjust_ids=(), adjust_values=(), limit=None):
    adjusted = logits.copy()
    adjusted[list(adjust_ids)] += np.array(adjust_values, np.float32)
    ids = np.lexsort((np.arange(len(logits)), -adjusted))
    ids = ids[ids < (len(logits) if limit is None else limit)][:k]
    return ids, adjusted[ids], logits[ids]


def assert_best(row, want):
    assert row.ids.tolist() == want[0].tolist()
    assert_same_bits([row.adjusted, row.logits], want[1:])


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
    assert len(rows[1].ids) == 45


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


# --- what it takes and refuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_format", FORMATS)
def test_planned_bytes_are_allocated_bytes(models, weight_format):
    for seed in range(3):
        model = models(weight_format, seed)
        for kv_format, threads in (("bf16", 1), ("int8", 3)):
            engine = model.engine(kv_format=kv_format, threads=threads)
            planned = pool_bytes(model.shape, engine.sizes, weight_format)
            allocated = engine.pool_bytes
            assert {k: planned[k] for k in ("kv", "state", "activations")} == {
                k: allocated[k] for k in ("kv", "state", "activations")
            }
            assert planned["weights"] == len(model.buffer)


def test_expected_tensors_are_those_of_the_file(models):
    for weight_format in FORMATS:
        model = models(weight_format, 1)
        expected = {t.name: (t.layout, t.rows * t.cols) for t in expected_tensors(model.shape, weight_format)}
        assert expected == {t.name: (t.layout, t.rows * t.cols) for t in model.tensors} | {
            name: (layout, size) for name, (layout, size) in expected.items() if name.endswith("gate_up")
        }


def test_weights_from_a_file(models, tmp_path):
    model = models("int4", 0)
    path = tmp_path / "weights"
    path.write_bytes(model.buffer.tobytes())
    ids = ids_of(model, 9)
    engine = model.engine()
    mapped = Engine(model.shape, engine.sizes, path, model.tensors)
    assert_same_bits([run(mapped, ids)], [run(engine, ids)])
    with pytest.raises(FileNotFoundError):
        Engine(model.shape, engine.sizes, tmp_path / "absent", model.tensors)


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"num_taps": 3}, "4 taps"),
        ({"num_experts": 8}, "experts"),
        ({"key_dim": 20}, "key_dim must be a multiple of 16"),
        ({"value_dim": 8}, "value_dim must be a multiple of 16"),
        ({"value_dim": 2048}, "must not exceed 1024"),
        ({"head_dim": 24}, "head_dim must be a multiple of 16"),
        ({"head_dim": 1040}, "must not exceed 1024"),
        ({"key_heads": 2, "value_heads": 3}, "multiple of key_heads"),
        ({"kv_heads": 2, "heads": 3}, "multiple of kv_heads"),
        ({"head_dim": 16, "inverse_frequencies": (1.0,) * 9, "rotary_axes": (0,) * 9}, "rotary_dim"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"layers": ()}, "layer"),
    ],
)
def test_an_unsupported_shape_names_the_constraint(tiny_models, changes, constraint):
    shape = tiny_models.random_shape(0, **changes)
    with pytest.raises(UnsupportedShape, match=constraint):
        check_shape(shape)
    check_shape(tiny_models.random_shape(0))


def test_weights_that_do_not_fit_are_refused(models, tiny_models):
    model = models("int4", 0)
    tensors = {t.name: t for t in model.tensors}

    def make(**changed):
        entries = [t for t in {**tensors, **changed}.values() if t is not None]
        return Engine(model.shape, tiny_models.SIZES, model.buffer, entries)

    norm = tensors["norm"]
    replace = type(norm)
    make()
    for entry, message in (
        (None, "norm is missing"),
        (replace("norm", "f32", norm.rows + 1, 1, norm.offset, norm.num_bytes), "has shape"),
        (replace("norm", "int4", norm.rows, 1, norm.offset, norm.num_bytes), "too short"),
        (replace("norm", "rows8", norm.rows, 1, norm.offset, len(model.buffer) - norm.offset), "f32"),
        (replace("norm", "f32", norm.rows, 1, norm.offset + 4, norm.num_bytes), "multiple of 64"),
        (replace("norm", "f32", norm.rows, 1, len(model.buffer), norm.num_bytes), "outside"),
    ):
        with pytest.raises(ValueError, match=message):
            make(norm=entry)
    with pytest.raises(UnsupportedIsa):
        model.engine(isa="mmx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": int32(1, 2, -1)}, "token id -1"),
        ({"token_ids": int32(1, 2, 10_000)}, "token id 10000"),
        ({"token_ids": np.zeros(300, np.int32)}, "256 tokens"),
        ({"rows": int32([2, 0, 0, 0])}, "add up"),
        ({"rows": int32([4, 0, 0, 0])}, "add up"),
        ({"rows": int32([1, 0, 0, 0], [2, 0, 0, 0])}, "share slot"),
        ({"rows": int32([3, -1, 0, 0])}, "starts at"),
        ({"rows": int32([3, 0, 6, 0])}, "slot 6"),
        ({"rows": int32([3, 0, 0, 1])}, "block table"),
        ({"rows": int32([3, 62, 0, 0])}, "block table"),
        ({"tables": int32(24)}, "page 24"),
        ({"tables": int32(-1)}, "page -1"),
        ({"full_at": int32(3)}, "full_at names token 3"),
        ({"top": [TopRequest(3, 1)]}, "top names token 3"),
        ({"top": [TopRequest(0, 257)]}, "257 tokens"),
        ({"top": [TopRequest(0, 0)]}, "0 tokens"),
        ({"top": [TopRequest(0, 1, int32(9_999), np.zeros(1, np.float32))]}, "id 9999"),
        ({"top": [TopRequest(0, 1, int32(1, 1), np.zeros(2, np.float32))]}, "ascend"),
        ({"top": [TopRequest(0, 1, int32(1), np.full(1, np.nan, np.float32))]}, "not a number"),
        ({"top": [TopRequest(0, 1)] * 7}, "6 tokens"),
    ],
)
def test_a_step_out_of_bounds_is_refused_and_harms_nothing(models, changes, message):
    model = models("int4", 1)
    engine = model.engine()
    values = {"token_ids": int32(1, 2, 3), "rows": int32([3, 0, 0, 0]), "tables": int32(5)}
    with pytest.raises(ValueError, match=message):
        engine.step(Step(**{**values, **changes}))
    assert len(engine.step(Step(**values, full_at=int32(2))).full) == 1


def test_an_empty_step_does_nothing(models):
    engine = models("int4", 1).engine()
    result = engine.step(Step(int32(), np.empty((0, 4), np.int32), int32()))
    assert result.full.shape[0] == 0
    assert result.top == ()


def test_readings_out_of_bounds_are_refused(models):
    engine = models("int4", 1).engine()
    delta, attention = (engine.shape.layers.index(kind) for kind in (DELTA, ATTENTION))
    for read in (
        lambda: engine.read_state(attention, 0, 1),
        lambda: engine.read_keys(delta, int32(0), 1),
        lambda: engine.read_state(delta, 6, 1),
        lambda: engine.read_columns(99, 0),
        lambda: engine.read_keys(attention, int32(24), 1),
        lambda: engine.read_values(attention, int32(0), 65),
        lambda: engine.copy_slot(0, 6),
        lambda: engine.copy_page(24, 0),
    ):
        with pytest.raises(ValueError, match=r"."):
            read()
