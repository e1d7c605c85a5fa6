"""Gated feed-forwards: dense, and sparse with one expert that every token takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .elementwise import in_whole_vectors
from .linear import pad_rows, tiled_linear, tiles_of

EXPERT_TILE = 8
"""Rows that an expert sees at once, padded up to it."""


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, tiles: Sequence[slice]) -> Tensor:
    """`down(silu(gate x) * up x)`. x [N, H]; gate, up [I, H]; down [H, I], all of one dtype; `tiles` as in tiled_linear."""
    gated = in_whole_vectors(F.silu, tiled_linear(x, gate, tiles))
    return tiled_linear(gated * tiled_linear(x, up, tiles), down, tiles)


def sparse_swiglu(
    x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, num_per_token: int, tiles: Sequence[slice]
) -> Tensor:
    """Each token's `num_per_token` most probable experts, weighted by their probabilities renormalised among themselves.

    x [N, H]; router [E, H]; gate_up [E, 2I, H], gate rows first; down [E, H, I]; `tiles` as in tiled_linear. The softmax is f32 over
    all E experts.
    """
    weights, chosen = tiled_linear(x, router, tiles).float().softmax(-1).topk(num_per_token, -1)
    weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
    out = torch.zeros_like(x)
    for expert in sorted(set(chosen.flatten().tolist())):
        token, place = torch.nonzero(chosen == expert, as_tuple=True)
        gate, up = gate_up[expert].chunk(2)
        taken = pad_rows(x[token], EXPERT_TILE)
        mixed = swiglu(taken, gate, up, down[expert], tiles_of(len(taken), EXPERT_TILE))[: len(token)]
        out.index_add_(0, token, mixed * weights[token, place].unsqueeze(-1))
    return out
