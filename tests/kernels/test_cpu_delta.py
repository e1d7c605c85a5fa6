"""The native Gated DeltaNet kernels: against double precision, against the reference operations, and against themselves.

Tolerances, relative to the largest element. TIGHT: a state is a sum of f32 products whose decays are exponentials of differences of
cumulative logarithms; a steep token (log decay of 30 and more) in a chunk costs those differences their last digits, 1e-6 was seen.
LOOSE: an output passes a norm that divides by the length of o, so where o is small beside the terms it is made of, their rounding is
magnified. Between calls, cuts and instruction sets nothing is tolerated: the bits are equal.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.kernels.cpu import _cpu, available_isas

ISAS = available_isas()
BEST = ISAS[0]
LENGTHS = [1, 15, 16, 17, 63, 64, 65, 200]
SHAPES = [(1, 1, 16, 16), (2, 4, 32, 48), (1, 3, 48, 32), (1, 4, 16, 144), (2, 2, 64, 128)]
TIGHT, LOOSE = 2e-6, 2e-4
EPS = 1e-6

Array = NDArray[np.float32]
Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """Weights of one layer with random values, and what the kernels take them for."""

    shape: tuple[int, int, int, int]
    conv: Array
    decay: Array
    dt_bias: Array
    norm: Array

    @classmethod
    def random(cls, shape: tuple[int, int, int, int], rng: np.random.Generator) -> Layer:
        key_heads, value_heads, key_dim, value_dim = shape
        channels = 2 * key_heads * key_dim + value_heads * value_dim
        return cls(
            shape,
            rng.normal(0, 0.5, (channels, 4)).astype(np.float32),
            -np.exp(rng.normal(0, 1, value_heads)).astype(np.float32),
            rng.normal(0, 1, value_heads).astype(np.float32),
            rng.normal(1, 0.3, value_dim).astype(np.float32),
        )

    @property
    def channels(self) -> int:
        return self.conv.shape[0]

    @property
    def values(self) -> int:
        return self.shape[1] * self.shape[3]

    def tokens(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Projections q, k, v, z and gates b, a of n tokens; steep and flat decays both."""
        x = rng.normal(0, 1, (n, self.channels + self.values)).astype(np.float32)
        gates = rng.normal(-1, 2, (n, 2 * self.shape[1])).astype(np.float32)
        return x, gates

    def used_state(self) -> Array:
        """What a reused slot might hold: the first token must not see it."""
        return np.full(_cpu.delta_state_floats(*self.shape), np.nan, np.float32)

    def advance(self, isa: str, state: Array, x: Array, gates: Array, position: int) -> Array:
        out = np.full((len(x), self.values), np.nan, np.float32)
        _cpu.delta_advance(
            isa, *self.shape, self.conv, self.decay, self.dt_bias, self.norm, EPS, state, x, gates, position, out
        )
        return out

    def read(self, isa: str, state: Array, position: int) -> Array:
        _, value_heads, key_dim, value_dim = self.shape
        out = np.full((value_heads, key_dim, value_dim), np.nan, np.float32)
        _cpu.delta_state(isa, *self.shape, state, position, out)
        return out

    def exactly(self, x: Array, gates: Array) -> tuple[Wide, Wide]:
        """Token by token in double precision, from the definition. Returns outputs and the state [Hv, Dk, Dv]."""
        key_heads, value_heads, key_dim, value_dim = self.shape
        group = value_heads // key_heads
        history = np.concatenate([np.zeros((3, self.channels)), x[:, : self.channels].astype(np.float64)])
        state = np.zeros((value_heads, key_dim, value_dim))
        outs = np.zeros((len(x), self.values))
        for t in range(len(x)):
            mixed = (history[t : t + 4] * self.conv.T.astype(np.float64)).sum(0)
            mixed = mixed / (1 + np.exp(-mixed))
            q, k, v = np.split(mixed, [key_heads * key_dim, 2 * key_heads * key_dim])
            q, k, v = q.reshape(key_heads, key_dim), k.reshape(key_heads, key_dim), v.reshape(value_heads, value_dim)
            q, k = (u / np.sqrt((u * u).sum(-1, keepdims=True) + 1e-6) for u in (q, k))
            q, k = np.repeat(q, group, 0) * key_dim**-0.5, np.repeat(k, group, 0)
            b, a = np.split(gates[t].astype(np.float64), 2)
            g = self.decay.astype(np.float64) * np.logaddexp(0, a + self.dt_bias)
            state = np.exp(g)[:, None, None] * state
            wrong = (v - np.einsum("hkv,hk->hv", state, k)) / (1 + np.exp(-b))[:, None]
            state = state + k[:, :, None] * wrong[:, None, :]
            o = np.einsum("hkv,hk->hv", state, q)
            z = x[t, self.channels :].astype(np.float64).reshape(value_heads, value_dim)
            o = o / np.sqrt((o * o).mean(-1, keepdims=True) + EPS) * self.norm * z / (1 + np.exp(-z))
            outs[t] = o.reshape(-1)
        return outs, state


def relative(got: Array, want: Wide) -> float:
    """The largest error of a last axis, by that axis's largest element."""
    return float((np.abs(got - want).max(-1) / np.abs(want).max(-1)).max())


def assert_same_bits(a: Array, b: Array) -> None:
    assert np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n", LENGTHS)
def test_against_double_precision(isa: str, shape: tuple[int, int, int, int], n: int) -> None:
    rng = np.random.default_rng(n)
    layer = Layer.random(shape, rng)
    x, gates = layer.tokens(n, rng)
    state = layer.used_state()
    out = layer.advance(isa, state, x, gates, 0)
    want_out, want_state = layer.exactly(x, gates)
    got_state = layer.read(isa, state, n)
    assert np.abs(got_state - want_state).max() <= TIGHT * np.abs(want_state).max()
    assert relative(out, want_out) <= LOOSE


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(2, 4, 32, 48), (1, 4, 16, 144), (2, 2, 128, 128), (1, 2, 48, 256)], ids=str)
def test_same_bits_as_the_portable_kernels(isa: str, shape: tuple[int, int, int, int]) -> None:
    rng = np.random.default_rng(5)
    layer = Layer.random(shape, rng)
    x, gates = layer.tokens(57, rng)
    results = []
    for name in ("scalar", isa):
        state = layer.used_state()
        outs = [layer.advance(name, state, x[a:b], gates[a:b], a) for a, b in ((0, 37), (37, 38), (38, 41), (41, 57))]
        results.append((np.concatenate(outs), state, layer.read(name, state, 57)))
    for portable, other in zip(*results, strict=True):
        assert_same_bits(portable, other)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 99), max_size=30),
    shape=st.sampled_from([(1, 3, 32, 48), (2, 2, 48, 144), (1, 1, 16, 128)]),
)
def test_cuts_leave_no_trace(isa: str, cuts: list[int], shape: tuple[int, int, int, int]) -> None:
    rng = np.random.default_rng(3)
    layer = Layer.random(shape, rng)
    x, gates = layer.tokens(100, rng)
    whole, pieces = layer.used_state(), layer.used_state()
    want = layer.advance(isa, whole, x, gates, 0)
    edges = [0, *sorted(set(cuts)), 100]
    got = [layer.advance(isa, pieces, x[a:b], gates[a:b], a) for a, b in itertools.pairwise(edges)]
    assert_same_bits(np.concatenate(got), want)
    assert_same_bits(pieces, whole)
    assert_same_bits(layer.read(isa, pieces, 100), layer.read(isa, whole, 100))


@pytest.mark.parametrize("isa", ISAS)
def test_decoding_gives_the_bits_of_prefilling(isa: str) -> None:
    rng = np.random.default_rng(8)
    layer = Layer.random((2, 4, 32, 128), rng)
    x, gates = layer.tokens(70, rng)
    prefilled, decoded = layer.used_state(), layer.used_state()
    want = layer.advance(isa, prefilled, x, gates, 0)
    for t in range(70):
        assert_same_bits(layer.advance(isa, decoded, x[t : t + 1], gates[t : t + 1], t), want[t : t + 1])
    assert_same_bits(decoded, prefilled)


@pytest.mark.parametrize("isa", ISAS)
def test_a_token_taken_back_leaves_no_trace(isa: str) -> None:
    """Inside a chunk the position and the last three raw columns are all that a rejected token changes for the others."""
    rng = np.random.default_rng(9)
    layer = Layer.random((1, 2, 32, 48), rng)
    x, gates = layer.tokens(30, rng)
    straight, detoured = layer.used_state(), layer.used_state()
    want = layer.advance(isa, straight, x, gates, 0)
    layer.advance(isa, detoured, x[:20], gates[:20], 0)
    columns = detoured[: 3 * layer.channels].copy()
    layer.advance(isa, detoured, *layer.tokens(5, rng), 20)
    detoured[: 3 * layer.channels] = columns
    assert_same_bits(layer.advance(isa, detoured, x[20:], gates[20:], 20), want[20:])
    assert_same_bits(layer.read(isa, detoured, 30), layer.read(isa, straight, 30))


@pytest.mark.parametrize("isa", ISAS)
def test_the_columns_are_the_last_raw_inputs(isa: str) -> None:
    rng = np.random.default_rng(2)
    layer = Layer.random((2, 6, 16, 32), rng)
    x, gates = layer.tokens(5, rng)
    for n in (1, 2, 5):
        state = layer.used_state()
        layer.advance(isa, state, x[:n], gates[:n], 0)
        history = np.concatenate([np.zeros((3, layer.channels), np.float32), x[:n, : layer.channels]])
        assert np.array_equal(state[: 3 * layer.channels].reshape(3, -1), history[-3:])


@pytest.mark.parametrize("isa", ISAS)
def test_rows_may_stand_apart(isa: str) -> None:
    rng = np.random.default_rng(4)
    layer = Layer.random((1, 2, 16, 32), rng)
    x, gates = layer.tokens(21, rng)
    dense, apart = layer.used_state(), layer.used_state()
    want = layer.advance(isa, dense, x, gates, 0)
    wide_x = np.full((21, x.shape[1] + 3), np.nan, np.float32)
    wide_gates = np.full((21, gates.shape[1] + 5), np.nan, np.float32)
    wide_out = np.full((21, layer.values + 1), 7, np.float32)
    wide_x[:, : x.shape[1]], wide_gates[:, : gates.shape[1]] = x, gates
    _cpu.delta_advance(
        isa, *layer.shape, layer.conv, layer.decay, layer.dt_bias, layer.norm, EPS, apart,
        wide_x[:, : x.shape[1]], wide_gates[:, : gates.shape[1]], 0, wide_out[:, : layer.values],
    )  # fmt: skip
    assert_same_bits(np.ascontiguousarray(wide_out[:, : layer.values]), want)
    assert (wide_out[:, layer.values :] == 7).all()
    assert_same_bits(apart, dense)


@pytest.mark.parametrize("isa", ISAS)
def test_no_tokens_change_nothing(isa: str) -> None:
    layer = Layer.random((1, 1, 16, 16), np.random.default_rng(0))
    x, gates = layer.tokens(0, np.random.default_rng(0))
    state = layer.used_state()
    assert layer.advance(isa, state, x, gates, 0).shape == (0, 16)
    assert np.isnan(state).all()
    assert (layer.read(isa, state, 0) == 0).all()


def test_long_runs_do_not_drift() -> None:
    """4,096 tokens, slow decays: errors are forgotten as the state is, so the end is as exact as the beginning."""
    rng = np.random.default_rng(1)
    layer = Layer.random((1, 2, 32, 32), rng)
    layer.decay[:] = -0.01, -0.3
    x, gates = layer.tokens(4096, rng)
    state = layer.used_state()
    out = layer.advance(BEST, state, x, gates, 0)
    want_out, want_state = layer.exactly(x, gates)
    assert np.abs(layer.read(BEST, state, 4096) - want_state).max() <= TIGHT * np.abs(want_state).max()
    assert relative(out, want_out) <= LOOSE


@pytest.mark.parametrize("value_heads", [2, 4, 6, 8])
def test_against_the_reference_operations(value_heads: int) -> None:
    """The gated norm aside, which magnifies the rounding of both sides, the torch reference is f32 as well: twice TIGHT."""
    torch = pytest.importorskip("torch")
    from shoal.kernels.reference.causal_conv import causal_conv
    from shoal.kernels.reference.gated_delta import chunked, delta_gates
    from shoal.kernels.reference.norm import gated_rms_norm, unit_norm

    key_heads, key_dim, value_dim, n = 2, 32, 48, 77
    rng = np.random.default_rng(value_heads)
    layer = Layer.random((key_heads, value_heads, key_dim, value_dim), rng)
    x, gates = layer.tokens(n, rng)
    state = layer.used_state()
    out = layer.advance(BEST, state, x, gates, 0)

    conv, decay, dt_bias, norm, tx, tg = (
        torch.from_numpy(a.copy()) for a in (layer.conv, layer.decay, layer.dt_bias, layer.norm, x, gates)
    )
    mixed, _ = causal_conv(tx[:, : layer.channels], torch.zeros(layer.channels, 3), conv)
    keys = key_heads * key_dim
    q, k, v = mixed.split([keys, keys, layer.values], -1)
    q = unit_norm(q.reshape(n, key_heads, key_dim)) * key_dim**-0.5
    k = unit_norm(k.reshape(n, key_heads, key_dim))
    g, beta = delta_gates(tg[:, value_heads:], tg[:, :value_heads], torch.log(-decay), dt_bias)
    v = v.reshape(n, value_heads, value_dim)
    o, want_state = chunked(q, k, v, g, beta, torch.zeros(value_heads, key_dim, value_dim))
    want = gated_rms_norm(o, norm, tx[:, layer.channels :].reshape(n, value_heads, value_dim), EPS).reshape(n, -1)
    got_state = layer.read(BEST, state, n)
    assert np.abs(got_state - want_state.numpy()).max() <= 2 * TIGHT * float(want_state.abs().max())
    assert relative(out, want.double().numpy()) <= LOOSE


def test_what_is_refused() -> None:
    layer = Layer.random((1, 2, 16, 16), np.random.default_rng(0))
    x, gates = layer.tokens(3, np.random.default_rng(0))
    with pytest.raises(ValueError, match="multiples of 16"):
        _cpu.delta_state_floats(1, 1, 24, 16)
    with pytest.raises(ValueError, match="multiple of the key heads"):
        _cpu.delta_state_floats(2, 3, 16, 16)
    with pytest.raises(ValueError, match="state must have"):
        layer.advance(BEST, np.zeros(3, np.float32), x, gates, 0)
    with pytest.raises(ValueError, match="gates must have shape"):
        layer.advance(BEST, layer.used_state(), x, gates[:2], 0)
    with pytest.raises(ValueError, match="no kernels named"):
        layer.advance("sse2", layer.used_state(), x, gates, 0)
