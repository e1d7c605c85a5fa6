"""Gated full attention: norms on queries and keys, partial rotation, paged past, a sigmoid gate on what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

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
        """x [N, H] -> [N, H]. Stores the step's keys and values, then attends."""
        num_tokens = len(x)
        asked = F.linear(x, self.q_proj).view(num_tokens, -1, 2 * self.head_dim)
        q, gate = asked[..., : self.head_dim], asked[..., self.head_dim :]  # inside each head
        k = F.linear(x, self.k_proj).view(num_tokens, -1, self.head_dim)
        v = F.linear(x, self.v_proj).view(num_tokens, -1, self.head_dim)
        q = ops.rotate(ops.rms_norm(q, self.q_norm, self.eps), layout.cos, layout.sin)
        k = ops.rotate(ops.rms_norm(k, self.k_norm, self.eps), layout.cos, layout.sin)
        keys, values = cache.keys[index], cache.values[index]
        ops.write_cache(keys, layout.places, k)
        ops.write_cache(values, layout.places, v)
        mixed = torch.empty_like(q)
        for piece in layout.pieces:
            past_keys = ops.read_cache(keys, piece.blocks, piece.end)
            past_values = ops.read_cache(values, piece.blocks, piece.end)
            mixed[piece.tokens] = ops.attend_prefill(q[piece.tokens], past_keys, past_values, piece.start)
        for group in layout.groups:
            asked = q.index_select(0, group.tokens)
            answered = ops.attend_decode(asked, keys, values, group.block_tables, group.lengths)
            mixed.index_copy_(0, group.tokens, answered)
        return F.linear((mixed * gate.sigmoid()).flatten(1), self.o_proj)
