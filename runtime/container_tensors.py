"""Which tensors a converted model has: names, layouts and sizes in bytes, from the config and the format alone.

Neither torch nor numpy: the memory plan asks too. The layouts are those of kernels/cpu/layout.h; docs/weights-format.md describes them.

layout        what                                                        bytes
int4 int8     panels of 32 rows x blocks of 256 columns, zeros beyond     panels * blocks * BLOCK_BYTES[layout]
bf16          the same
rows8         a row: int8, columns padded to 256, then binary16 scales    rows * (padded + 2 * padded / 256)
rows16        a row: bfloat16, columns padded to 256                      rows * 2 * padded
f32           row major, without padding                                  rows * columns * 4

Every size is rounded up to a multiple of 64 with zeros, so that each tensor begins at one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .errors import Unsupported
from .model_config import FULL_ATTENTION, ModelConfig
from .tensors import EMBEDDING, FINAL_NORM, HEAD

CONTAINER_FORMATS = ("bf16", "int8", "int4")
LAYOUTS = ("int4", "int8", "bf16", "rows8", "rows16", "f32")
BLOCK_BYTES = {"int4": 4416, "int8": 8256, "bf16": 16384}
PANEL_ROWS, BLOCK_COLS = 32, 256
HALF_ROWS = 16
"""Rows of gate, then of up, that take turns in `gate_up`."""
ALIGNMENT = 64
CONV_TAPS = 4

SCAN_LAYOUTS = {"int4": "int4", "int8": "int4", "bf16": "int8"}
"""Of the head's first pass, by format: it only has to find the candidates."""
TABLE_LAYOUTS = {"int4": "rows8", "int8": "rows8", "bf16": "rows16"}


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One tensor of a converted model and the published ones (relative names) that it is made of."""

    layout: str
    rows: int
    cols: int
    sources: tuple[str, ...]
    arrangement: str = "stacked"
    """stacked: the sources' rows one after the other; interleaved: 16 rows of each in turn; scan, sigma: of the head."""
    fold: str = "none"
    """What is done to each value of an f32 tensor: none, one_plus, minus_exp."""

    @property
    def num_bytes(self) -> int:
        """In the file, padding included."""
        return tensor_bytes(self.layout, self.rows, self.cols)


def tensor_bytes(layout: str, rows: int, cols: int) -> int:
    """Bytes of a tensor in the file, padding included. Raises KeyError for an unknown layout."""
    blocks = -(-cols // BLOCK_COLS)
    if layout == "f32":
        size = 4 * rows * cols
    elif layout == "rows8":
        size = rows * blocks * (BLOCK_COLS + 2)
    elif layout == "rows16":
        size = rows * blocks * BLOCK_COLS * 2
    else:
        size = -(-rows // PANEL_ROWS) * blocks * BLOCK_BYTES[layout]
    return -(-size // ALIGNMENT) * ALIGNMENT


def check_convertible(config: ModelConfig) -> None:
    """Raises Unsupported for a model that has no place in the container."""
    if config.moe is not None:
        raise Unsupported("sparse feed-forwards have no converted form yet", file="config.json")
    if config.linear_layers and config.linear_conv_kernel_dim != CONV_TAPS:
        taps = config.linear_conv_kernel_dim
        raise Unsupported(
            f"linear_conv_kernel_dim: converted models have {CONV_TAPS} taps, not {taps}", file="config.json"
        )


def container_tensors(config: ModelConfig, format: str) -> dict[str, ContainerSpec]:
    """All tensors in file order. Raises Unsupported."""
    check_convertible(config)
    vocab, hidden = config.vocab_size, config.hidden_size
    table, head = TABLE_LAYOUTS[format], EMBEDDING if config.tie_word_embeddings else HEAD
    tensors = {"embed.table": ContainerSpec(table, vocab, hidden, (EMBEDDING,))}
    for i, kind in enumerate(config.layer_types):
        tensors |= {f"layers.{i}.{name}": spec for name, spec in layer_tensors(config, format, i, kind)}
    tensors["norm"] = ContainerSpec("f32", hidden, 1, (FINAL_NORM,), fold="one_plus")
    if not config.tie_word_embeddings:
        tensors["head.table"] = ContainerSpec(table, vocab, hidden, (HEAD,))
    tensors["head.scan"] = ContainerSpec(SCAN_LAYOUTS[format], vocab, hidden, (head,), "scan")
    tensors["head.sigma"] = ContainerSpec("f32", vocab, 1, (head,), "sigma")
    return tensors


def layer_tensors(config: ModelConfig, format: str, index: int, kind: str) -> Iterator[tuple[str, ContainerSpec]]:
    """One layer's, names relative to it."""
    hidden = config.hidden_size

    def vector(source: str, size: int, fold: str = "one_plus") -> ContainerSpec:
        return ContainerSpec("f32", size, 1, (f"layers.{index}.{source}",), fold=fold)

    def matrix(
        rows: int, cols: int, *sources: str, layout: str = format, arrangement: str = "stacked"
    ) -> ContainerSpec:
        return ContainerSpec(layout, rows, cols, tuple(f"layers.{index}.{name}" for name in sources), arrangement)

    yield "input_norm", vector("input_layernorm.weight", hidden)
    if kind == FULL_ATTENTION:
        query, pairs = config.query_dim, config.key_value_dim
        parts = [f"self_attn.{name}_proj.weight" for name in "qkv"]
        yield "qkv", matrix(2 * query + 2 * pairs, hidden, *parts)
        yield "q_norm", vector("self_attn.q_norm.weight", config.head_dim)
        yield "k_norm", vector("self_attn.k_norm.weight", config.head_dim)
        yield "out_proj", matrix(hidden, query, "self_attn.o_proj.weight")
    else:
        value, heads = config.linear_value_dim, config.linear_num_value_heads
        parts = [f"linear_attn.in_proj_{name}.weight" for name in ("qkv", "z")]
        gates = [f"linear_attn.in_proj_{name}.weight" for name in "ba"]
        yield "in_proj", matrix(config.conv_dim + value, hidden, *parts)
        yield "gates", matrix(2 * heads, hidden, *gates, layout="bf16")
        conv = (f"layers.{index}.linear_attn.conv1d.weight",)
        yield "conv", ContainerSpec("f32", config.conv_dim, CONV_TAPS, conv)
        yield "decay", vector("linear_attn.A_log", heads, "minus_exp")
        yield "dt_bias", vector("linear_attn.dt_bias", heads, "none")
        yield "mixer_norm", vector("linear_attn.norm.weight", config.linear_value_head_dim, "none")
        yield "out_proj", matrix(hidden, value, "linear_attn.out_proj.weight")
    yield "post_norm", vector("post_attention_layernorm.weight", hidden)
    width = config.intermediate_size
    padded = -(-width // HALF_ROWS) * HALF_ROWS
    both = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
    yield "gate_up", matrix(2 * padded, hidden, *both, arrangement="interleaved")
    yield "down", matrix(hidden, width, "mlp.down_proj.weight")
