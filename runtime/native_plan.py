"""Bytes of the native engine's pools, as it allocates them. Neither torch nor numpy: the agent asks too.

weights      the converted file's tensors, each padded to 64 bytes (container_tensors.py)
kv           num_blocks * Lf * kv heads * page bytes; a page holds 64 tokens of one head (kernels/cpu/layout.h)
state        num_slots * Lg * floats of a layer's state * 4: the columns of the convolution, S, and the open chunk
conv         none of its own
activations  what one step holds beside them, allocated once: the arena of kernels/cpu/engine, and whole rows of logits for Python
host         interpreter, libraries and tokenizer, measured
"""

from __future__ import annotations

from .backends import BackendChoice
from .container_tensors import container_tensors
from .cores import choose_threads
from .model_config import ModelConfig
from .options import ITEM_BYTES, EngineOptions

HOST_BYTES = 50 * 1024 * 1024
"""Resident size of a Python process with everything imported, no model and no tokenizer."""
TOKENIZER_ENTRY_BYTES = 400
"""What an id of the vocabulary takes in the tokenizer."""
MAX_SCORED_TOKENS = 32
"""Prompt tokens of one step at most whose logits are wanted: each is a whole row of the head."""
PAGE_TOKENS = 64
CHUNK = 16
TAPS = 4
PANEL_ROWS, BLOCK_COLS, GROUP_COLS = 32, 256, 16
DIRECT_ROWS = 6
"""Rows of a step up to which every thread quantises all of them for itself."""
MAX_CANDIDATES = 4096
"""Ids of a row that may have to be scored exactly, with 12 + 4 + 4 bytes each."""
SCRATCH_BYTES = 1024 * 1024
"""Of each thread."""


def pool_bytes(config: ModelConfig, options: EngineOptions, choice: BackendChoice, num_blocks: int) -> dict[str, int]:
    """By the names of MemoryPlan's pools. Raises Unsupported."""
    weights = weight_bytes(config, choice.format)
    return {
        "weights": weights,
        "kv": num_blocks * kv_bytes_per_block(config, choice.kv_format),
        "state": (options.parallel + options.state_snapshots) * state_bytes_per_slot(config),
        "conv": 0,
        "activations": arena_bytes(config, options, choose_threads(options.threads, weights))
        + logits_bytes(config.vocab_size, options),
        "host": HOST_BYTES + TOKENIZER_ENTRY_BYTES * config.vocab_size,
    }


def max_full_rows(options: EngineOptions) -> int:
    """Rows of a step whose whole logits may be wanted: one of each sequence, and those of scored prompts."""
    return min(options.parallel + MAX_SCORED_TOKENS, options.max_batched_tokens)


def logits_bytes(vocab_size: int, options: EngineOptions) -> int:
    """Of those rows, f32."""
    return 4 * max_full_rows(options) * vocab_size


def weight_bytes(config: ModelConfig, format: str) -> int:
    """Of a model without exceptions from its format."""
    return sum(spec.num_bytes for spec in container_tensors(config, format).values())


def kv_bytes_per_block(config: ModelConfig, kv_format: str) -> int:
    """A page for each kv head of each attention layer."""
    values = 2 * PAGE_TOKENS * config.head_dim
    page = values + 2 * PAGE_TOKENS * 4 if kv_format == "int8" else values * ITEM_BYTES[kv_format]
    return len(config.attention_layers) * config.num_key_value_heads * page


def state_bytes_per_slot(config: ModelConfig) -> int:
    """All DeltaNet layers of one sequence; a layer is a multiple of 64 bytes."""
    key_dim, value_dim = config.linear_key_head_dim, config.linear_value_head_dim
    columns = (TAPS - 1) * config.conv_dim
    keys = config.linear_num_key_heads * key_dim * CHUNK
    heads = config.linear_num_value_heads * (key_dim * value_dim + CHUNK * value_dim + CHUNK)
    floats = -(-(columns + keys + heads) // 16) * 16
    return len(config.linear_layers) * floats * 4


def arena_bytes(config: ModelConfig, options: EngineOptions, threads: int) -> int:
    """The native engine's buffers, each rounded up to 64 bytes, in the order in which kernels/cpu/engine/arena.cc takes them."""
    has_delta, has_attention = bool(config.linear_layers), bool(config.attention_layers)
    value_dim = config.linear_value_dim
    mixed = max(value_dim if has_delta else 0, config.query_dim if has_attention else 0)
    projected = max(
        config.conv_dim + value_dim if has_delta else 0,
        2 * config.query_dim + 2 * config.key_value_dim if has_attention else 0,
    )
    hidden, mixed = _padded(config.hidden_size, BLOCK_COLS), _padded(mixed, BLOCK_COLS)
    inner = _padded(config.intermediate_size, BLOCK_COLS)
    gates = _padded(2 * config.linear_num_value_heads, 16) if has_delta else 0
    widest = max(hidden, mixed, inner)
    panels = -(-config.vocab_size // PANEL_ROWS)
    tokens, rows, full_rows = options.max_batched_tokens, options.parallel, max_full_rows(options)
    few = min(tokens, DIRECT_ROWS)
    angles = tokens * (config.rope.rotary_dim // 2) if has_attention else 0
    floats = [
        *(tokens * width for width in (hidden, hidden, _padded(projected, 16), gates, mixed, inner)),
        *(angles, angles),
        *(full_rows * hidden, rows * hidden),
        *(rows * panels * PANEL_ROWS, rows * panels, panels, panels),
        *(3 * rows * MAX_CANDIDATES, rows * MAX_CANDIDATES, rows * MAX_CANDIDATES),
    ]
    shared = sum(_padded(4 * count, 64) for count in floats) + _quantised_bytes(tokens, widest)
    of_thread = _padded(4 * few * hidden, 64) + _quantised_bytes(few, widest) + SCRATCH_BYTES
    return shared + threads * of_thread


def _quantised_bytes(rows: int, cols: int) -> int:
    """int8 values, an f32 scale and an int32 sum a block, an int16 sum a group."""
    blocks, groups = rows * (cols // BLOCK_COLS), rows * (cols // GROUP_COLS)
    return _padded(rows * cols, 64) + 2 * _padded(4 * blocks, 64) + _padded(2 * groups, 64)


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
