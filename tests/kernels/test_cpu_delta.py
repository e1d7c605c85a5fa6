"""The native Gated DeltaNet kernels: against double precision, against the reference operations, and against themselves.

f32 sums of up to 128 products and sixteen tokens a chunk leave a state within about 3e-7 of its largest element (TIGHT leaves room
for heads whose terms cancel). An output passes a norm that divides by the length of o: where o is small beside the terms it is made
of, the rounding of those terms is magnified, so outputs get LOOSE of the row's largest element.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
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

    def fresh_state(self) -> Array:
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
    state = layer.fresh_state()
    out = layer.advance(isa, state, x, gates, 0)
    want_out, want_state = layer.exactly(x, gates)
    got_state = layer.read(isa, state, n)
    assert np.abs(got_state - want_state).max() <= TIGHT * np.abs(want_state).max()
    assert relative(out, want_out) <= LOOSE
