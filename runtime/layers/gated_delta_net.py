"""Gated DeltaNet: projections, a short causal convolution, the gated delta rule, a gated norm."""

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
class GatedDeltaNet:
    """Weights as stored, [out, in]; convolution [channels, taps], gates and norm are f32."""

    in_proj_qkv: Tensor
    in_proj_z: Tensor
    in_proj_b: Tensor
    in_proj_a: Tensor
    out_proj: Tensor
    conv: Tensor
    a_log: Tensor
    dt_bias: Tensor
    norm: Tensor
    num_key_heads: int
    num_value_heads: int
    key_dim: int
    """Dims of one key head; `value_dim` of one value head."""
    value_dim: int
    eps: float

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], prefix: str, config: ModelConfig) -> GatedDeltaNet:
        """From the trunk's tensors by relative name."""
        prefix = f"{prefix}linear_attn."
        return cls(
            in_proj_qkv=weights[f"{prefix}in_proj_qkv.weight"],
            in_proj_z=weights[f"{prefix}in_proj_z.weight"],
            in_proj_b=weights[f"{prefix}in_proj_b.weight"],
            in_proj_a=weights[f"{prefix}in_proj_a.weight"],
            out_proj=weights[f"{prefix}out_proj.weight"],
            conv=weights[f"{prefix}conv1d.weight"].squeeze(1),
            a_log=weights[f"{prefix}A_log"],
            dt_bias=weights[f"{prefix}dt_bias"],
            norm=weights[f"{prefix}norm.weight"],
            num_key_heads=config.linear_num_key_heads,
            num_value_heads=config.linear_num_value_heads,
            key_dim=config.linear_key_head_dim,
            value_dim=config.linear_value_head_dim,
            eps=config.rms_norm_eps,
        )

    def forward(self, x: Tensor, layout: StepLayout, cache: HybridCache, index: int) -> Tensor:
        """x [P, H] -> [P, H]. Advances the states and columns of the rows' slots."""
        tiles = layout.tiles
        raw = ops.tiled_linear(x, self.in_proj_qkv, tiles)
        z = ops.tiled_linear(x, self.in_proj_z, tiles).view(len(x), self.num_value_heads, self.value_dim)
        a, b = ops.tiled_linear(x, self.in_proj_a, tiles), ops.tiled_linear(x, self.in_proj_b, tiles)
        g, beta = ops.delta_gates(a, b, self.a_log, self.dt_bias)
        q, k, v = self._heads(self._convolve(raw, layout, cache.columns[index]))
        out = torch.zeros(v.shape, dtype=torch.float32, device=x.device)  # padding must stay finite
        states = cache.states[index]
        for piece in layout.long_pieces:
            at = piece.tokens
            before = states[piece.slot] if piece.start else torch.zeros_like(states[piece.slot])
            out[at], states[piece.slot] = ops.gated_delta_prefill(
                q[at], k[at], v[at], g[at], beta[at], before, piece.start
            )
        if layout.num_singles:
            at = slice(layout.num_single_rows)
            for piece in layout.singles:
                if piece.start == 0:
                    states[piece.slot].zero_()
            out[at] = ops.gated_delta_step(q[at], k[at], v[at], g[at], beta[at], states, layout.slots)
        return ops.tiled_linear(ops.gated_rms_norm(out, self.norm, z, self.eps).flatten(1), self.out_proj, tiles)

    def _convolve(self, raw: Tensor, layout: StepLayout, columns: Tensor) -> Tensor:
        """raw [P, channels] -> [P, channels] f32; `columns` [slots, channels, taps - 1] move on."""
        mixed = torch.zeros(raw.shape, dtype=torch.float32, device=raw.device)
        for piece in layout.long_pieces:
            before = columns[piece.slot] if piece.start else torch.zeros_like(columns[piece.slot])
            mixed[piece.tokens], columns[piece.slot] = ops.causal_conv(raw[piece.tokens], before, self.conv)
        if layout.num_singles:
            at = slice(layout.num_single_rows)
            for piece in layout.singles:
                if piece.start == 0:
                    columns[piece.slot].zero_()
            slots = torch.tensor(layout.slots, device=columns.device)
            before = ops.pad_rows(columns.index_select(0, slots), layout.num_single_rows)
            mixed[at], after = ops.causal_conv_step(raw[at], before, self.conv)
            columns.index_copy_(0, slots, after[: len(slots)])
        return mixed

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys [N, Hk, Dk] of unit length (queries also scaled by Dk^-0.5) and values [N, Hv, Dv]."""
        keys = self.num_key_heads * self.key_dim
        q = mixed[:, :keys].view(len(mixed), self.num_key_heads, self.key_dim)
        k = mixed[:, keys : 2 * keys].view(len(mixed), self.num_key_heads, self.key_dim)
        v = mixed[:, 2 * keys :].view(len(mixed), self.num_value_heads, self.value_dim)
        return ops.unit_norm(q) * self.key_dim**-0.5, ops.unit_norm(k), v
