"""Causal depthwise convolution with SiLU, over a sequence that comes in pieces.

y[t, c] = silu(sum_j weight[c, j] * x[t - (K - 1) + j, c]); the last tap meets the current token. What the next piece needs is the
last K - 1 raw columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .elementwise import in_whole_vectors


def causal_conv(x: Tensor, columns: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """One sequence. x [T, C]; columns [C, K - 1] oldest first; weight [C, K] f32. Returns y [T, C] f32, new columns."""
    taps = weight.shape[1]
    history = torch.cat([columns.T.to(x.dtype), x])
    num_tokens = x.shape[0]
    y = history[:num_tokens].float() * weight[:, 0]
    for j in range(1, taps):
        y = torch.addcmul(y, history[j : j + num_tokens].float(), weight[:, j])
    return F.silu(y), history[num_tokens:].T


def causal_conv_step(x: Tensor, columns: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """One token of each of R sequences. x [R, C]; columns [R, C, K - 1]; weight [C, K] f32. Returns y [R, C] f32, new columns."""
    window = torch.cat([columns.to(x.dtype), x.unsqueeze(-1)], -1).float()
    y = window[..., 0] * weight[:, 0]
    for j in range(1, weight.shape[1]):
        y = torch.addcmul(y, window[..., j], weight[:, j])
    return in_whole_vectors(F.silu, y), window[..., 1:].to(x.dtype)
