"""The three forms of the gated delta rule against each other; the recurrent one against a literal transcription of the formula."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.kernels.reference.gated_delta import CHUNK, chunked, delta_gates, recurrent, step

torch.set_num_threads(1)


def inputs(num_tokens, key_heads=2, value_heads=6, key_dim=5, value_dim=7, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype)

    q, k = normal(num_tokens, key_heads, key_dim), normal(num_tokens, key_heads, key_dim)
    q, k = q / q.norm(dim=-1, keepdim=True) * key_dim**-0.5, k / k.norm(dim=-1, keepdim=True)
    decay = -(torch.rand(num_tokens, value_heads, generator=g, dtype=dtype) ** 4) * 8
    beta = torch.rand(num_tokens, value_heads, generator=g, dtype=dtype)
    return q, k, normal(num_tokens, value_heads, value_dim), decay, beta, normal(value_heads, key_dim, value_dim)


def literally(q, k, v, g, beta, state):
    """Element by element, in Python floats' double precision."""
    state = state.double().clone()
    group = v.shape[1] // q.shape[1]
    outs = torch.zeros(v.shape, dtype=torch.float64)
    for t in range(len(q)):
        for h in range(v.shape[1]):
            key, query = k[t, h // group].double(), q[t, h // group].double()
            old = state[h] * g[t, h].double().exp()
            wrong = v[t, h].double() - key @ old
            state[h] = old + beta[t, h].double() * torch.outer(key, wrong)
            outs[t, h] = query @ state[h]
    return outs, state


def test_recurrent_is_the_formula():
    args = inputs(9)
    out, state = recurrent(*args)
    want_out, want_state = literally(*args)
    torch.testing.assert_close(out.double(), want_out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.double(), want_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value_heads", [2, 4, 6, 8])
@pytest.mark.parametrize("num_tokens", [1, 2, 63, 64, 65, 150])
def test_chunked_equals_recurrent(num_tokens, value_heads):
    args = inputs(num_tokens, value_heads=value_heads, seed=num_tokens)
    out, state = chunked(*args)
    want_out, want_state = recurrent(*args)
    torch.testing.assert_close(out, want_out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, want_state, rtol=1e-4, atol=1e-5)


def test_decays_that_would_overflow_as_quotients_do_not():
    q, k, v, g, beta, state = inputs(130, dtype=torch.float64)
    g = torch.full_like(g, -20.0)  # e^-2600 is nothing, e^2600 is infinite
    out, after = chunked(q, k, v, g, beta, state)
    want_out, want_after = recurrent(q, k, v, g, beta, state)
    torch.testing.assert_close(out, want_out)
    torch.testing.assert_close(after, want_after)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 199), max_size=4, unique=True))
def test_cutting_anywhere_changes_nothing_but_rounding(cuts):
    q, k, v, g, beta, state = inputs(200, value_heads=2, seed=3)
    whole, end = chunked(q, k, v, g, beta, state)
    pieces, points = [], [0, *sorted(cuts), 200]
    for a, b in itertools.pairwise(points):
        out, state = chunked(q[a:b], k[a:b], v[a:b], g[a:b], beta[a:b], state, start=a)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, end, rtol=1e-4, atol=1e-5)


def test_a_cut_at_a_chunk_border_is_no_cut_at_all():
    q, k, v, g, beta, state = inputs(3 * CHUNK, seed=4)
    whole, end = chunked(q, k, v, g, beta, state)
    first, middle = chunked(q[:CHUNK], k[:CHUNK], v[:CHUNK], g[:CHUNK], beta[:CHUNK], state)
    rest, after = chunked(q[CHUNK:], k[CHUNK:], v[CHUNK:], g[CHUNK:], beta[CHUNK:], middle, start=CHUNK)
    torch.testing.assert_close(torch.cat([first, rest]), whole, rtol=0, atol=0)
    torch.testing.assert_close(after, end, rtol=0, atol=0)


@pytest.mark.parametrize("value_heads", [2, 4, 6, 8])
def test_step_equals_recurrent_a_sequence_each(value_heads):
    rows = [inputs(1, value_heads=value_heads, seed=seed) for seed in range(5)]
    joined = [torch.cat([row[i] for row in rows]) for i in range(5)]
    slots = [4, 0, 6, 1, 3]
    pool = torch.full((7, *rows[0][5].shape), 9.0)
    pool[slots] = torch.stack([row[5] for row in rows])
    out = step(*joined, pool, slots)
    after = pool[slots]
    assert (pool[[2, 5]] == 9.0).all()  # other slots are not touched
    for i, row in enumerate(rows):
        want_out, want_state = recurrent(*row)
        torch.testing.assert_close(out[i], want_out[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(after[i], want_state, rtol=1e-5, atol=1e-6)


def test_a_thousand_steps_do_not_drift():
    q, k, v, g, beta, state = inputs(1000, value_heads=4, seed=7)
    g = g * 0.01  # slow decay: the state remembers, errors too
    exact_out, exact_state = recurrent(*(x.double() for x in (q, k, v, g, beta, state)))
    stepped = state.unsqueeze(0).clone()
    outs = []
    for t in range(1000):
        outs.append(step(q[t : t + 1], k[t : t + 1], v[t : t + 1], g[t : t + 1], beta[t : t + 1], stepped, [0]))
    prefilled, prefilled_state = chunked(q, k, v, g, beta, state)
    for got in (torch.cat(outs), prefilled):
        assert (got - exact_out).abs().max() < 1e-5 * exact_out.abs().max()
    for got in (stepped[0], prefilled_state):
        assert (got - exact_state).abs().max() < 1e-5 * exact_state.abs().max()


def test_gates_stay_in_their_ranges():
    a, b = torch.tensor([[-90.0, 0.0, 90.0]]), torch.tensor([[-90.0, 0.0, 90.0]])
    g, beta = delta_gates(a, b, torch.tensor([3.0, 0.0, -3.0]), torch.zeros(3))
    assert torch.isfinite(g).all() and (g <= 0).all()
    torch.testing.assert_close(g[0, 1], -torch.log(torch.tensor(2.0)))
    torch.testing.assert_close(beta[0], torch.tensor([0.0, 0.5, 1.0]))
