"""Few-row products and the quantiser of every instruction set against packing.py. Tolerance: none, all bits are equal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.kernels.cpu import UnsupportedIsa, available_isas
from shoal.kernels.cpu._cpu import direct_multiply, measure_prefetch_distance
from shoal.kernels.cpu._cpu import quantise as native_quantise

ISAS = available_isas()
FORMATS = [0, 1, 2]
NAMES = ["int4", "int8", "bf16"]
SET, ADD, SWIGLU = 0, 1, 2

each_isa = pytest.mark.parametrize("isa", ISAS)
each_format = pytest.mark.parametrize("weight_format", FORMATS, ids=NAMES)


def same_bits(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    assert np.array_equal(got.view(np.uint8), np.ascontiguousarray(want).view(np.uint8))


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def run(weights, x, isa, store=SET, y=None, **panels):
    out_cols = weights.rows // 2 if store == SWIGLU else weights.rows
    y = np.zeros((len(x), out_cols), np.float32) if y is None else y.copy()
    direct_multiply(weights.format, weights.data, weights.rows, weights.cols, x, y, store, isa, **panels)
    return y


def run_quantise(packing, x, isa):
    n, padded = len(x), packing.up(x.shape[1], 256)
    filled = packing.Quantised(
        np.full((n, padded), 99, np.int8),
        np.full((n, padded // 256), 99, np.float32),
        np.full((n, padded // 16), 99, np.int16),
        np.full((n, padded // 256), 99, np.int32),
    )
    native_quantise(x, filled.q, filled.scale, filled.sum16, filled.sum256, isa)
    return filled


def check_quantise(packing, x, isa):
    got, want = run_quantise(packing, x, isa), packing.quantise(x)
    same_bits(got.q, want.q)
    same_bits(got.scale, want.scale)
    same_bits(got.sum16, want.sum16)
    same_bits(got.sum256, want.sum256)


# --- quantise --------------------------------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("cols", [1, 15, 16, 17, 255, 256, 257, 1000, 1024])
def test_quantise(packing, isa, cols):
    rng = np.random.default_rng(cols)
    x = normal(rng, 5, cols) * np.exp2(rng.integers(-20, 20, (5, 1))).astype(np.float32)
    check_quantise(packing, x, isa)


@each_isa
def test_quantise_rounds_ties_to_even_and_reaches_both_ends(packing, isa):
    x = np.zeros((1, 256), np.float32)
    x[0, :8] = [127, -127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5]
    check_quantise(packing, x, isa)
    assert run_quantise(packing, x, isa).q[0, :8].tolist() == [127, -127, 0, 2, 2, 0, -2, 126]


@each_isa
def test_quantise_takes_zeros_tiny_and_huge_blocks(packing, isa):
    x = np.zeros((6, 512), np.float32)
    x[1] = 1e-38  # far below the smallest block
    x[2] = 2.0**-100
    x[3, 7] = np.nextafter(np.float32(2.0**-100), np.float32(0))
    x[4] = np.finfo(np.float32).max
    x[5, ::2], x[5, 300] = -0.0, 3.0
    check_quantise(packing, x, isa)


@each_isa
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_every_result_of_its_row_only(packing, isa, bad):
    rng = np.random.default_rng(0)
    x = normal(rng, 2, 512)
    x[1, 300] = bad
    check_quantise(packing, x, isa)
    y = run(packing.random_weights(rng, 0, 64, 512), x, isa)
    assert np.isfinite(y[0]).all() and np.isnan(y[1]).all()


@each_isa
def test_quantise_of_no_rows(packing, isa):
    check_quantise(packing, np.zeros((0, 256), np.float32), isa)


# --- products --------------------------------------------------------------------------------------------------------


@each_isa
@each_format
@pytest.mark.parametrize(
    "rows, cols", [(1, 1), (15, 16), (31, 255), (32, 256), (33, 257), (63, 64), (64, 768), (65, 1000)]
)
def test_product(packing, isa, weight_format, rows, cols):
    rng = np.random.default_rng([rows, cols])
    weights = packing.random_weights(rng, weight_format, rows, cols)
    x = normal(rng, 6, cols)
    want = packing.product(weights, x)
    for n in range(1, 7):
        same_bits(run(weights, x[:n], isa), want[:n])


@each_isa
@each_format
@pytest.mark.parametrize("store, rows", [(SET, 96), (SET, 70), (ADD, 96), (ADD, 70), (SWIGLU, 96), (SWIGLU, 64 + 48)])
def test_store(packing, isa, weight_format, store, rows):
    rng = np.random.default_rng(rows)
    weights = packing.random_weights(rng, weight_format, rows, 512)
    x = normal(rng, 3, 512) * 8
    y = normal(rng, 3, rows // 2 if store == SWIGLU else rows)
    same_bits(run(weights, x, isa, store, y), packing.multiply(weights, x, y, store))


@each_isa
@each_format
def test_swiglu_of_extreme_gates(packing, isa, weight_format):
    rng = np.random.default_rng(1)
    weights = packing.random_weights(rng, weight_format, 64, 256)
    x = normal(rng, 6, 256) * np.float32([[1e-3], [1], [30], [1e3], [1e6], [0]])
    y = np.zeros((6, 32), np.float32)
    same_bits(run(weights, x, isa, SWIGLU, y), packing.multiply(weights, x, y, SWIGLU))


@each_isa
@each_format
def test_a_range_of_panels_writes_its_rows_alone(packing, isa, weight_format):
    rng = np.random.default_rng(2)
    weights = packing.random_weights(rng, weight_format, 32 * 5 + 7, 512)
    x = normal(rng, 2, 512)
    whole = run(weights, x, isa)
    mark = np.full_like(whole, 7)
    for first, count in [(0, 0), (0, 1), (2, 2), (5, 1), (6, 0)]:
        part = run(weights, x, isa, SET, mark, first_panel=first, num_panels=count)
        rows = slice(32 * first, 32 * (first + count))
        same_bits(part[:, rows], whole[:, rows])
        part[:, rows] = 7
        same_bits(part, mark)


@each_isa
@each_format
def test_no_rows_of_activations(packing, isa, weight_format):
    weights = packing.random_weights(np.random.default_rng(3), weight_format, 32, 256)
    assert run(weights, np.zeros((0, 256), np.float32), isa).shape == (0, 32)


@given(data=st.data())
def test_a_row_is_the_same_in_any_company_and_on_any_set(packing, data):
    weight_format = data.draw(st.sampled_from(FORMATS))
    rows, cols = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 600))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    weights = packing.random_weights(rng, weight_format, rows, cols)
    x = normal(rng, 9, cols)
    alone = np.concatenate([run(weights, row[None], ISAS[-1]) for row in x])
    chosen = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=9))
    for isa in ISAS:
        same_bits(run(weights, np.ascontiguousarray(x[chosen]), isa), alone[chosen])


def test_the_distance_of_prefetch_is_measured_and_changes_no_result(packing):
    small = packing.random_weights(np.random.default_rng(7), 0, 64, 1024)
    x = normal(np.random.default_rng(8), 2, 1024)
    want = run(small, x, "auto")
    before = measure_prefetch_distance(0, small.data, 64, 1024)
    assert measure_prefetch_distance(0, small.data, 64, 1024) == before == 8192  # too small to measure
    rows = 32 * 4096
    large = packing.aligned(packing.BLOCK_BYTES[0] * 4 * 4096, np.uint8)
    assert measure_prefetch_distance(0, large, rows, 1024) in (0, 4096, 8192)
    same_bits(run(small, x, "auto"), want)


# --- the formats' bounds ---------------------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("level", [0, 15, 8], ids=["-16", "15", "0"])
@pytest.mark.parametrize("code", [8, 15, 0], ids=["8", "-7", "0"])
@pytest.mark.parametrize("signs", ["plus", "minus", "halves", "alternating"])
def test_int4_sums_at_their_bounds(packing, isa, level, code, signs):
    """The largest sums that a group and a block can reach, and the partial ones that wrap on the way."""
    k = np.arange(512)
    sign = {"plus": 1 + 0 * k, "minus": -1 + 0 * k, "halves": np.where(k % 4 < 2, 1, -1), "alternating": (-1) ** k}
    x = (127 * sign[signs]).astype(np.float32)[None].repeat(6, 0)
    nibbles, codes = np.full((32, 512), level), np.full((32, 32), code)
    nibbles[1::2] = 15 - nibbles[1::2]
    nibbles[5] = np.where(sign[signs] > 0, level, 15 - level)
    weights = packing.int4_weights(nibbles, codes, np.full((32, 2), 0.5))
    want = packing.product(weights, x)
    same_bits(want, (x.astype(np.float64) @ weights.dequantised().T).astype(np.float32))
    same_bits(run(weights, x, isa), want)


@each_isa
@pytest.mark.parametrize("value", [-127, 127])
def test_int8_sums_at_their_bounds(packing, isa, value):
    x = np.where(np.arange(512) % 3 > 0, 127, -127).astype(np.float32)[None].repeat(6, 0)
    values = np.full((64, 512), value)
    values[::2] = np.where(x[0] > 0, value, -value)
    weights = packing.int8_weights(values, np.ones((64, 2)))
    same_bits(run(weights, x, isa), (x.astype(np.float64) @ weights.dequantised().T).astype(np.float32))


@each_format
def test_packing_is_reversible(packing, weight_format):
    rng = np.random.default_rng(4)
    rows, cols = 45, 300
    weights = packing.random_weights(rng, weight_format, rows, cols)
    assert weights.data.size == 2 * 2 * packing.BLOCK_BYTES[weight_format]
    if weight_format == 2:
        return same_bits(packing.unpack_bf16(weights.data, rows, cols), weights.values)
    if weight_format == 1:
        values, scales = packing.unpack_int8(weights.data, rows, cols)
    else:
        nibbles, codes, scales = packing.unpack_int4(weights.data, rows, cols)
        values = packing.LEVELS[nibbles] * np.repeat(packing.SCALES[codes], 16, axis=1)[:, :cols]
    same_bits(scales, weights.scales)
    assert np.array_equal(values, weights.values)


def test_the_reference_is_close_to_a_plain_product(packing):
    """Activations of 8 bits: about 0.7 % of the typical result; bf16 weights: f32 sums in short chains, 5 roundings of the result
    (one chain a block: 11)."""
    rng = np.random.default_rng(5)
    for weight_format, tolerance in [(0, 0.03), (1, 0.03), (2, 2e-7)]:
        weights = packing.random_weights(rng, weight_format, 64, 1024)
        x = normal(rng, 6, 1024)
        want = x.astype(np.float64) @ weights.dequantised().T
        assert np.sqrt(np.mean((packing.product(weights, x) - want) ** 2) / np.mean(want**2)) < tolerance


# --- arguments -------------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_refused(packing):
    weights = packing.random_weights(np.random.default_rng(6), 0, 64, 256)
    x, y = np.zeros((1, 256), np.float32), np.zeros((1, 64), np.float32)
    with pytest.raises(UnsupportedIsa):
        run(weights, x, "sse9")
    with pytest.raises(ValueError, match="elements"):
        run(weights, x, "auto", y=y[:, :63])
    with pytest.raises(ValueError, match="format"):
        direct_multiply(3, weights.data, 64, 256, x, y)
    with pytest.raises(ValueError, match="store"):
        direct_multiply(0, weights.data, 64, 256, x, y, 3)
    with pytest.raises(TypeError, match="element type"):
        direct_multiply(0, weights.data, 64, 256, x.astype(np.float64), y)
    with pytest.raises(ValueError, match="multiple of 64"):
        direct_multiply(0, packing.aligned(weights.data.size + 1, np.uint8)[1:], 64, 256, x, y)
    with pytest.raises(ValueError, match="num_panels"):
        run(weights, x, "auto", first_panel=1, num_panels=2)
