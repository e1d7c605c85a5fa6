"""The gated delta rule (arXiv 2412.06464): a matrix a head that forgets, corrects and answers, token by token.

For a value head, with state S [Dk, Dv], g <= 0 and beta in (0, 1):

    S <- exp(g) S ;  d = beta (v - S^T k) ;  S <- S + k d^T ;  o = S^T q

Shapes everywhere: q, k [.., Hk, Dk] (unit length, q also times Dk^-0.5), v [.., Hv, Dv], g, beta [.., Hv], all f32. Value head h
reads key head h // (Hv / Hk). States are f32, [Hv, Dk, Dv]. Three forms of one function: `recurrent` is the definition, `chunked`
is for many tokens of a sequence, `step` for one token of many sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .elementwise import in_whole_vectors

CHUNK = 32
"""Tokens of a chunk. Chunks begin at multiples of it in absolute positions, so that where a prompt is cut matters little."""


def delta_gates(a: Tensor, b: Tensor, a_log: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """g = -exp(a_log) softplus(a + dt_bias) and beta = sigmoid(b). a, b [.., Hv]; a_log, dt_bias [Hv] f32; results f32."""
    return -a_log.exp() * in_whole_vectors(F.softplus, a.float() + dt_bias), in_whole_vectors(torch.sigmoid, b.float())


def recurrent(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, a loop over T tokens of one sequence. Returns o [T, Hv, Dv] and the state after the last token."""
    q, k = _per_value_head(q, k, v.shape[-2])
    outputs = []
    for t in range(q.shape[0]):
        state = state * g[t].exp()[:, None, None]
        correction = beta[t][:, None] * (v[t] - torch.einsum("hkv,hk->hv", state, k[t]))
        state = state + k[t][:, :, None] * correction[:, None, :]
        outputs.append(torch.einsum("hkv,hk->hv", state, q[t]))
    return torch.stack(outputs), state


def step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, states: Tensor, slots: Sequence[int]) -> Tensor:
    """One token of each of R sequences. states [slots, Hv, Dk, Dv]: those of `slots` (R different ones) advance in place.

    q, k, v, g, beta may have more than R rows: those behind are padding. Returns o [rows, Hv, Dv], zero in padding. S is read once for
    both products: with u = S^T k and p = S^T q before the update, o = e^g p + (k.q) d. State by state, so that each stays in a core's
    cache, and no result depends on R.
    """
    q, k = _per_value_head(q, k, v.shape[-2])
    asking = torch.stack([k, q], -2)  # [rows, Hv, 2, Dk]
    decay = in_whole_vectors(torch.exp, g).unsqueeze(-1)
    overlap = (k * q).sum(-1, keepdim=True)
    out = torch.zeros_like(v)
    for row, slot in enumerate(slots):
        state = states[slot]
        told, answer = (decay[row].unsqueeze(-1) * torch.bmm(asking[row], state)).unbind(-2)
        correction = beta[row].unsqueeze(-1) * (v[row] - told)
        torch.addcmul(answer, overlap[row], correction, out=out[row])
        state.mul_(decay[row].unsqueeze(-1)).addcmul_(k[row].unsqueeze(-1), correction.unsqueeze(-2))
    return out


def chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, start: int = 0, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """T tokens of one sequence, the first at absolute position `start`, a chunk at a time (arXiv 2412.06464, section 3).

    Returns o [T, Hv, Dv] and the state after the last token. Decays enter as differences of logarithms under the causal mask: their
    quotients would overflow.
    """
    num_tokens = v.shape[0]
    q, k = _per_value_head(q, k, v.shape[-2])
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # heads first
    g, beta = g.T, beta.T
    outputs = []
    begin = 0
    while begin < num_tokens:
        end = min(num_tokens, begin + chunk - (start + begin) % chunk)
        piece = slice(begin, end)
        out, state = _one_chunk(q[:, piece], k[:, piece], v[:, piece], g[:, piece], beta[:, piece], state)
        outputs.append(out)
        begin = end
    return torch.cat(outputs, 1).transpose(0, 1), state


def _one_chunk(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """n tokens, heads first: q, k [Hv, n, Dk], v [Hv, n, Dv], g, beta [Hv, n]. Returns o [Hv, n, Dv] and the next state."""
    size = q.shape[1]
    # Sums of logarithms grow where their differences stay small: f64, or the differences lose their last digits.
    sums = g.double().cumsum(-1)
    gaps = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).to(g.dtype)
    decay = sums.to(g.dtype)
    allowed = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    kept = gaps.masked_fill(~allowed, -torch.inf).exp()  # e^(G_i - G_j) for j <= i
    keys_t = k.transpose(1, 2)
    mixing = (beta.unsqueeze(-1) * (k @ keys_t) * kept).tril(-1)
    grown = decay.exp().unsqueeze(-1)
    # (I + mixing) d = beta (v - e^G S^T k), solved for all corrections d at once
    wanted = beta.unsqueeze(-1) * (v - grown * (k @ state))
    corrections = torch.linalg.solve_triangular(mixing, wanted, upper=False, unitriangular=True)
    out = grown * (q @ state) + ((q @ keys_t) * kept) @ corrections
    carried = (k * gaps[:, -1].exp().unsqueeze(-1)).transpose(1, 2) @ corrections
    return out, state * grown[:, -1:] + carried


def _per_value_head(q: Tensor, k: Tensor, num_value_heads: int) -> tuple[Tensor, Tensor]:
    """Each key head repeated for the consecutive value heads that read it."""
    repeats = num_value_heads // q.shape[-2]
    if repeats == 1:
        return q, k
    return q.repeat_interleave(repeats, -2), k.repeat_interleave(repeats, -2)
