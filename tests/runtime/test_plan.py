"""The plan against what is really allocated, and how it shrinks to a budget."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.kernels.reference.attention import QUERY_TILE
from shoal.runtime import plan as planning
from shoal.runtime.batch import Batch, Row
from shoal.runtime.cache import HybridCache
from shoal.runtime.config import EngineOptions, ModelConfig
from shoal.runtime.errors import AllocationFailed, DoesNotFit
from shoal.runtime.model import HybridModel
from shoal.runtime.plan import (
    DEFAULT_CONTEXT,
    MIN_CONTEXT,
    choose_context,
    expected_tensors,
    plan_memory,
    published_sizes,
    size_label,
)
from shoal.runtime.sizes import published_config, published_size
from shoal.runtime.synth import synthesise
from shoal.runtime.tensors import TensorSpec, published_tensors
from shoal.runtime.weights import allocate_tensor

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

VALUES = {
    "model_type": "qwen3_5_text",
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "max_position_embeddings": 4096,
}
CONFIG = ModelConfig.from_mapping(VALUES)


def published_list():
    """The file of names, shapes and dtypes, layer by layer."""
    tensors = {}
    for line in (FIXTURES / "tensors_0.8b.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        dtype, shape, layers, name = line.split()
        spec = TensorSpec(tuple(int(dim) for dim in shape.strip("[]").split(",")), dtype)
        first, _, last = layers.partition("-")
        if layers == "-":
            tensors[name] = spec
        elif last:
            tensors |= {name.format(i): spec for i in range(int(first), int(last) + 1)}
        else:
            tensors |= {name.format(i): spec for i in layers.split(",")}
    return tensors


def test_the_smallest_published_checkpoint_has_exactly_these_tensors():
    config = ModelConfig.from_mapping(published_config("0.8B"))
    assert published_tensors(config) == published_list()


# Parameters of the text trunk and of everything, tensors, tensor bytes: as published.
PUBLISHED = {
    "qwen3.5-0.8b": (752_393_024, 488, 1_746_882_752),
    "qwen3.5-2b": (1_881_825_088, 632, 4_548_144_832),
    "qwen3.5-4b": (4_205_751_296, 738, 9_319_737_856),
    "qwen3.5-9b": (8_953_803_264, 775, 19_306_216_416),
    "qwen3.5-27b": (26_895_998_464, 1199, 55_562_872_800),
    "qwen3.5-35b-a3b": (34_660_610_688, 1811, 71_903_655_008),
    "qwen3.5-122b-a10b": (122_111_526_912, 1949, 250_173_007_840),
    "qwen3.5-397b-a17b": (396_346_350_336, 2924, 806_795_875_168),
}


def test_published_sizes():
    assert {p.name: (p.num_parameters, p.num_tensors, p.num_bytes) for p in published_sizes()} == PUBLISHED
    assert [size_label(p.config) for p in published_sizes()] == [p.size.lower() for p in published_sizes()]
    assert published_size("9B").repository == "Qwen/Qwen3.5-9B"
    assert size_label(CONFIG) == "220k"


@pytest.mark.parametrize(
    ("size", "kv", "state", "conv"),
    [
        ("0.8B", 12_288, 18_874_368, 663_552),
        ("9B", 32_768, 50_331_648, 1_179_648),
        ("27B", 65_536, 150_994_944, 2_949_120),
    ],
)
def test_bytes_of_a_token_and_of_a_sequence(size, kv, state, conv):
    config = ModelConfig.from_mapping(published_config(size))
    plan = plan_memory(config, EngineOptions(dtype="bf16", parallel=3, context=1600))
    assert plan.kv == kv * 1600 * 3
    assert (plan.state, plan.conv) == (3 * state, 3 * conv)


@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(),
        EngineOptions(dtype="bf16", parallel=3),
        EngineOptions(kv_format="bf16", context=100, state_snapshots=5),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_planned_is_allocated_to_the_byte(tmp_path, options, tied):
    synthesise(VALUES | {"tie_word_embeddings": tied}, tmp_path / "model")
    config = replace(CONFIG, tie_word_embeddings=tied)
    plan = plan_memory(config, options)
    model = HybridModel.load(tmp_path / "model", config, options)
    cache = HybridCache.allocate(config, plan)
    assert {"weights": model.weight_nbytes, **cache.nbytes} == {
        name: size for name, size in plan.by_pool().items() if name not in ("activations", "host")
    }
    assert model.num_parameters == sum(math.prod(spec.shape) for spec in expected_tensors(config).values())


def peak_of_a_step(options, context, rows):
    """Most bytes that tensors of one forward pass held at once, beside weights and cache."""
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    weights = {
        name: (torch.randn(spec.shape) * 0.1).to(dtype if planning.is_matrix(name, spec) else torch.float32)
        for name, spec in expected_tensors(CONFIG).items()
    }
    model, plan = HybridModel.of(weights, CONFIG), plan_memory(CONFIG, options)
    cache = HybridCache.allocate(CONFIG, plan)
    tokens = sum(row.num_tokens for row in rows(plan))
    batch = Batch([1] * tokens, rows(plan), list(range(tokens))[: options.parallel + planning.MAX_SCORED_TOKENS])
    model.forward(batch, cache)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        model.forward(batch, cache)
    now = peak = 0
    for event in sorted(profiled.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak, plan.activations


def prefill(plan):
    return [Row(plan.max_batched_tokens, plan.context - plan.max_batched_tokens, tuple(range(plan.num_blocks)), 0)]


def decode(plan):
    per = plan.blocks_per_sequence
    return [Row(1, plan.context - 1, tuple(range(i * per, (i + 1) * per)), i) for i in range(8)]


@pytest.mark.parametrize("rows", [prefill, decode])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("context", [512, 3000])
def test_activations_stay_below_the_plan(rows, dtype, context):
    peak, planned = peak_of_a_step(EngineOptions(dtype=dtype, context=context), context, rows)
    assert 0 < peak <= planned


def test_constants_that_are_written_twice():
    assert planning.QUERY_TILE == QUERY_TILE


def test_defaults():
    plan = plan_memory(CONFIG, EngineOptions())
    assert (plan.context, plan.num_slots) == (4096, 16)  # the model's own limit
    long = replace(CONFIG, max_position_embeddings=10**6)
    assert plan_memory(long, EngineOptions()).context == DEFAULT_CONTEXT
    assert plan_memory(long, EngineOptions(context=50_000)).context == 50_000
    assert plan_memory(CONFIG, EngineOptions(context=50_000)).context == 4096


def test_a_budget_takes_first_parallel_contexts_then_the_context():
    whole = plan_memory(CONFIG, EngineOptions())
    assert choose_context(CONFIG, EngineOptions(), whole.total_bytes) == replace(whole)
    less = choose_context(CONFIG, EngineOptions(), whole.total_bytes - whole.kv // 2)
    assert (less.context, less.num_blocks) == (whole.context, whole.num_blocks // 2)
    least = choose_context(CONFIG, EngineOptions(), whole.total_bytes - whole.kv)
    assert MIN_CONTEXT <= least.context < whole.context
    with pytest.raises(DoesNotFit) as caught:
        choose_context(CONFIG, EngineOptions(context=4096), whole.total_bytes - whole.kv)
    assert caught.value.needed > caught.value.available == whole.total_bytes - whole.kv
    assert choose_context(CONFIG, EngineOptions(context=4096), caught.value.needed).context == 4096


@given(budget=st.integers(1, 2 * 10**9), parallel=st.integers(1, 64), block_tokens=st.sampled_from([1, 16, 64]))
def test_a_plan_fits_its_budget_and_holds_one_full_sequence(budget, parallel, block_tokens):
    options = EngineOptions(parallel=parallel, block_tokens=block_tokens)
    try:
        plan = choose_context(CONFIG, options, budget)
    except DoesNotFit as fault:
        assert fault.needed > budget
        return
    assert plan.total_bytes <= budget
    assert plan.num_blocks >= plan.blocks_per_sequence
    assert plan.num_blocks * plan.block_tokens >= plan.context >= MIN_CONTEXT


def test_memory_that_the_machine_does_not_give_is_a_typed_error():
    plan = replace(plan_memory(CONFIG, EngineOptions()), num_blocks=2**50)
    with pytest.raises(AllocationFailed, match="cache"):
        HybridCache.allocate(CONFIG, plan)
    with pytest.raises(AllocationFailed, match="huge"):
        allocate_tensor("huge", TensorSpec((2**25, 2**25)), torch.float32)
