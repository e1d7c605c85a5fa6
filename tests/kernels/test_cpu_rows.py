"""Norms, table rows and exact scores of every instruction set.

Against arithmetic in double precision: sums of f32 products err by a few units in the last place of the sum of magnitudes.
Between instruction sets: all bits are equal.
"""

import numpy as np
import pytest

from shoal.kernels.cpu import _cpu, available_isas

ISAS = available_isas()
COLS = (1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1024, 1100)


def up(n, unit):
    return -(-n // unit) * unit


def rms_norm(packing, x, w, eps, isa):
    y = packing.aligned((len(x), up(x.shape[1], 256)), np.float32)
    y[:] = 7
    _cpu.rms_norm(x, w, eps, *x.shape, y, isa)
    return y


@pytest.mark.parametrize("cols", COLS)
def test_rms_norm(packing, cols):
    rng = np.random.default_rng(cols)
    x = rng.standard_normal((3, cols), np.float32) * np.array([[1], [1e-6], [1e6]], np.float32)
    w = rng.standard_normal(cols, np.float32)
    results = [rms_norm(packing, x, w, 1e-6, isa) for isa in ISAS]
    wide = x.astype(np.float64)
    want = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * w
    np.testing.assert_allclose(results[0][:, :cols], want, rtol=1e-6)
    assert not results[0][:, cols:].any()
    for result in results[1:]:
        assert np.array_equal(result, results[0])
    for isa in ISAS:
        assert rms_norm(packing, x[:0], w, 1e-6, isa).size == 0


def table_of(packing, rng, is_rows8, rows, cols):
    """Packed bytes, and what they stand for."""
    if not is_rows8:
        values = packing.from_bf16(packing.to_bf16(rng.standard_normal((rows, cols), np.float32)))
        return packing.pack_rows16(values), values
    q = rng.integers(-127, 128, (rows, cols)).astype(np.int8)
    scales = rng.choice([-1, 1], (rows, up(cols, 256) // 256)) * rng.uniform(1e-7, 0.1, (rows, up(cols, 256) // 256))
    scales = scales.astype(np.float16)
    return packing.pack_rows8(q, scales), q * np.repeat(scales.astype(np.float32), 256, axis=1)[:, :cols]


@pytest.mark.parametrize("is_rows8", [True, False])
@pytest.mark.parametrize("cols", COLS)
def test_a_row_is_read_as_it_was_packed(packing, is_rows8, cols):
    packed, values = table_of(packing, np.random.default_rng(cols), is_rows8, 5, cols)
    for isa in ISAS:
        for row in (0, 4):
            out = packing.aligned(up(cols, 256), np.float32)
            out[:] = 7
            _cpu.read_row(packed.ravel(), is_rows8, 5, cols, row, out, isa)
            assert np.array_equal(out[:cols], values[row].astype(np.float32))
            assert not out[cols:].any()


@pytest.mark.parametrize("is_rows8", [True, False])
@pytest.mark.parametrize("cols", COLS)
def test_scores(packing, is_rows8, cols):
    rng = np.random.default_rng(cols)
    packed, values = table_of(packing, rng, is_rows8, 70, cols)
    x = packing.aligned(up(cols, 256), np.float32)
    x[:cols] = rng.standard_normal(cols)
    ids = np.concatenate([rng.integers(0, 70, 40), [69, 0, 69]]).astype(np.int32)
    results = []
    for isa in ISAS:
        out = packing.aligned(len(ids), np.float32)
        _cpu.score_rows(packed.ravel(), is_rows8, 70, cols, ids, x, out, isa)
        results.append(out)
    terms = values[ids].astype(np.float64) * x[:cols]
    assert (np.abs(results[0] - terms.sum(-1)) <= 2e-6 * np.abs(terms).sum(-1)).all()
    for result in results[1:]:
        assert np.array_equal(result, results[0])
    for isa in ISAS:
        _cpu.score_rows(packed.ravel(), is_rows8, 70, cols, ids[:0], x, results[0][:0], isa)


def test_what_lies_beyond_a_table_is_refused(packing):
    packed, _ = table_of(packing, np.random.default_rng(0), True, 4, 16)
    x, out = packing.aligned(256, np.float32), packing.aligned(1, np.float32)
    for ids in ([4], [-1]):
        with pytest.raises(ValueError, match="beyond"):
            _cpu.score_rows(packed.ravel(), True, 4, 16, np.array(ids, np.int32), x, out, "scalar")
    with pytest.raises(ValueError, match="beyond"):
        _cpu.read_row(packed.ravel(), True, 4, 16, 4, x, "scalar")
    with pytest.raises(ValueError, match="elements"):
        _cpu.read_row(packed.ravel()[:-2], True, 4, 16, 0, x, "scalar")
