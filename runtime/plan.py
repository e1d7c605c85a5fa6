"""How much memory an engine needs, before anything is allocated. Neither torch nor numpy: the agent asks too.

The pools, in bytes, are those that the back end allocates. The native one's are in native_plan.py; the reference's (T tokens of a
pool, Lf attention layers, Lg DeltaNet layers):

weights      every trunk tensor; matrices in `dtype`, the rest (norms, gates, convolution taps) in f32; tied heads once
kv           num_blocks * block_tokens * Lf * 2 * kv heads * head_dim * bytes of the KV format
state        num_slots * Lg * value heads * key head_dim * value head_dim * 4
conv         num_slots * Lg * (2 * key dims + value dims) * (taps - 1) * bytes of `dtype`
activations  an upper bound of what one step holds beside them: see `activation_bytes`
host         interpreter, libraries and tokenizer, measured
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import native_plan
from .backends import BackendChoice, choose_backend, native_isa, stored_format_of
from .errors import DoesNotFit
from .model_config import ModelConfig
from .options import ITEM_BYTES, EngineOptions
from .sizes import PublishedSize, published_sizes, size_label
from .tensors import TensorSpec, expected_tensors, mtp_tensors, published_tensors, vision_tensors

__all__ = [
    "MemoryPlan",
    "PublishedSize",
    "TensorSpec",
    "choose_context",
    "expected_tensors",
    "mtp_tensors",
    "native_isa",
    "plan_memory",
    "published_sizes",
    "published_tensors",
    "resident_bytes",
    "size_label",
    "stored_format_of",
    "vision_tensors",
]

DEFAULT_CONTEXT = 8192
"""Tokens of a sequence where nobody says: long for a conversation, and eight of them still fit small machines."""
MIN_CONTEXT = 256
"""A model that cannot hold this many tokens of one sequence is not worth serving."""
HOST_BYTES = 384 * 1024 * 1024
"""Resident size of a Python process with torch and a published tokenizer loaded, no model."""
QUERY_TILE = 64
"""Queries of one row that meet their keys at once: bounds the score matrix."""
SINGLE_TILE = 8
"""Rows of a matrix product over sequences with one token each; padded up to it."""
PIECE_TILE = 32
"""The same over the tokens of one sequence."""
MAX_SCORED_TOKENS = 64
"""Prompt tokens of one step at most whose logits are wanted; more are scored in later steps."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by pool, and the counts that they follow from."""

    weights: int
    kv: int
    state: int
    conv: int
    activations: int
    host: int
    num_blocks: int
    block_tokens: int
    num_slots: int
    context: int
    """Tokens of prompt and answer together of one sequence."""
    max_batched_tokens: int
    dtype: str
    """Of activations outside the native kernels' own formats."""
    kv_format: str
    backend: str = "reference"
    format: str = "bf16"
    """Of the weights as served."""
    note: str = ""
    """Why the native back end was not taken where the choice was free (BackendChoice.note)."""

    @property
    def is_native(self) -> bool:
        """Whether the native kernels compute."""
        return self.backend == "cpu"

    @property
    def total_bytes(self) -> int:
        """All pools."""
        return sum(self.by_pool().values())

    def by_pool(self) -> dict[str, int]:
        """Bytes by pool name."""
        return {name: getattr(self, name) for name in ("weights", "kv", "state", "conv", "activations", "host")}

    @property
    def blocks_per_sequence(self) -> int:
        """Blocks of a sequence that fills its context."""
        return -(-self.context // self.block_tokens)


def is_matrix(name: str, spec: TensorSpec) -> bool:
    """Whether a tensor is held in the options' dtype: everything multiplied with activations. The rest is held in f32."""
    return len(spec.shape) >= 2 and not name.endswith("conv1d.weight")


def resident_bytes(name: str, spec: TensorSpec, dtype: str) -> int:
    """Bytes of one trunk tensor once loaded."""
    return spec.num_elements * (ITEM_BYTES[dtype] if is_matrix(name, spec) else 4)


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of the loaded trunk."""
    return sum(resident_bytes(name, spec, dtype) for name, spec in expected_tensors(config).items())


def kv_bytes_per_token(config: ModelConfig, kv_format: str) -> int:
    """Keys and values of one token in all attention layers."""
    return len(config.attention_layers) * 2 * config.key_value_dim * ITEM_BYTES[kv_format]


def state_bytes_per_slot(config: ModelConfig) -> int:
    """Recurrent states of one sequence in all DeltaNet layers; f32 always."""
    heads = config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim
    return len(config.linear_layers) * heads * 4


def conv_bytes_per_slot(config: ModelConfig, dtype: str) -> int:
    """Raw columns that the convolution of the next token still sees, in all DeltaNet layers."""
    columns = config.linear_conv_kernel_dim - 1
    return len(config.linear_layers) * config.conv_dim * columns * ITEM_BYTES[dtype]


def activation_bytes(config: ModelConfig, options: EngineOptions, context: int) -> int:
    """Upper bound, in f32, of what one step holds at its worst moment.

    Residual and normed streams and their products; the widest mixer or feed-forward; a tile of attention scores; the gathered keys
    and values of a sequence; states of all rows, before and after; logits of a token of every sequence and of MAX_SCORED_TOKENS more.
    """
    # Each sequence of several tokens is padded to whole tiles, those of one token together.
    pieces = min(options.parallel, options.max_batched_tokens // 2)
    tokens = options.max_batched_tokens + SINGLE_TILE + PIECE_TILE * pieces
    delta = (
        5 * config.conv_dim
        + 3 * config.linear_num_value_heads * config.linear_key_head_dim
        + 6 * config.linear_value_dim
    )
    attention = 7 * config.query_dim + 6 * config.key_value_dim
    moe = config.moe
    if moe is None:
        feed_forward = 4 * config.intermediate_size
    else:
        feed_forward = 4 * (moe.shared_intermediate_size + moe.intermediate_size) + 2 * moe.num_experts
    streams = tokens * (5 * config.hidden_size + max(delta, attention, feed_forward))
    gathered = 3 * 2 * config.key_value_dim * context
    scores = 3 * config.num_attention_heads * QUERY_TILE * context
    states = 3 * options.parallel * state_bytes_per_slot(config) // 4 // max(1, len(config.linear_layers))
    rows = options.parallel + MAX_SCORED_TOKENS
    logits = (rows + 2 * PIECE_TILE) * config.vocab_size
    mixers = max(gathered + scores if config.attention_layers else 0, states if config.linear_layers else 0)
    return 4 * (max(streams + mixers, tokens * config.hidden_size + logits))


def plan_memory(
    config: ModelConfig, options: EngineOptions, *, stored_format: str = "", stored_bytes: int | None = None
) -> MemoryPlan:
    """The plan for these options, within `options.memory` where that is given.

    `stored_format` is that of a converted directory (`stored_format_of`), and `stored_bytes` what its tensors take, where it is known.
    Where the plan does not fit, first the pool shrinks from full contexts for all parallel sequences down to one full context, then,
    where `options.context` does not fix it, the context down to MIN_CONTEXT. Raises DoesNotFit, and what choose_backend raises.
    """
    choice = choose_backend(config, options, stored_format=stored_format)

    def plan_with(context: int, num_blocks: int) -> MemoryPlan:
        return _plan(config, options, choice, context, num_blocks, stored_bytes)

    longest = config.max_position_embeddings
    context = min(longest, options.context or DEFAULT_CONTEXT)
    plan = plan_with(context, options.parallel * -(-context // choice.block_tokens))
    budget = options.memory
    if budget is None or plan.total_bytes <= budget:
        return plan
    shortest = context if options.context is not None else min(context, MIN_CONTEXT)
    per_block = plan_with(context, 1).kv - plan_with(context, 0).kv
    while True:
        plan = plan_with(context, 0)
        needed = -(-context // choice.block_tokens)
        num_blocks = (budget - plan.total_bytes) // max(per_block, 1)
        if num_blocks >= needed:
            return plan_with(context, min(num_blocks, options.parallel * needed))
        if context <= shortest:
            raise DoesNotFit(plan.total_bytes + needed * per_block, budget)
        context = max(shortest, context // 2)


def choose_context(config: ModelConfig, options: EngineOptions, budget_bytes: int) -> MemoryPlan:
    """The plan that fits `budget_bytes`. Raises DoesNotFit with what the smallest one would need."""
    return plan_memory(config, replace(options, memory=budget_bytes))


def _plan(
    config: ModelConfig,
    options: EngineOptions,
    choice: BackendChoice,
    context: int,
    num_blocks: int,
    stored_bytes: int | None,
) -> MemoryPlan:
    num_slots = options.parallel + options.state_snapshots
    if choice.is_native:
        pools = native_plan.pool_bytes(config, options, choice, num_blocks)
        if stored_bytes is not None:
            pools["weights"] = stored_bytes
    else:
        pools = {
            "weights": weight_bytes(config, options.dtype),
            "kv": num_blocks * choice.block_tokens * kv_bytes_per_token(config, choice.kv_format),
            "state": num_slots * state_bytes_per_slot(config),
            "conv": num_slots * conv_bytes_per_slot(config, options.dtype),
            "activations": activation_bytes(config, options, context),
            "host": HOST_BYTES,
        }
    return MemoryPlan(
        **pools,
        num_blocks=num_blocks,
        block_tokens=choice.block_tokens,
        num_slots=num_slots,
        context=context,
        max_batched_tokens=options.max_batched_tokens,
        dtype="f32" if choice.is_native else options.dtype,
        kv_format=choice.kv_format,
        backend=choice.name,
        format=choice.format,
        note=choice.note,
    )
