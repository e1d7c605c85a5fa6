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
from shoal_test_tiny_models import PAGES, assert_same_bits, ids_of, int32, run, step

from shoal.kernels.cpu import available_isas
from shoal.kernels.cpu.engine import ATTENTION, DELTA, TopRequest
from shoal.runtime.batch import Batch, Row
from shoal.runtime.cache import HybridCache
from shoal.runtime.config import EngineOptions, ModelConfig
from shoal.runtime.model import HybridModel
from shoal.runtime.plan import plan_memory

torch.set_num_threads(1)

FORMATS = ("bf16", "int8", "int4")
RELATIVE_ERROR = {"bf16": 1e-3, "int8": 0.02, "int4": 0.02}


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
