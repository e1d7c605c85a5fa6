"""Gated full attention: norms on queries and keys, partial rotation, paged past, a sigmoid gate on what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels import ops

from ..cache import HybridCache
from ..model_config import ModelConfig
from ..step_layout import StepLayout


@dataclass(frozen=True, slots=True)
class GatedAttention:
    """Weights as stored, [out, in]; the norms' are f32."""

    q_proj: Tensor
    k_proj: Tensor
    v_proj: Tensor
    o_proj: Tensor
    q_norm: Tensor
    k_norm: Tensor
    head_dim: int
    eps: float

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], prefix: str, config: ModelConfig) -> GatedAttention:
        """From the trunk's tensors by relative name."""
        names = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
        tensors = {name: weights[f"{prefix}self_attn.{name}.weight"] for name in names}
        return cls(**tensors, head_dim=config.head_dim, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, layout: StepLayout, cache: HybridCache, index: int) -> Tensor:
        """x [P, H] -> [P, H]. Stores the step's keys and values, then attends, a sequence at a time."""
        num_rows = len(x)
        asked = ops.tiled_linear(x, self.q_proj, layout.tiles).view(num_rows, -1, 2 * self.head_dim)
        q, gate = asked[..., : self.head_dim], asked[..., self.head_dim :]  # inside each head
        k = ops.tiled_linear(x, self.k_proj, layout.tiles).view(num_rows, -1, self.head_dim)
        v = ops.tiled_linear(x, self.v_proj, layout.tiles).view(num_rows, -1, self.head_dim)
        q = ops.rotate(ops.rms_norm(q, self.q_norm, self.eps), layout.cos, layout.sin)
        k = ops.rotate(ops.rms_norm(k, self.k_norm, self.eps), layout.cos, layout.sin)
        keys, values = cache.keys[index], cache.values[index]
        ops.write_cache(keys, layout.places, k.index_select(0, layout.tokens))
        ops.write_cache(values, layout.places, v.index_select(0, layout.tokens))
        mixed = torch.zeros_like(q)  # padding must stay finite
        for piece in layout.pieces:
            past_keys = ops.read_cache(keys, piece.blocks, piece.end)
            past_values = ops.read_cache(values, piece.blocks, piece.end)
            mixed[piece.tokens] = ops.attend(q[piece.tokens], past_keys, past_values, piece.start)
        return ops.tiled_linear((mixed * gate.sigmoid()).flatten(1), self.o_proj, layout.tiles)
