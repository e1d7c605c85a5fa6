"""Gated feed-forwards: dense, and sparse with one expert that every token takes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """`down(silu(gate x) * up x)`. x [N, H]; gate, up [I, H]; down [H, I], all of one dtype."""
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def sparse_swiglu(x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, num_per_token: int) -> Tensor:
    """Each token's `num_per_token` most probable experts, weighted by their probabilities renormalised among themselves.

    x [N, H]; router [E, H]; gate_up [E, 2I, H], gate rows first; down [E, H, I]. The softmax is f32 over all E experts.
    """
    weights, chosen = F.linear(x, router).float().softmax(-1).topk(num_per_token, -1)
    weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
    out = torch.zeros_like(x)
    for expert in sorted(set(chosen.flatten().tolist())):
        token, place = torch.nonzero(chosen == expert, as_tuple=True)
        gate, up = gate_up[expert].chunk(2)
        out.index_add_(0, token, swiglu(x[token], gate, up, down[expert]) * weights[token, place].unsqueeze(-1))
    return out
