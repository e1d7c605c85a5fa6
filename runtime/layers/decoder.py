"""One decoder layer: a mixer over time and a feed-forward, each behind a norm and added to the stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from shoal.kernels import ops

from ..cache import HybridCache
from ..model_config import FULL_ATTENTION, ModelConfig
from ..step_layout import StepLayout
from .attention import GatedAttention
from .feed_forward import DenseFeedForward, SparseFeedForward
from .gated_delta_net import GatedDeltaNet


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Layer `index` of the trunk; the index finds its pools in the cache."""

    index: int
    input_norm: Tensor
    mixer: GatedAttention | GatedDeltaNet
    post_norm: Tensor
    feed_forward: DenseFeedForward | SparseFeedForward
    eps: float

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], index: int, config: ModelConfig) -> DecoderLayer:
        """From the trunk's tensors by relative name."""
        prefix = f"layers.{index}."
        mixer = GatedAttention if config.layer_types[index] == FULL_ATTENTION else GatedDeltaNet
        return cls(
            index=index,
            input_norm=weights[f"{prefix}input_layernorm.weight"],
            mixer=mixer.of(weights, prefix, config),
            post_norm=weights[f"{prefix}post_attention_layernorm.weight"],
            feed_forward=(
                DenseFeedForward.of(weights, f"{prefix}mlp.")
                if config.moe is None
                else SparseFeedForward.of(weights, f"{prefix}mlp.", config.moe)
            ),
            eps=config.rms_norm_eps,
        )

    def forward(self, h: Tensor, layout: StepLayout, cache: HybridCache) -> Tensor:
        """h [P, H] -> [P, H], rows as in the layout."""
        h = h + self.mixer.forward(ops.rms_norm(h, self.input_norm, self.eps), layout, cache, self.index)
        return h + self.feed_forward.forward(ops.rms_norm(h, self.post_norm, self.eps), layout.tiles)
