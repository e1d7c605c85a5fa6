"""Which tensors a checkpoint has: names, shapes and published dtypes, from the sizes alone. Neither torch nor numpy.

Trunk names are relative (`layers.0.mlp.up_proj.weight`): files put `model.language_model.` or `model.` before all of them
but `lm_head.weight`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .model_config import FULL_ATTENTION, ModelConfig, VisionConfig

HEAD = "lm_head.weight"
EMBEDDING = "embed_tokens.weight"
FINAL_NORM = "norm.weight"
PUBLISHED_PREFIX = "model.language_model."
ITEM_BYTES_BY_DTYPE = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape, and dtype in safetensors' spelling as published (files may differ in it, not in the shape)."""

    shape: tuple[int, ...]
    dtype: str = "BF16"

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes in the published dtype."""
        return self.num_elements * ITEM_BYTES_BY_DTYPE[self.dtype]


def expected_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """The text trunk by relative name, embedding first, then layers in order, final norm, head (untied models)."""
    tensors = {EMBEDDING: TensorSpec((config.vocab_size, config.hidden_size))}
    for i, kind in enumerate(config.layer_types):
        tensors |= {f"layers.{i}.{name}": spec for name, spec in layer_tensors(config, kind).items()}
    tensors[FINAL_NORM] = TensorSpec((config.hidden_size,))
    if not config.tie_word_embeddings:
        tensors[HEAD] = TensorSpec((config.vocab_size, config.hidden_size))
    return tensors


def layer_tensors(config: ModelConfig, kind: str) -> dict[str, TensorSpec]:
    """One decoder layer, names relative to it."""
    hidden = config.hidden_size
    tensors = {
        "input_layernorm.weight": TensorSpec((hidden,)),
        "post_attention_layernorm.weight": TensorSpec((hidden,)),
    }
    mixer = attention_tensors(config) if kind == FULL_ATTENTION else delta_tensors(config)
    return tensors | mixer | (dense_tensors(config) if config.moe is None else moe_tensors(config))


def attention_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Gated attention; `q_proj` has, head by head, the query rows and then the gate rows."""
    hidden, head = config.hidden_size, config.head_dim
    shapes = {
        "q_proj": (2 * config.query_dim, hidden),
        "k_proj": (config.key_value_dim, hidden),
        "v_proj": (config.key_value_dim, hidden),
        "o_proj": (hidden, config.query_dim),
        "q_norm": (head,),
        "k_norm": (head,),
    }
    return {f"self_attn.{name}.weight": TensorSpec(shape) for name, shape in shapes.items()}


def delta_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Gated DeltaNet; two tensors are published in f32, and two have no `.weight` in their names."""
    hidden, heads, value_dim = config.hidden_size, config.linear_num_value_heads, config.linear_value_dim
    return {
        "linear_attn.in_proj_qkv.weight": TensorSpec((config.conv_dim, hidden)),
        "linear_attn.in_proj_z.weight": TensorSpec((value_dim, hidden)),
        "linear_attn.in_proj_b.weight": TensorSpec((heads, hidden)),
        "linear_attn.in_proj_a.weight": TensorSpec((heads, hidden)),
        "linear_attn.conv1d.weight": TensorSpec((config.conv_dim, 1, config.linear_conv_kernel_dim)),
        "linear_attn.A_log": TensorSpec((heads,), "F32"),
        "linear_attn.dt_bias": TensorSpec((heads,)),
        "linear_attn.norm.weight": TensorSpec((config.linear_value_head_dim,), "F32"),
        "linear_attn.out_proj.weight": TensorSpec((hidden, value_dim)),
    }


def swiglu_tensors(prefix: str, hidden: int, width: int) -> dict[str, TensorSpec]:
    """The three matrices of one gated feed-forward."""
    return {
        f"{prefix}gate_proj.weight": TensorSpec((width, hidden)),
        f"{prefix}up_proj.weight": TensorSpec((width, hidden)),
        f"{prefix}down_proj.weight": TensorSpec((hidden, width)),
    }


def dense_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """The dense feed-forward."""
    return swiglu_tensors("mlp.", config.hidden_size, config.intermediate_size)


def moe_tensors(config: ModelConfig, *, fused: bool = True) -> dict[str, TensorSpec]:
    """The sparse feed-forward. Fused: two tensors for all experts, rows of gate and then of up; else three an expert."""
    moe, hidden = config.moe, config.hidden_size
    if moe is None:
        return {}
    tensors = {
        "mlp.gate.weight": TensorSpec((moe.num_experts, hidden)),
        "mlp.shared_expert_gate.weight": TensorSpec((1, hidden)),
        **swiglu_tensors("mlp.shared_expert.", hidden, moe.shared_intermediate_size),
    }
    if fused:
        tensors["mlp.experts.gate_up_proj"] = TensorSpec((moe.num_experts, 2 * moe.intermediate_size, hidden))
        tensors["mlp.experts.down_proj"] = TensorSpec((moe.num_experts, hidden, moe.intermediate_size))
    else:
        for expert in range(moe.num_experts):
            tensors |= swiglu_tensors(f"mlp.experts.{expert}.", hidden, moe.intermediate_size)
    return tensors


def mtp_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """The multi-token-prediction block, full names. Its experts, where sparse, are published one by one."""
    hidden = config.hidden_size
    tensors: dict[str, TensorSpec] = {}
    for i in range(config.mtp_num_hidden_layers):
        layer = layer_tensors(config, FULL_ATTENTION)
        if config.moe is not None:
            layer = {name: spec for name, spec in layer.items() if not name.startswith("mlp.")}
            layer |= moe_tensors(config, fused=False)
        tensors |= {f"mtp.layers.{i}.{name}": spec for name, spec in layer.items()}
    if tensors:
        tensors["mtp.fc.weight"] = TensorSpec((hidden, 2 * hidden))
        for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
            tensors[f"mtp.{name}.weight"] = TensorSpec((hidden,))
    return tensors


def vision_tensors(vision: VisionConfig) -> dict[str, TensorSpec]:
    """The vision tower, full names; every linear and norm has a bias."""
    width, inner = vision.hidden_size, vision.intermediate_size
    merged = width * vision.spatial_merge_size**2
    patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    tensors = {"patch_embed.proj.weight": TensorSpec((width, *patch)), "patch_embed.proj.bias": TensorSpec((width,))}
    tensors["pos_embed.weight"] = TensorSpec((vision.num_position_embeddings, width))

    def linear(name: str, out: int, into: int) -> None:
        tensors[f"{name}.weight"] = TensorSpec((out, into))
        tensors[f"{name}.bias"] = TensorSpec((out,))

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = TensorSpec((width,))
        tensors[f"{name}.bias"] = TensorSpec((width,))

    for i in range(vision.depth):
        norm(f"blocks.{i}.norm1")
        norm(f"blocks.{i}.norm2")
        linear(f"blocks.{i}.attn.qkv", 3 * width, width)
        linear(f"blocks.{i}.attn.proj", width, width)
        linear(f"blocks.{i}.mlp.linear_fc1", inner, width)
        linear(f"blocks.{i}.mlp.linear_fc2", width, inner)
    norm("merger.norm")
    linear("merger.linear_fc1", merged, merged)
    linear("merger.linear_fc2", vision.out_hidden_size, merged)
    return {f"model.visual.{name}": spec for name, spec in tensors.items()}


def published_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """The whole published checkpoint under its full names: trunk, vision tower, MTP block."""
    trunk = {
        name if name == HEAD else f"{PUBLISHED_PREFIX}{name}": spec for name, spec in expected_tensors(config).items()
    }
    return trunk | (vision_tensors(config.vision) if config.vision is not None else {}) | mtp_tensors(config)
