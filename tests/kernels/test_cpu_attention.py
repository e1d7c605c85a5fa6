"""Native gated attention over pages: against double precision, and bit by bit against itself.

A query's scores have a standard deviation of 1 here and the values are of size 1, so an output is a mean of numbers of
size 1. Its f32 error is that of a chain of 256 fused products in a score (about 1e-6) carried through exp: 2e-5 is ten
times what was seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest

from shoal.kernels.cpu import _cpu, available_isas

TOKENS = 64
EPS = 1e-6
ISAS = available_isas()
OTHER_ISAS = tuple(isa for isa in ISAS if isa != "scalar")
FORMATS = ("bf16", "int8", "f32")


@dataclass(frozen=True)
class Shape:
    heads: int = 4
    kv_heads: int = 1
    head_dim: int = 64
    rotary_dim: int = 32

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    def page_bytes(self, kv_format: str) -> int:
        cells = 2 * TOKENS * self.head_dim
        return {"bf16": 2 * cells, "int8": cells + 8 * TOKENS, "f32": 4 * cells}[kv_format]


@dataclass(frozen=True)
class Layer:
    """The inputs of `length` tokens of one sequence, a pool filled with `poison`, and where its pages lie."""

    shape: Shape
    kv_format: str
    length: int
    poison: int = 0xFF  # not a number, as bf16 and as a scale
    seed: int = 0
    rows: np.ndarray = field(init=False)
    cos: np.ndarray = field(init=False)
    sin: np.ndarray = field(init=False)
    norms: np.ndarray = field(init=False)
    pool: np.ndarray = field(init=False)
    pages: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        shape, random = self.shape, np.random.default_rng(7)  # the same inputs whatever the seed: it places the pages
        angles = random.uniform(-3, 3, (self.length, shape.rotary_dim // 2))
        num_pages = -(-self.length // TOKENS) + 3
        put = object.__setattr__
        columns = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
        put(self, "rows", random.standard_normal((self.length, columns), np.float32))
        put(self, "cos", np.cos(angles).astype(np.float32))
        put(self, "sin", np.sin(angles).astype(np.float32))
        put(self, "norms", (1 + 0.1 * random.standard_normal((2, shape.head_dim))).astype(np.float32))
        size = (num_pages, shape.kv_heads, shape.page_bytes(self.kv_format))
        put(self, "pool", np.full(size, self.poison, np.uint8))
        put(self, "pages", np.random.default_rng(self.seed).permutation(num_pages).astype(np.int32))

    def _part(self, begin: int, end: int) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
        return self.rows[begin:end], begin, self.cos[begin:end], self.sin[begin:end]

    def store(self, isa: str, begin: int, end: int) -> None:
        place = self.pool, self.kv_format, self.pages, self.shape.heads, self.shape.kv_heads
        _cpu.attention_store(isa, *self._part(begin, end), self.norms[1], *place, EPS)

    def attend(self, isa: str, begin: int, end: int, first: int | None = None, last: int | None = None) -> np.ndarray:
        """The rows [begin, end) of the sequence in a call that was given the rows [first, last)."""
        first, last = begin if first is None else first, end if last is None else last
        place = self.pool, self.kv_format, self.pages, self.shape.heads, self.shape.kv_heads
        out = np.full((last - first, self.shape.heads * self.shape.head_dim), np.nan, np.float32)
        arguments = *self._part(first, last), self.norms[0], *place, self.shape.scale, EPS
        _cpu.attention_attend(isa, *arguments, out, begin - first, end - first)
        assert np.isnan(out[: begin - first]).all() and np.isnan(out[end - first :]).all()
        return out[begin - first : end - first]

    def inputs(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Queries and keys [n, heads, head_dim] as they meet, values and gates, in f64."""
        dims, half = self.shape.head_dim, self.shape.rotary_dim // 2
        heads = self.rows[begin:end].astype(np.float64).reshape(end - begin, -1, dims)
        split = 2 * self.shape.heads
        queries, gates = heads[:, :split:2], heads[:, 1:split:2]
        keys, values = heads[:, split : split + self.shape.kv_heads], heads[:, split + self.shape.kv_heads :]
        cos, sin = (x[begin:end, None].astype(np.float64) for x in (self.cos, self.sin))
        met = []
        for x, norm in ((queries, self.norms[0]), (keys, self.norms[1])):
            x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * norm
            a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
            met.append(np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1))
        return met[0] * self.shape.scale, met[1], values, gates

    def stored(self, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys and values [length, kv_heads, head_dim] as the pages hold them, and the scales [length, kv_heads, 2]."""
        dims, cells = self.shape.head_dim, TOKENS * self.shape.head_dim
        pages = self.pool[self.pages[: -(-length // TOKENS)]]
        scales = np.ones((len(pages), self.shape.kv_heads, 2, TOKENS), np.float32)
        if self.kv_format == "bf16":
            numbers = (pages.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif self.kv_format == "f32":
            numbers = pages.view(np.float32)
        else:
            numbers = pages[..., : 2 * cells].view(np.int8).astype(np.float32)
            scales = np.ascontiguousarray(pages[..., 2 * cells :]).view(np.float32).reshape(scales.shape)
        keys = numbers[..., :cells].reshape(*pages.shape[:2], dims, TOKENS).transpose(0, 3, 1, 2)
        values = numbers[..., cells:].reshape(*pages.shape[:2], TOKENS, dims).transpose(0, 2, 1, 3)
        scales = scales.transpose(0, 3, 1, 2).reshape(-1, self.shape.kv_heads, 2)[:length].astype(np.float64)
        flat = (-1, self.shape.kv_heads, dims)
        return (
            keys.reshape(flat)[:length] * scales[..., :1],
            values.reshape(flat)[:length] * scales[..., 1:],
            scales,
        )

    def expected(self, begin: int, end: int) -> np.ndarray:
        """In f64, from the keys and values that the pages hold."""
        queries, _, _, gates = self.inputs(begin, end)
        keys, values, _ = self.stored(end)
        group = self.shape.heads // self.shape.kv_heads
        grouped = queries.reshape(end - begin, self.shape.kv_heads, group, -1)
        scores = np.einsum("nkgd,tkd->nkgt", grouped, keys)
        future = np.arange(end) > np.arange(begin, end)[:, None]
        weights = np.exp(np.where(future[:, None, None], -np.inf, scores - scores.max(-1, keepdims=True)))
        mixed = np.einsum("nkgt,tkd->nkgd", weights / weights.sum(-1, keepdims=True), values)
        return (mixed.reshape(gates.shape) / (1 + np.exp(-gates))).reshape(end - begin, -1)


def bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32)


@pytest.mark.parametrize("depth", [1, 63, 64, 65, 2047, 2048, 2049, 5000])
@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_one_token_at_depth(isa: str, kv_format: str, depth: int) -> None:
    layer = Layer(Shape(), kv_format, depth)
    layer.store(isa, 0, depth)
    np.testing.assert_allclose(layer.attend(isa, depth - 1, depth), layer.expected(depth - 1, depth), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(2, 2, 256, 64),
        Shape(4, 2, 128, 32),
        Shape(8, 2, 64, 64),
        Shape(8, 1, 80, 24),
        Shape(6, 2, 48, 10),
        Shape(3, 3, 16, 0),
        Shape(130, 1, 16, 2),
    ],
    ids=lambda s: f"{s.heads}of{s.kv_heads}x{s.head_dim}r{s.rotary_dim}",
)
@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_many_tokens(isa: str, kv_format: str, shape: Shape) -> None:
    layer = Layer(shape, kv_format, 150)
    layer.store(isa, 0, 150)
    np.testing.assert_allclose(layer.attend(isa, 30, 150), layer.expected(30, 150), rtol=0, atol=2e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_large_scores(isa: str) -> None:
    """Queries and keys that point the same way: weights between 1 and exp(-100), maxima that rise page by page."""
    layer = Layer(Shape(head_dim=16, rotary_dim=0), "bf16", 300)
    layer.norms[:] = 5.0
    layer.store(isa, 0, 300)
    # A score of 100 carries an f32 rounding error of 4e-6, some of them by the end of a sum.
    np.testing.assert_allclose(layer.attend(isa, 0, 300), layer.expected(0, 300), rtol=0, atol=2e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_bf16_pages(isa: str) -> None:
    layer = Layer(Shape(2, 2, 48, 20), "bf16", 130)
    layer.store(isa, 0, 130)
    _, keys, values, _ = layer.inputs(0, 130)
    stored_keys, stored_values, _ = layer.stored(130)
    # Half a unit in the last of 8 bits; a key on the edge may go either way for its f32 error.
    np.testing.assert_allclose(stored_keys, keys, rtol=2**-8 + 1e-6, atol=1e-7)
    np.testing.assert_allclose(stored_values, values, rtol=2**-8, atol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_int8_pages(isa: str) -> None:
    layer = Layer(Shape(2, 2, 48, 20), "int8", 130)
    layer.store(isa, 0, 130)
    _, keys, values, _ = layer.inputs(0, 130)
    stored_keys, stored_values, scales = layer.stored(130)
    for stored, exact, scale in (stored_keys, keys, scales[..., 0]), (stored_values, values, scales[..., 1]):
        np.testing.assert_allclose(scale, np.abs(exact).max(-1) / 127, rtol=2e-6)
        assert (np.abs(stored - exact) <= 0.5001 * scale[..., None]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_int8_error_of_the_output(isa: str) -> None:
    """What int8 costs against keys and values that were never rounded.

    A key's error is at most half a scale, |k|max / 254, in each of 64 dimensions, independent: a score is off by about
    |q| * scale / sqrt(12) = 0.01, a value by scale / sqrt(12) = 0.007 and a mean of many by less. Seen: 0.006 at most.
    """
    shape = Shape(8, 2, 64, 32)
    layer, exact = Layer(shape, "int8", 300), Layer(shape, "bf16", 300)
    layer.store(isa, 0, 300)
    got = layer.attend(isa, 0, 300)
    _, keys, values, _ = exact.inputs(0, 300)
    object.__setattr__(exact, "stored", lambda length: (keys[:length], values[:length], None))
    assert np.abs(got - exact.expected(0, 300)).max() < 0.03


@pytest.mark.parametrize("isa", ISAS)
def test_zero_keys_and_values(isa: str) -> None:
    layer = Layer(Shape(), "int8", 70)
    layer.rows[:, 2 * 4 * 64 :] = 0
    layer.store(isa, 0, 70)
    assert (layer.attend(isa, 0, 70) == 0).all()


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("isa", OTHER_ISAS)
@pytest.mark.parametrize(
    ("shape", "begin", "end"),
    [
        (Shape(8, 2, 256, 64), 0, 90),
        (Shape(3, 1, 80, 24), 0, 130),
        (Shape(4, 1, 48, 10), 2040, 2060),
        (Shape(8, 1, 64, 32), 2111, 2112),
    ],
)
def test_instruction_sets_agree_bit_by_bit(isa: str, kv_format: str, shape: Shape, begin: int, end: int) -> None:
    layer, scalar = Layer(shape, kv_format, end), Layer(shape, kv_format, end)
    layer.store(isa, 0, end)
    scalar.store("scalar", 0, end)
    assert (layer.pool == scalar.pool).all()
    assert (bits(layer.attend(isa, begin, end)) == bits(scalar.attend("scalar", begin, end))).all()


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("shape", "begin", "end"), [(Shape(8, 2), 0, 200), (Shape(3, 1, 80, 24), 2030, 2064)])
def test_rows_do_not_depend_on_the_cut(isa: str, kv_format: str, shape: Shape, begin: int, end: int) -> None:
    """A prompt in one call, token by token, and in random parts: stored and attended in turn, on other pages."""
    whole = Layer(shape, kv_format, end)
    whole.store(isa, 0, end)
    expected = whole.attend(isa, begin, end)
    random = np.random.default_rng(3)
    cuts = [list(range(begin, end + 1))]
    for num_parts in (3, 12, 30):
        inner = sorted(random.choice(np.arange(begin + 1, end), num_parts, replace=False).tolist())
        cuts.append([begin, *inner, end])
    for seed, bounds in enumerate(cuts, 1):
        parts = Layer(shape, kv_format, end, seed=seed)
        parts.store(isa, 0, begin)
        got = []
        for a, b in pairwise(bounds):
            parts.store(isa, a, b)
            got.append(parts.attend(isa, a, b))
        assert (bits(np.concatenate(got)) == bits(expected)).all()
    for _ in range(8):  # parts of one call's rows, as two threads would take them
        a, b = sorted(random.integers(begin, end + 1, 2).tolist())
        assert (bits(whole.attend(isa, a, b, begin, end)) == bits(expected[a - begin : b - begin])).all()


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_what_a_page_held_before_does_not_matter(isa: str, kv_format: str) -> None:
    got = []
    for seed, poison in enumerate((0x00, 0x7F, 0x80, 0xFF)):
        layer = Layer(Shape(8, 2), kv_format, 100, poison=poison, seed=seed)
        layer.store(isa, 0, 90)
        got.append(np.concatenate([layer.attend(isa, 0, 90), layer.attend(isa, 89, 90)]))
    for other in got[1:]:
        assert (bits(other) == bits(got[0])).all()


def test_no_rows() -> None:
    layer = Layer(Shape(), "bf16", 1)
    layer.store("auto", 0, 0)
    layer.attend("auto", 0, 0, 0, 1)
    assert (layer.pool == 0xFF).all()


def test_wrong_arguments() -> None:
    layer = Layer(Shape(), "bf16", 65)
    arguments = layer.rows, 0, layer.cos, layer.sin, layer.norms[1], layer.pool, "bf16", layer.pages, 4, 1, EPS

    def store(**changed: object) -> None:
        names = ("rows", "position", "cos", "sin", "k_norm", "pool", "kv_format", "pages", "heads", "kv_heads", "eps")
        _cpu.attention_store("auto", **{**dict(zip(names, arguments, strict=True)), **changed})

    store()
    for changed, message in (
        ({"heads": 3}, "rows must have"),
        ({"kv_heads": 3}, "multiple of kv_heads"),
        ({"kv_format": "fp8"}, "bf16, int8 or f32"),
        ({"position": 300}, "does not reach"),
        ({"pages": np.array([0, 99], np.int32)}, "does not have"),
        ({"pages": np.array([0, -1], np.int32)}, "does not have"),
        ({"k_norm": np.ones(40, np.float32)}, "multiple of 16"),
        ({"sin": layer.sin[:-1]}, "sin must have"),
    ):
        with pytest.raises(ValueError, match=message):
            store(**changed)
    with pytest.raises(TypeError, match="element type"):
        store(rows=layer.rows.astype(np.float64))
    with pytest.raises(_cpu.UnsupportedIsa):
        _cpu.attention_store("sse", *arguments)
