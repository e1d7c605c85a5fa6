"""The model against transformers' own implementation of the family, in f32, on random small shapes."""

import itertools
import random
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3_5ForCausalLM, Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig, Qwen3_5TextConfig
from transformers.utils import logging

from shoal.runtime.batch import Batch, Row
from shoal.runtime.cache import HybridCache
from shoal.runtime.config import EngineOptions, ModelConfig
from shoal.runtime.model import HybridModel
from shoal.runtime.plan import plan_memory

torch.set_num_threads(1)
logging.set_verbosity_error()  # it says once a process which fast kernels are not installed

BLOCK_TOKENS = 4
CONTEXT = 256
TOLERANCE = 1e-4


@dataclass(frozen=True, repr=False)
class Pair:
    """One set of weights in both implementations."""

    theirs: torch.nn.Module
    ours: HybridModel

    def __repr__(self):
        return "Pair"

    def new_cache(self, parallel=3):
        options = EngineOptions(context=CONTEXT, parallel=parallel, block_tokens=BLOCK_TOKENS)
        return HybridCache.allocate(self.ours.config, plan_memory(self.ours.config, options))

    @torch.no_grad()
    def reference(self, ids):
        out = self.theirs(torch.tensor([ids]), use_cache=True)
        return out.logits[0], out.past_key_values


def random_shape(seed):
    draw = random.Random(seed)
    head_dim = draw.choice([16, 24, 40])
    kv_heads = draw.choice([1, 2])
    key_heads = draw.choice([1, 2, 3])
    half = head_dim // 4
    height = draw.randint(0, half // 3)
    return {
        "vocab_size": draw.randint(50, 120),
        "hidden_size": draw.choice([24, 40, 56]),
        "intermediate_size": draw.choice([32, 72]),
        "num_hidden_layers": 4,
        "layer_types": draw.choice(
            [
                ["linear_attention"] * 3 + ["full_attention"],
                ["full_attention", "linear_attention", "full_attention", "linear_attention"],
                ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
            ]
        ),
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * draw.choice([1, 2, 3]),
        "head_dim": head_dim,
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": key_heads * (2 + seed % 3),
        "linear_key_head_dim": draw.choice([8, 12, 20]),
        "linear_value_head_dim": draw.choice([8, 16, 28]),
        "linear_conv_kernel_dim": draw.choice([2, 3, 4, 4, 5]),
        "tie_word_embeddings": seed % 2 == 0,
        "max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": draw.choice([1e3, 1e5, 1e7]),
            "partial_rotary_factor": 0.5,
            "mrope_section": [half - height - height // 2, height, height // 2],
            "mrope_interleaved": True,
        },
    }


def spread(model, seed):
    """Weights as no initialisation leaves them: norms away from 0 and 1, decays over orders of magnitude, audible matrices.

    Louder ones make both implementations err by more than the tolerance, against themselves in double precision.
    """
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if "norm" in name:
                p.add_(0.25 * noise)
            elif name.endswith(("A_log", "dt_bias")):
                p.copy_(noise)
            else:
                p.copy_(noise * (0.4 / p.shape[-1] ** 0.5))


def make_pair(shape, seed, config_type=Qwen3_5TextConfig, model_type=Qwen3_5ForCausalLM):
    torch.manual_seed(seed)
    config = config_type(**shape)
    theirs = model_type(config).eval()
    spread(theirs, seed)
    named = {
        name if name == "lm_head.weight" else name.removeprefix("model."): value.detach()
        for name, value in theirs.state_dict().items()
    }
    return Pair(theirs, HybridModel.of(named, ModelConfig.from_mapping(config.to_dict())))


@pytest.fixture(scope="module")
def pair():
    return make_pair(random_shape(1), 1)


def ids_of(pair, num_tokens, seed=0):
    draw = random.Random(seed)
    return [draw.randrange(pair.ours.config.vocab_size) for _ in range(num_tokens)]


def table_of(num_tokens, slot):
    """Blocks in an order and a place of their own for each slot."""
    count = -(-num_tokens // BLOCK_TOKENS)
    per_slot = CONTEXT // BLOCK_TOKENS
    return tuple(slot * per_slot + (7 * i + 3) % per_slot for i in range(count))


def run(pair, cache, ids, start=0, slot=0):
    row = Row(len(ids), start, table_of(start + len(ids), slot), slot)
    return pair.ours.forward(Batch(list(ids), [row], list(range(len(ids)))), cache)


def assert_cache_equals(pair, cache, theirs, num_tokens, slot=0):
    """States, columns, keys and values after `num_tokens` against transformers' cache."""
    config = pair.ours.config
    for i in config.linear_layers:
        state, columns = theirs.layers[i].recurrent_states, theirs.layers[i].conv_states
        if isinstance(state, dict):  # a cache may keep several kinds of state, by index
            state, columns = state[0], columns[0]
        taps = config.linear_conv_kernel_dim
        torch.testing.assert_close(cache.states[i][slot], state[0], rtol=1e-3, atol=TOLERANCE)
        torch.testing.assert_close(cache.columns[i][slot], columns[0][:, -(taps - 1) :], rtol=1e-3, atol=TOLERANCE)
    blocks = torch.tensor(table_of(num_tokens, slot))
    for i in config.attention_layers:
        for ours, reference in ((cache.keys[i], theirs.layers[i].keys), (cache.values[i], theirs.layers[i].values)):
            mine = ours[blocks].flatten(0, 1)[:num_tokens].transpose(0, 1)
            torch.testing.assert_close(mine, reference[0], rtol=1e-3, atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(12))
def test_logits_and_caches_equal_the_reference(seed):
    pair = make_pair(random_shape(seed), seed)
    for num_tokens in (1, 2, 63, 64, 65, 150):
        ids = ids_of(pair, num_tokens, seed)
        want, theirs = pair.reference(ids)
        cache = pair.new_cache()
        got = run(pair, cache, ids)
        assert (got - want).abs().max() < TOLERANCE, num_tokens
        assert_cache_equals(pair, cache, theirs, num_tokens)


@pytest.mark.parametrize("seed", range(2))
def test_sparse_experts_equal_the_reference(seed):
    shape = random_shape(seed) | {
        "num_experts": 6,
        "num_experts_per_tok": 2 + seed,
        "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 28,
    }
    del shape["intermediate_size"]
    pair = make_pair(shape, seed, Qwen3_5MoeTextConfig, Qwen3_5MoeForCausalLM)
    for num_tokens in (1, 65):
        ids = ids_of(pair, num_tokens)
        assert (run(pair, pair.new_cache(), ids) - pair.reference(ids)[0]).abs().max() < TOLERANCE


def test_static_yarn_equals_the_reference():
    shape = random_shape(4)
    shape["rope_parameters"] |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    pair = make_pair(shape, 4)
    ids = ids_of(pair, 150)
    assert pair.ours.basis.amplitude > 1
    assert (run(pair, pair.new_cache(), ids) - pair.reference(ids)[0]).abs().max() < TOLERANCE


def test_decode_step_by_step_after_prefill(pair):
    ids = ids_of(pair, 80)
    want, theirs = pair.reference(ids)
    cache = pair.new_cache()
    got = [run(pair, cache, ids[:61])]
    got += [run(pair, cache, ids[t : t + 1], start=t) for t in range(61, 80)]
    assert (torch.cat(got) - want).abs().max() < TOLERANCE
    assert_cache_equals(pair, cache, theirs, 80)


def test_decode_from_the_first_token(pair):
    ids = ids_of(pair, 12)
    cache = pair.new_cache()
    got = torch.cat([run(pair, cache, ids[t : t + 1], start=t) for t in range(12)])
    assert (got - pair.reference(ids)[0]).abs().max() < TOLERANCE


@settings(max_examples=20)
@given(cuts=st.lists(st.integers(1, 149), max_size=6, unique=True))
def test_prefill_cut_anywhere(pair, cuts):
    ids = ids_of(pair, 150)
    whole_cache, cut_cache = pair.new_cache(), pair.new_cache()
    whole = run(pair, whole_cache, ids)
    points = [0, *sorted(cuts), 150]
    pieces = [run(pair, cut_cache, ids[a:b], start=a) for a, b in itertools.pairwise(points)]
    assert (torch.cat(pieces) - whole).abs().max() < TOLERANCE
    for i in pair.ours.config.linear_layers:
        torch.testing.assert_close(cut_cache.states[i][0], whole_cache.states[i][0], rtol=1e-3, atol=TOLERANCE)
        torch.testing.assert_close(cut_cache.columns[i][0], whole_cache.columns[i][0], rtol=1e-3, atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(4))
def test_cuts_at_whole_tiles_change_no_bit(seed):
    """At multiples of 64 tokens: the scheduler cuts there, so that no prompt's result depends on the others' budget."""
    pair = make_pair(random_shape(seed), seed)
    ids = ids_of(pair, 210)
    whole_cache, cut_cache = pair.new_cache(), pair.new_cache()
    whole = run(pair, whole_cache, ids)
    last = [run(pair, cut_cache, ids[a:b], start=a)[-1] for a, b in itertools.pairwise([0, 64, 192, 210])][-1]
    assert torch.equal(last, whole[-1])
    for i in pair.ours.config.linear_layers:
        assert torch.equal(cut_cache.states[i][0], whole_cache.states[i][0])


def test_sequences_in_one_batch_equal_each_alone(pair):
    """Prefill, single tokens that begin and that go on, all in one step, in an order that interleaves them."""
    long, begun, fresh = ids_of(pair, 70, 1), ids_of(pair, 34, 2), ids_of(pair, 1, 3)
    cache = pair.new_cache()
    run(pair, cache, begun[:33], slot=1)
    rows = [Row(1, 33, table_of(34, 1), 1), Row(70, 0, table_of(70, 2), 2), Row(1, 0, table_of(1, 0), 0)]
    batch = Batch([begun[33], *long, fresh[0]], rows, [71, 0, 70])
    got = pair.ours.forward(batch, cache)
    want = [pair.reference(ids)[0][-1] for ids in (fresh, begun, long)]
    assert (got - torch.stack(want)).abs().max() < TOLERANCE
    for slot, ids in ((0, fresh), (1, begun), (2, long)):
        assert_cache_equals(pair, cache, pair.reference(ids)[1], len(ids), slot)


@pytest.mark.parametrize("seed", range(4))
def test_a_sequence_is_bit_for_bit_the_same_alone_and_in_a_batch(seed):
    """Prompts of several lengths, then steps together: what stands beside a sequence does not touch a bit of its logits."""
    pair = make_pair(random_shape(seed), seed)
    prompts = [ids_of(pair, num_tokens, num_tokens) for num_tokens in (1, 2, 33, 40, 64, 7, 19, 50, 5, 90)]
    alone = []
    for slot, ids in enumerate(prompts):
        cache = pair.new_cache(parallel=len(prompts))
        alone.append([run(pair, cache, ids, slot=slot)[-1]])
        alone[-1] += [run(pair, cache, [step + 3], start=len(ids) + step, slot=slot)[0] for step in range(3)]
    cache = pair.new_cache(parallel=len(prompts))
    rows = [Row(len(ids), 0, table_of(len(ids), slot), slot) for slot, ids in enumerate(prompts)]
    ends = list(itertools.accumulate(len(ids) for ids in prompts))
    together = [
        pair.ours.forward(
            Batch([token_id for ids in prompts for token_id in ids], rows, [end - 1 for end in ends]), cache
        )
    ]
    for step in range(3):
        rows = [Row(1, len(ids) + step, table_of(len(ids) + step + 1, slot), slot) for slot, ids in enumerate(prompts)]
        together.append(pair.ours.forward(Batch([step + 3] * len(rows), rows, list(range(len(rows)))), cache))
    for slot, steps in enumerate(alone):
        for step, want in enumerate(steps):
            assert torch.equal(together[step][slot], want), (len(prompts[slot]), step)


def test_scoring_somebody_elses_prompt_changes_nothing(pair):
    prompt, other = ids_of(pair, 20, 1), ids_of(pair, 45, 2)
    want = pair.ours.forward(Batch(prompt, [Row(20, 0, table_of(20, 0), 0)], [19]), pair.new_cache())
    rows = [Row(45, 0, table_of(45, 1), 1), Row(20, 0, table_of(20, 0), 0)]
    batch = Batch(other + prompt, rows, [*range(45), 64])
    assert torch.equal(pair.ours.forward(batch, pair.new_cache())[-1], want[0])


@pytest.mark.parametrize("num_tokens", [1, 20])
def test_a_used_slot_starts_from_zero(pair, num_tokens):
    cache = pair.new_cache()
    run(pair, cache, ids_of(pair, 50, 1))
    ids = ids_of(pair, num_tokens, 2)
    assert (run(pair, cache, ids) - pair.reference(ids)[0]).abs().max() < TOLERANCE


def test_a_copied_slot_goes_on_like_the_original(pair):
    ids = ids_of(pair, 41)
    cache = pair.new_cache()
    run(pair, cache, ids[:40], slot=0)
    cache.copy_slot(0, 1)
    cache.clear_slot(0)
    row = Row(1, 40, table_of(41, 0), 1)  # the blocks of slot 0, the states of slot 1
    got = pair.ours.forward(Batch(ids[40:], [row], [0]), cache)
    assert (got - pair.reference(ids)[0][-1:]).abs().max() < TOLERANCE
    assert all(not cache.states[i][0].any() and not cache.columns[i][0].any() for i in cache.states)


def test_bf16_follows_f32_within_its_precision(pair):
    """bf16 keeps 8 bits: on four layers the logits stay within a few percent of their spread."""
    ids = ids_of(pair, 65)
    config = pair.ours.config
    options = EngineOptions(dtype="bf16", context=CONTEXT, parallel=1, block_tokens=BLOCK_TOKENS)
    named = {
        name if name == "lm_head.weight" else name.removeprefix("model."): value.detach()
        for name, value in pair.theirs.state_dict().items()
    }
    halved = {name: value.bfloat16() if value.dim() == 2 else value for name, value in named.items()}
    half = replace(pair, ours=HybridModel.of(halved, config))
    cache = HybridCache.allocate(config, plan_memory(config, options), half.ours.dtype)
    got, want = run(half, cache, ids), pair.reference(ids)[0]
    assert half.ours.dtype == torch.bfloat16 and got.dtype == torch.float32
    assert (got - want).abs().mean() < 0.05 * want.std()


@pytest.mark.parametrize(
    "batch",
    [
        Batch([1, 2], [Row(1, 0, (0,), 0)], []),
        Batch([10**6], [Row(1, 0, (0,), 0)], []),
        Batch([1], [Row(1, 0, (0,), 0)], [1]),
        Batch([1, 1], [Row(1, 0, (0,), 0), Row(1, 0, (1,), 0)], []),
        Batch([1], [Row(1, BLOCK_TOKENS, (0,), 0)], []),
        Batch([1], [Row(1, 0, (10**6,), 0)], []),
        Batch([1], [Row(1, 0, (0,), 99)], []),
    ],
    ids=["tokens", "id", "logits_at", "slots", "table", "block", "slot"],
)
def test_a_batch_beyond_the_cache_is_refused(pair, batch):
    with pytest.raises(ValueError):
        pair.ours.forward(batch, pair.new_cache())
