"""Norms: two RMS conventions that one model uses side by side, and unit length."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .elementwise import in_whole_vectors

UNIT_EPS = 1e-6


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * (1 + weight)` over the last dim: every norm of the trunk but the gated one.

    x [..., D] any float dtype; weight [D] f32, stored near 0. Computed in f32 and cast once at the end.
    """
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return torch.addcmul(scaled, scaled, weight).to(x.dtype)


def gated_rms_norm(x: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight * silu(gate)` over the last dim: norm first, gate second, no `1 +`.

    x [..., D] f32; weight [D] f32, stored near 1; gate [..., D] any float dtype. Returns the gate's dtype, f32 inside.
    """
    scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight
    return (scaled * in_whole_vectors(F.silu, gate.float())).to(gate.dtype)


def unit_norm(x: Tensor) -> Tensor:
    """`x / sqrt(sum(x^2) + 1e-6)` over the last dim, f32: a sum, not a mean, and the epsilon inside the root."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + UNIT_EPS)
