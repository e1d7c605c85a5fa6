"""The sizes of a model, from its config.json. Everything that the runtime allocates or loops over follows from here.

Two spellings of the file are read: the whole multimodal one (`text_config` inside) and the flat text one
(`model_type` `qwen3_5_text`). Imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigInvalid, Unsupported
from .mapping_reader import MappingReader
from .rope_config import RopeConfig, read_rope

LINEAR_ATTENTION = "linear_attention"
FULL_ATTENTION = "full_attention"
MODEL_TYPES = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")
MAX_LAYERS = 1024

# Known keys that change nothing here: training, other libraries' switches, names.
NEUTRAL_KEYS = frozenset(
    "architectures attention_dropout bos_token_id dtype full_attention_interval image_token_id initializer_range "
    "mamba_ssm_dtype mtp_use_dedicated_embeddings output_gate_type output_router_logits pad_token_id "
    "router_aux_loss_coef torch_dtype transformers_version use_cache video_token_id vision_end_token_id "
    "vision_start_token_id".split()
)


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """A sparse feed-forward: `num_experts` of which a token takes `num_per_token`, and one shared by all."""

    num_experts: int
    num_per_token: int
    intermediate_size: int
    shared_intermediate_size: int


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Sizes of the vision tower. It is not run; its tensors are known so that they are skipped or synthesised knowingly."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    num_position_embeddings: int
    out_hidden_size: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Names follow config.json. Sizes count elements, never bytes."""

    model_type: str
    vocab_size: int
    """Rows of the embedding and of the head; the tokenizer may know fewer ids."""
    hidden_size: int
    intermediate_size: int
    """Width of the dense feed-forward; 0 where `moe` is given."""
    layer_types: tuple[str, ...]
    """A layer each: LINEAR_ATTENTION (Gated DeltaNet) or FULL_ATTENTION (gated attention)."""
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    """As config.json has them; the generation config and the tokenizer add theirs (`GenerationDefaults.stop_ids`)."""
    moe: MoeConfig | None = None
    vision: VisionConfig | None = None
    mtp_num_hidden_layers: int = 0
    mtp_fused_experts: bool = False
    """Whether a sparse MTP block stores its experts as two tensors or one by one; known from the files only."""
    dropped_keys: tuple[str, ...] = field(default=(), compare=False)
    """Keys of config.json that nothing here knows, as dotted paths."""

    @property
    def num_layers(self) -> int:
        """Trunk layers of both kinds."""
        return len(self.layer_types)

    @property
    def linear_layers(self) -> tuple[int, ...]:
        """Indices of the Gated DeltaNet layers."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == LINEAR_ATTENTION)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Indices of the gated attention layers."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == FULL_ATTENTION)

    @property
    def query_dim(self) -> int:
        """Elements of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_dim(self) -> int:
        """Elements of all key heads of an attention layer together (values: as many)."""
        return self.num_key_value_heads * self.head_dim

    @property
    def linear_key_dim(self) -> int:
        """Elements of all key heads of a Gated DeltaNet layer together."""
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def linear_value_dim(self) -> int:
        """Elements of all value heads of a Gated DeltaNet layer together."""
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels that the causal convolution sees: queries, keys and values."""
        return 2 * self.linear_key_dim + self.linear_value_dim

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Read and check a parsed config.json. Raises ConfigInvalid or Unsupported, naming the key."""
        top = MappingReader(values)
        nested = top.object("text_config")
        text = nested or top
        model_type = top.string("model_type", "")
        if model_type not in MODEL_TYPES:
            raise top.fail("model_type", f"is {model_type!r}; served are {', '.join(MODEL_TYPES)}")
        if top.raw("quantization_config", text.raw("quantization_config")) is not None:
            raise Unsupported("quantization_config: quantised checkpoints are not served yet", file="config.json")
        if nested is not None:
            text.string("model_type", "")
        check_fixed_choices(text)
        layer_types = read_layer_types(text)
        vision = top.object("vision_config")
        config = cls(
            model_type=model_type,
            vocab_size=text.integer("vocab_size"),
            hidden_size=text.integer("hidden_size"),
            intermediate_size=0 if "moe" in model_type else text.integer("intermediate_size"),
            layer_types=layer_types,
            num_attention_heads=text.integer("num_attention_heads"),
            num_key_value_heads=text.integer("num_key_value_heads"),
            head_dim=(head_dim := text.integer("head_dim", 256)),
            linear_num_key_heads=text.integer("linear_num_key_heads", 16),
            linear_num_value_heads=text.integer("linear_num_value_heads", 32),
            linear_key_head_dim=text.integer("linear_key_head_dim", 128),
            linear_value_head_dim=text.integer("linear_value_head_dim", 128),
            linear_conv_kernel_dim=text.integer("linear_conv_kernel_dim", 4, maximum=64),
            rms_norm_eps=text.number("rms_norm_eps", 1e-6),
            rope=read_rope(text, head_dim),
            max_position_embeddings=text.integer("max_position_embeddings", 32768),
            # Both places may say it; the outer one is what the published loaders follow.
            tie_word_embeddings=top.boolean("tie_word_embeddings", text.boolean("tie_word_embeddings", False)),
            eos_token_ids=tuple(
                dict.fromkeys((*text.integers("eos_token_id", ()), *top.integers("eos_token_id", ()))),
            ),
            moe=read_moe(text) if "moe" in model_type else None,
            vision=read_vision(vision) if vision is not None else None,
            mtp_num_hidden_layers=text.integer("mtp_num_hidden_layers", 0, minimum=0, maximum=MAX_LAYERS),
        )
        for reader in {id(top): top, id(text): text}.values():
            for key in NEUTRAL_KEYS:
                reader.raw(key)
        dropped = (*top.unread(), *(nested.unread() if nested is not None else ()))
        config.check(text)
        return cls(**{**{name: getattr(config, name) for name in cls.__slots__}, "dropped_keys": dropped})

    def check(self, reader: MappingReader) -> None:
        """What two keys must agree on. Raises ConfigInvalid."""
        if self.num_attention_heads % self.num_key_value_heads:
            raise reader.fail("num_attention_heads", "must be a multiple of num_key_value_heads")
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise reader.fail("linear_num_value_heads", "must be a multiple of linear_num_key_heads")
        if self.moe is not None and self.moe.num_per_token > self.moe.num_experts:
            raise reader.fail("num_experts_per_tok", "must not exceed num_experts")
        for token_id in self.eos_token_ids:
            if token_id >= self.vocab_size:
                raise reader.fail("eos_token_id", f"names id {token_id}, beyond vocab_size {self.vocab_size}")


def check_fixed_choices(text: MappingReader) -> None:
    """Switches with one value that this runtime computes. Raises ConfigInvalid."""
    if text.string("hidden_act", "silu") != "silu":
        raise text.fail("hidden_act", "must be 'silu'")
    if text.boolean("attention_bias", False):
        raise text.fail("attention_bias", "must be false: no published model has biases in the text trunk")
    if not text.boolean("attn_output_gate", True):
        raise text.fail("attn_output_gate", "must be true: attention without the output gate is another model")
    if text.raw("mlp_only_layers", []) != []:
        raise text.fail("mlp_only_layers", "must be empty")


def read_layer_types(text: MappingReader) -> tuple[str, ...]:
    """`layer_types` where given, else every `full_attention_interval`-th layer attends. Raises ConfigInvalid."""
    num_layers = text.integer("num_hidden_layers", maximum=MAX_LAYERS)
    given = text.raw("layer_types")
    if given is None:
        interval = text.integer("full_attention_interval", 4)
        return tuple(LINEAR_ATTENTION if (i + 1) % interval else FULL_ATTENTION for i in range(num_layers))
    if not isinstance(given, list | tuple):
        raise text.fail("layer_types", "must be a list")
    for kind in given:
        if kind not in (LINEAR_ATTENTION, FULL_ATTENTION):
            raise text.fail("layer_types", f"has {kind!r}; known are {LINEAR_ATTENTION!r} and {FULL_ATTENTION!r}")
    if len(given) != num_layers:
        raise text.fail("layer_types", f"has {len(given)} entries, num_hidden_layers says {num_layers}")
    return tuple(given)


def read_moe(text: MappingReader) -> MoeConfig:
    """Sizes of the sparse feed-forward. Raises ConfigInvalid."""
    if not text.boolean("norm_topk_prob", True):
        raise text.fail("norm_topk_prob", "must be true: the weights of the chosen experts are always renormalised")
    text.raw("intermediate_size")
    return MoeConfig(
        num_experts=text.integer("num_experts", maximum=65536),
        num_per_token=text.integer("num_experts_per_tok", maximum=65536),
        intermediate_size=text.integer("moe_intermediate_size"),
        shared_intermediate_size=text.integer("shared_expert_intermediate_size"),
    )


def read_vision(vision: MappingReader) -> VisionConfig | None:
    """Sizes of the vision tower, None where the file has an incomplete one (a text-only re-save may)."""
    try:
        return VisionConfig(
            depth=vision.integer("depth", maximum=MAX_LAYERS),
            hidden_size=vision.integer("hidden_size"),
            intermediate_size=vision.integer("intermediate_size"),
            num_heads=vision.integer("num_heads"),
            in_channels=vision.integer("in_channels", 3),
            patch_size=vision.integer("patch_size"),
            temporal_patch_size=vision.integer("temporal_patch_size"),
            spatial_merge_size=vision.integer("spatial_merge_size"),
            num_position_embeddings=vision.integer("num_position_embeddings"),
            out_hidden_size=vision.integer("out_hidden_size"),
        )
    except ConfigInvalid:
        return None
