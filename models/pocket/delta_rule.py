"""The gated delta rule in chunks, with what lies between the input projections and the recurrence.

Shapes use B (conversations), T (padded tokens), hk/hv (key/value heads), r = hv / hk, d (head size), c (chunk
length) and m = T / c (chunks).  Chunked form of arXiv 2412.06464 and arXiv 2406.06484; every conversation
starts with an empty state and is padded on the right, so nothing has to be masked or reset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; the names follow ``config.json``."""

    vocab: int = 768
    hidden: int = 256
    ffn: int = 512
    key_heads: int = 2
    value_heads: int = 4
    head: int = 128
    conv: int = 4
    q_heads: int = 2
    kv_heads: int = 1
    attn_head: int = 256
    rotary: int = 64
    theta: float = 1e7
    layers: int = 4
    interval: int = 4

    @property
    def key_dim(self) -> int:
        return self.key_heads * self.head

    @property
    def value_dim(self) -> int:
        return self.value_heads * self.head


def chunk_length(tokens: int) -> tuple[int, int]:
    """Smallest padded length >= tokens and its chunk (<= 64, a multiple of 8) for the delta rule."""
    parts = max(1, -(-tokens // 64))
    chunk = -(-tokens // parts)
    chunk = -(-chunk // 8) * 8
    return parts * chunk, chunk


class _UnitLowerInverse(torch.autograd.Function):
    """``(I + A)^-1`` for strictly lower A [..., c, c], fp32, by forward substitution."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        eye = torch.eye(a.shape[-1], dtype=a.dtype)
        x: Tensor = torch.linalg.solve_triangular(a, eye, upper=False, unitriangular=True)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        xt = x.transpose(-1, -2)
        out: Tensor = -(xt @ grads[0] @ xt).tril(-1)
        return out


class _CausalConv(torch.autograd.Function):
    """SiLU of a depthwise causal convolution: x [B, T, C], taps [C, 1, n]; the last tap meets the current token.

    Written out because a tap costs one pass over the data here and three in the general backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        w = taps[:, 0].t().to(x.dtype).contiguous()
        n, T = len(w), x.shape[1]
        y = x * w[-1]
        for j in range(1, n):
            if j < T:
                y[:, j:].addcmul_(x[:, : T - j], w[n - 1 - j])
        ctx.save_for_backward(x, w, y)
        return F.silu(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, w, y = ctx.saved_tensors
        n, T = len(w), x.shape[1]
        dy = torch.ops.aten.silu_backward(grads[0], y)
        dx = dy * w[-1]
        dw = [(dy * x).sum((0, 1), dtype=torch.float32)]
        for j in range(1, n):
            if j < T:
                dx[:, : T - j].addcmul_(dy[:, j:], w[n - 1 - j])
                dw.insert(0, (dy[:, j:] * x[:, : T - j]).sum((0, 1), dtype=torch.float32))
            else:
                dw.insert(0, torch.zeros_like(dw[0]))
        return dx, torch.stack(dw, 1).unsqueeze(1)


def gated_inputs(
    proj: Tensor, taps: Tensor, a_log: Tensor, dt_bias: Tensor, s: Shape, m: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Everything elementwise between the input projections and the delta rule.

    proj [B, T, 2 Kd + 2 Vd + 2 hv] (q, k, v, z, b, a).  The convolution is depthwise and causal, its last tap
    meets the current token, SiLU follows.  Returns q, k [m, B, hk, 1, c, d] of unit length (q / sqrt(d)),
    v [m, B, hk, r, c, d], z [B, T, hv, d], the running sum G of the log decay inside each chunk and
    beta, both [m, B, hk, r, c] fp32.
    """
    B, T, _ = proj.shape
    hk, hv, d, c = s.key_heads, s.value_heads, s.head, T // m
    width = 2 * s.key_dim + s.value_dim
    mix, z, b, a = torch.split(proj, [width, s.value_dim, hv, hv], -1)
    y: Tensor = _CausalConv.apply(mix, taps)  # type: ignore[no-untyped-call]
    q, k, v = torch.split(y, [s.key_dim, s.key_dim, s.value_dim], -1)

    def unit(x: Tensor) -> Tensor:
        x = x.reshape(B, T, hk, d).float()
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)

    def heads(x: Tensor, n: int) -> Tensor:
        x = x.reshape(B, m, c, hk, n, d).permute(1, 0, 3, 4, 2, 5)
        return x.to(dtype).contiguous()

    def gates(x: Tensor) -> Tensor:
        return x.reshape(B, m, c, hk, hv // hk).permute(1, 0, 3, 4, 2).contiguous()

    g = gates(-torch.exp(a_log) * F.softplus(a.float() + dt_bias))
    beta = gates(torch.sigmoid(b.float()))
    q, k = heads(unit(q) * d**-0.5, 1), heads(unit(k), 1)
    return q, k, heads(v, hv // hk), z.reshape(B, T, hv, d), g.cumsum(-1), beta


def chunk_factors(G: Tensor, beta: Tensor, kk: Tensor, qk: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``A = strictly_lower(beta K K^T * D)`` fp32 and ``P = Q K^T * D``, with D_ij = e^(G_i - G_j), j <= i.

    G, beta [m, B, hk, r, c]; kk, qk [m, B, hk, 1, c, c].  The mask comes before the exponential.
    """
    c = G.shape[-1]
    i = torch.arange(c)
    below = i.unsqueeze(-1) - i
    D = torch.exp(torch.where(below >= 0, G.unsqueeze(-1) - G.unsqueeze(-2), -1e30))
    A = torch.where(below > 0, beta.unsqueeze(-1) * D * kk.float(), 0.0)
    return A, (D * qk.float()).to(dtype)


def chunk_inputs(G: Tensor, beta: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """beta V, beta e^G K, e^G Q and e^(G_n - G) K, each [m, B, hk, r, c, d] in the precision of q."""
    eG, b = torch.exp(G).unsqueeze(-1), beta.unsqueeze(-1)
    left = torch.exp(G[..., -1:] - G).unsqueeze(-1)
    t = q.dtype
    kf = k.float()
    return (b * v.float()).to(t), (b * eG * kf).to(t), (eG * q.float()).to(t), (left * kf).to(t)


def advance(S: Tensor, last: Tensor, add: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``e^last S + add`` in fp32 and its rounded copy; S, add [B, hk, r, d, d], last [B, hk, r]."""
    new = torch.exp(last)[..., None, None] * S + add.float()
    return new, new.to(dtype)


def gated_norm(o: Tensor, z: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """``o / rms(o) * w * silu(z)`` for o [m, B, hk, r, c, d] and z [B, T, hv, d] -> [B, T, hv * d]."""
    B, T, hv, d = z.shape
    x = o.permute(1, 0, 4, 2, 3, 5).reshape(B, T, hv, d).float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * w
    return (x * F.silu(z.float())).to(dtype).reshape(B, T, hv * d)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, G: Tensor, beta: Tensor) -> Tensor:
    """Chunked gated delta rule on the outputs of :func:`gated_inputs`; returns o [m, B, hk, r, c, d]."""
    m, B, hk, r, c, d = v.shape
    t = q.dtype
    kt = k.transpose(-1, -2)
    A, P = chunk_factors(G, beta, k @ kt, q @ kt, t)
    X = _UnitLowerInverse.apply(A).to(t)  # type: ignore[no-untyped-call]
    bv, bk, qe, ke = chunk_inputs(G, beta, q, k, v)
    U = X @ bv
    if m == 1:
        alone: Tensor = P @ U
        return alone
    W = X @ bk
    us, ws, qs, kes = U.unbind(0), W.unbind(0), qe.unbind(0), ke.unbind(0)
    last = G[..., -1].unbind(0)
    S = torch.zeros(B, hk, r, d, d)
    low = S.to(t)
    news, outs = [us[0]], [torch.zeros_like(us[0])]
    for i in range(1, m):
        S, low = advance(S, last[i - 1], kes[i - 1].transpose(-1, -2) @ news[-1], t)
        outs.append(qs[i] @ low)
        news.append(us[i] - ws[i] @ low)
    o: Tensor = P @ torch.stack(news) + torch.stack(outs)
    return o
