"""Writes GGUF files of the published shapes with random weights, for llama.cpp and ik_llama.cpp to run.

    python tests/bench/write_gguf.py --size 0.8B --type Q4_0 --out FILE

The mix of formats is what those projects' quantisers choose for a model of this family: norms, gates and convolution in F32,
a head at 6 bits beside 4-bit layers (5.5 beside IQ4_KS, which only ik_llama.cpp reads). The vocabulary has its published
size, since loading it is a part of the time to the first token; there are no merges, which spares the peers some of that.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf_blocks import FORMATS, random_rows

from shoal.runtime.config import ModelConfig
from shoal.runtime.sizes import SIZES, published_config
from shoal.runtime.synth_tokenizer import byte_letters

ARCHITECTURE = "qwen35"
HEADS = {"BF16": "BF16", "Q8_0": "Q8_0", "Q4_0": "Q6_K", "IQ4_KS": "IQ5_K"}  # type of the file -> of a tied head
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file: rows x columns of one format; one row without `matrix` has one dimension."""

    name: str
    format: str
    rows: int
    columns: int
    matrix: bool = True


def tensors(config: ModelConfig, type_name: str) -> Iterator[Tensor]:
    """All tensors of a dense model, in the order of the file."""
    hidden, tied = config.hidden_size, config.tie_word_embeddings
    yield Tensor("token_embd.weight", HEADS[type_name] if tied else type_name, config.vocab_size, hidden)
    if not tied:
        yield Tensor("output.weight", "Q6_K" if type_name == "IQ4_KS" else HEADS[type_name], config.vocab_size, hidden)
    yield Tensor("output_norm.weight", "F32", 1, hidden, matrix=False)
    for layer in range(config.num_layers):
        prefix = f"blk.{layer}."
        yield Tensor(f"{prefix}attn_norm.weight", "F32", 1, hidden, matrix=False)
        yield Tensor(f"{prefix}post_attention_norm.weight", "F32", 1, hidden, matrix=False)
        mixer = attention if layer in config.attention_layers else delta_net
        yield from mixer(config, type_name, prefix)
        yield Tensor(f"{prefix}ffn_gate.weight", type_name, config.intermediate_size, hidden)
        yield Tensor(f"{prefix}ffn_down.weight", type_name, hidden, config.intermediate_size)
        yield Tensor(f"{prefix}ffn_up.weight", type_name, config.intermediate_size, hidden)


def attention(config: ModelConfig, type_name: str, prefix: str) -> Iterator[Tensor]:
    """Gated attention: each query head brings its gate. ik_llama.cpp keeps values at 5.5 bits."""
    hidden = config.hidden_size
    yield Tensor(f"{prefix}attn_q.weight", type_name, 2 * config.query_dim, hidden)
    yield Tensor(f"{prefix}attn_k.weight", type_name, config.key_value_dim, hidden)
    yield Tensor(
        f"{prefix}attn_v.weight", "IQ5_K" if type_name == "IQ4_KS" else type_name, config.key_value_dim, hidden
    )
    yield Tensor(f"{prefix}attn_output.weight", type_name, hidden, config.query_dim)
    yield Tensor(f"{prefix}attn_q_norm.weight", "F32", 1, config.head_dim, matrix=False)
    yield Tensor(f"{prefix}attn_k_norm.weight", "F32", 1, config.head_dim, matrix=False)


def delta_net(config: ModelConfig, type_name: str, prefix: str) -> Iterator[Tensor]:
    """Gated DeltaNet; `ssm_a` is -exp(A_log)."""
    hidden, heads = config.hidden_size, config.linear_num_value_heads
    yield Tensor(f"{prefix}attn_qkv.weight", type_name, config.conv_dim, hidden)
    yield Tensor(f"{prefix}attn_gate.weight", type_name, config.linear_value_dim, hidden)
    yield Tensor(f"{prefix}ssm_conv1d.weight", "F32", config.conv_dim, config.linear_conv_kernel_dim)
    yield Tensor(f"{prefix}ssm_dt.bias", "F32", 1, heads, matrix=False)
    yield Tensor(f"{prefix}ssm_a", "F32", 1, heads, matrix=False)
    yield Tensor(f"{prefix}ssm_beta.weight", type_name, heads, hidden)
    yield Tensor(f"{prefix}ssm_alpha.weight", type_name, heads, hidden)
    yield Tensor(f"{prefix}ssm_norm.weight", "F32", 1, config.linear_value_head_dim, matrix=False)
    yield Tensor(f"{prefix}ssm_out.weight", type_name, hidden, config.linear_value_dim)


def add_metadata(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """Sizes under the names that both peers read."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e7)
    writer.add_rope_dimension_count(config.head_dim // 4)
    writer.add_rope_dimension_sections([11, 11, 10, 0])
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_inner_size(config.linear_value_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_full_attention_interval(4)
    letters = byte_letters()
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(letters + [f"~{i:05x}" for i in range(config.vocab_size - len(letters))])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges([f"{letters[104]} {letters[101]}"])
    writer.add_eos_token_id(config.vocab_size - 1)


def rows_of(tensor: Tensor, rng: np.random.Generator) -> np.ndarray:
    """Rows of one tensor; norms are near 1 and decays near -1, as a model's are."""
    if not tensor.matrix and ("norm" in tensor.name or tensor.name.endswith("ssm_a")):
        values = np.full((1, tensor.columns), -1.0 if tensor.name.endswith("ssm_a") else 1.0, np.float32)
        return values.view(np.uint8)
    return random_rows(FORMATS[tensor.format], tensor.rows, tensor.columns, rng)


def write(config: ModelConfig, type_name: str, out: Path, seed: int = 0) -> int:
    """The whole file, under another name until it is complete; returns its bytes."""
    partial = out.with_name(out.name + ".part")
    writer = gguf.GGUFWriter(partial, ARCHITECTURE)
    add_metadata(writer, config)
    plan = list(tensors(config, type_name))
    for tensor in plan:
        format = FORMATS[tensor.format]
        shape = (tensor.rows, tensor.columns) if tensor.matrix else (tensor.columns,)
        num_bytes = tensor.rows * format.row_bytes(tensor.columns)
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), num_bytes, raw_dtype=format.number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for tensor in plan:
        pieces = [
            rows_of(
                Tensor(
                    tensor.name, tensor.format, min(ROWS_AT_ONCE, tensor.rows - first), tensor.columns, tensor.matrix
                ),
                rng,
            )
            for first in range(0, tensor.rows, ROWS_AT_ONCE)
        ]
        writer.write_tensor_data(np.concatenate(pieces).reshape(-1))
    writer.close()
    os.replace(partial, out)
    return out.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description="random weights as GGUF")
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--type", choices=HEADS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    config = ModelConfig.from_mapping(published_config(options.size))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{options.out}: {write(config, options.type, options.out) / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
