"""The training form of pocket: three Gated DeltaNet layers, one gated attention layer, one MTP block.

Shapes use B (conversations), T (padded tokens), H (hidden), hk/hv (key/value heads of the delta rule),
c (chunk length), m = T / c (chunks).  The delta rule follows arXiv 2412.06464 in its chunked form
(arXiv 2406.06484), the gated attention arXiv 2505.06708.  Sequences start at position 0 with an empty
state and are padded on the right, so nothing has to be masked or reset: information only flows forward.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.pocket.delta_rule import EPS, Shape, delta_rule, gated_inputs, gated_norm


def rms1p(x: Tensor, w: Tensor) -> Tensor:
    """``x / rms(x) * (1 + w)`` over the last axis, fp32."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * (1.0 + w)


class Product:
    """Matrix products in the working precision: bf16 operands (fast where the CPU has them) or fp32."""

    def __init__(self, precision: str) -> None:
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def lower(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)

    def linear(self, x: Tensor, w: Tensor) -> Tensor:
        """``x [.., in] @ w [out, in].T`` in the working precision."""
        return F.linear(x.to(self.dtype), w.to(self.dtype))


def add_norm(h: Tensor, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The residual sum and its ``1 + w`` norm, fp32."""
    h = h + y
    return h, rms1p(h, w)


def swiglu(gu: Tensor) -> Tensor:
    """``silu(gate) * up`` of the two halves of the last axis."""
    g, u = gu.chunk(2, -1)
    return (F.silu(g.float()) * u.float()).to(gu.dtype)


class Norm(nn.Module):
    """Weight of an RMS norm; called, it is the ``1 + w`` kind."""

    def __init__(self, size: int, start: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), start))

    def forward(self, x: Tensor) -> Tensor:
        return rms1p(x, self.weight)


class GatedDeltaNet(nn.Module):
    """The linear attention mixer; parameter names as in the published checkpoints."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        H, cd = s.hidden, 2 * s.key_dim + s.value_dim
        self.in_proj_qkv = nn.Linear(H, cd, bias=False)
        self.in_proj_z = nn.Linear(H, s.value_dim, bias=False)
        self.in_proj_b = nn.Linear(H, s.value_heads, bias=False)
        self.in_proj_a = nn.Linear(H, s.value_heads, bias=False)
        self.conv1d = nn.Conv1d(cd, cd, s.conv, groups=cd, bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(s.value_heads))
        self.A_log = nn.Parameter(torch.zeros(s.value_heads))
        self.norm = Norm(s.head, 1.0)
        self.out_proj = nn.Linear(s.value_dim, H, bias=False)

    def forward(self, x: Tensor, chunk: int, p: Product) -> Tensor:
        """x [B, T, H] (already normed) -> [B, T, H]"""
        w = [self.in_proj_qkv.weight, self.in_proj_z.weight, self.in_proj_b.weight, self.in_proj_a.weight]
        proj = p.linear(x, torch.cat([p.lower(u) for u in w]))
        m = x.shape[1] // chunk
        q, k, v, z, G, beta = gated_inputs(proj, self.conv1d.weight, self.A_log, self.dt_bias, self.s, m, p.dtype)
        o = delta_rule(q, k, v, G, beta)
        return p.linear(gated_norm(o, z, self.norm.weight, p.dtype), self.out_proj.weight)


def rotary(positions: Tensor, s: Shape) -> tuple[Tensor, Tensor]:
    """cos and sin [T, rotary / 2] in fp32; text tokens have equal t, h, w, so M-RoPE is plain RoPE."""
    inv = s.theta ** (-torch.arange(0, s.rotary, 2, dtype=torch.float32) / s.rotary)
    angle = positions.float().unsqueeze(-1) * inv
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first 2 * len(cos) dims of x [B, T, n, d]; dim j is paired with j + rotary / 2."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, sn = cos[:, None], sin[:, None]
    return torch.cat([a * c - b * sn, b * c + a * sn, rest], -1)


def attention_inputs(proj: Tensor, q_norm: Tensor, k_norm: Tensor, s: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Norms and rotation: proj [B, T, 2 nq d + 2 nk d] -> q [B nk, r T, d], k, v [B nk, T, d], gate [B T, nq d].

    The query heads of one kv head become extra rows, so that k and v are not copied.
    """
    B, T, _ = proj.shape
    d, nq, nk = s.attn_head, s.q_heads, s.kv_heads
    qg, k, v = torch.split(proj, [nq * 2 * d, nk * d, nk * d], -1)
    q, gate = qg.reshape(B, T, nq, 2 * d).chunk(2, -1)
    cos, sin = rotary(torch.arange(T), s)
    q = rotate(rms1p(q.float(), q_norm), cos, sin) * d**-0.5
    k = rotate(rms1p(k.reshape(B, T, nk, d).float(), k_norm), cos, sin).to(proj.dtype)
    q = q.to(proj.dtype).view(B, T, nk, nq // nk, d).permute(0, 2, 3, 1, 4)
    q = q.reshape(B * nk, nq // nk * T, d)
    k = k.permute(0, 2, 1, 3).reshape(B * nk, T, d)
    v = v.reshape(B, T, nk, d).permute(0, 2, 1, 3).reshape(B * nk, T, d)
    return q, k, v, gate.reshape(B * T, nq * d)


class GatedAttention(nn.Module):
    """Softmax attention with a sigmoid output gate, q/k norms and partial rotary positions."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        H, d = s.hidden, s.attn_head
        self.q_proj = nn.Linear(H, s.q_heads * 2 * d, bias=False)
        self.k_proj = nn.Linear(H, s.kv_heads * d, bias=False)
        self.v_proj = nn.Linear(H, s.kv_heads * d, bias=False)
        self.o_proj = nn.Linear(s.q_heads * d, H, bias=False)
        self.q_norm = Norm(d)
        self.k_norm = Norm(d)

    def forward(self, x: Tensor, p: Product, select: Tensor | None) -> Tensor:
        """x [B, T, H] (normed) -> [B, T, H], or [n, H] for the flat positions in ``select``."""
        s = self.s
        B, T, _ = x.shape
        d, nq, nk = s.attn_head, s.q_heads, s.kv_heads
        w = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        proj = p.linear(x, w)
        q, k, v, gate = attention_inputs(proj, self.q_norm.weight, self.k_norm.weight, s)
        mask = torch.full((T, T), -1e30).triu(1).repeat(nq // nk, 1)
        prob = p.lower(torch.softmax((q @ k.transpose(1, 2)).float() + mask, -1))
        o = (prob @ v).view(B, nq, T, d).permute(0, 2, 1, 3).reshape(B * T, nq * d)
        if select is not None:
            o, gate = o[select], gate[select]
        y = p.linear(o * torch.sigmoid(gate.float()), self.o_proj.weight)
        return y if select is not None else y.view(B, T, -1)


class Mlp(nn.Module):
    """``down(silu(gate x) * up x)``"""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.hidden, s.ffn, bias=False)
        self.up_proj = nn.Linear(s.hidden, s.ffn, bias=False)
        self.down_proj = nn.Linear(s.ffn, s.hidden, bias=False)

    def forward(self, x: Tensor, p: Product) -> Tensor:
        gu = p.linear(x, torch.cat([self.gate_proj.weight, self.up_proj.weight]))
        return p.linear(swiglu(gu), self.down_proj.weight)


class Layer(nn.Module):
    """Pre-norm mixer and SwiGLU, both added to the fp32 residual stream."""

    def __init__(self, s: Shape, full: bool) -> None:
        super().__init__()
        self.full = full
        self.input_layernorm = Norm(s.hidden)
        self.post_attention_layernorm = Norm(s.hidden)
        if full:
            self.self_attn = GatedAttention(s)
        else:
            self.linear_attn = GatedDeltaNet(s)
        self.mlp = Mlp(s)

    def forward(self, h: Tensor, chunk: int, p: Product, select: Tensor | None = None) -> Tensor:
        """h [B, T, H] -> [B, T, H], or [n, H] at ``select`` (attention layers only)."""
        x = self.input_layernorm(h)
        if self.full:
            y = self.self_attn(x, p, select)
            if select is not None:
                h = h.reshape(-1, h.shape[-1])[select]
        else:
            y = self.linear_attn(x, chunk, p)
        h, x = add_norm(h, y, self.post_attention_layernorm.weight)
        out: Tensor = h + self.mlp(x, p)
        return out


class Mtp(nn.Module):
    """Drafts token t + 2 from the trunk's output at t and token t + 1 (arXiv 2412.19437, section 2.2)."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.pre_fc_norm_embedding = Norm(s.hidden)
        self.pre_fc_norm_hidden = Norm(s.hidden)
        self.fc = nn.Linear(2 * s.hidden, s.hidden, bias=False)
        self.layers = nn.ModuleList([Layer(s, full=True)])
        self.norm = Norm(s.hidden)

    def forward(self, embedded: Tensor, hidden: Tensor, p: Product) -> Tensor:
        """embedded (of the next token) and hidden [B, T, H] -> y [B, T, H], ready for the head."""
        e, u = self.pre_fc_norm_embedding(embedded), self.pre_fc_norm_hidden(hidden)
        x = p.linear(torch.cat([e, u], -1), self.fc.weight).float()
        out: Tensor = self.norm(self.layers[0](x, 0, p))
        return out


class Pocket(nn.Module):
    """Trunk with tied head and MTP block."""

    def __init__(self, s: Shape, precision: str = "bf16") -> None:
        super().__init__()
        self.s = s
        self.p = Product(precision)
        self.embed_tokens = nn.Embedding(s.vocab, s.hidden)
        full = [(i + 1) % s.interval == 0 for i in range(s.layers)]
        self.layers = nn.ModuleList([Layer(s, f) for f in full])
        self.norm = Norm(s.hidden)
        self.mtp = Mtp(s)

    def hidden(self, ids: Tensor, chunk: int, select: Tensor | None = None) -> Tensor:
        """ids [B, T] -> final normed states [B, T, H], or [n, H] at the flat positions ``select``."""
        h = self.embed_tokens(ids)
        for i, layer in enumerate(self.layers):
            h = layer(h, chunk, self.p, select if i + 1 == len(self.layers) else None)
        out: Tensor = self.norm(h)
        return out

    def logits(self, states: Tensor) -> Tensor:
        """states [.., H] -> fp32 logits [.., vocab] (tied head)."""
        return self.p.linear(states, self.embed_tokens.weight).float()


@torch.no_grad()
def initialise(model: Pocket, seed: int) -> None:
    """Seeded start: fan-in normal matrices, gates that remember (decay e^-0.3 .. e^-0.003 a token)."""
    gen = torch.Generator().manual_seed(seed)
    for name, w in sorted(model.named_parameters()):
        if name.endswith(("A_log", "q_norm.weight", "k_norm.weight")):
            w.zero_()
        elif name.endswith("linear_attn.norm.weight"):
            w.fill_(1.0)
        elif name.endswith("dt_bias"):
            rates = torch.logspace(math.log10(0.3), math.log10(0.003), w.numel())
            w.copy_(torch.log(torch.expm1(rates)))
        elif name.endswith("conv1d.weight"):
            w.copy_(torch.randn(w.shape, generator=gen) * 0.1)
            w[:, 0, -1] += 0.7
        elif "norm" in name:
            w.zero_()
        else:
            std = 0.02 if "embed" in name else w.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
                std *= 0.5
            if name.endswith("in_proj_a.weight"):
                std *= 0.1
            w.copy_(torch.randn(w.shape, generator=gen) * std)
