"""The packed formats of kernels/cpu/layout.h in numpy, and the exact products of the kernels, bit for bit.

A matrix W [rows, cols] is padded to panels of 32 rows and blocks of 256 columns. With x [n, cols] in f32:

int4, int8   q, scale = quantise(x); then for each block b, ascending, from f = 0:
                 f[i, r] = fma(float(sum over the block of q[i, k] * v[r, k]) * D[r, b], scale[i, b], f[i, r])
             where v is S * L (int4) or the stored value (int8). The sum is exact, and below 2^24, so its float is too.
bf16         for each block, ascending, from f = 0:  s = 0;  for each chain of 32 columns of the block, ascending:
                 t = 0;  for each k of the chain, ascending: t = fma(x[i, k], w[r, k], t);  s = s + t
                 f[i, r] = f[i, r] + s
then, p being f:
SET          y = p
ADD          y = y + p
SWIGLU       lane l < 16 of panel P: y[16 P + l] = silu(p of row 32 P + l) * p of row 32 P + 16 + l, for 16 P + l < rows / 2.
             `rows` is twice the number of results; where that is no multiple of 16 both halves of the last panel end early.

All of it is f32 arithmetic rounded after each operation, and `fma` rounds once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INT4, INT8, BF16 = 0, 1, 2  # shoal::Format
SET, ADD, SWIGLU = 0, 1, 2  # shoal::Store
FORMATS = {"int4": INT4, "int8": INT8, "bf16": BF16}
BLOCK_BYTES = {INT4: 4416, INT8: 8256, BF16: 16384}
PANEL, BLOCK, GROUP, CHAIN = 32, 256, 16, 32

SCALES = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, -1, -2, -3, -4, -5, -6, -7], np.int16)
LEVELS = np.array([-16, -13, -10, -8, -6, -4, -2, -1, 0, 1, 3, 5, 7, 9, 12, 15], np.int16)
SMALLEST_BLOCK = np.float32(2.0**-100)  # a block whose largest magnitude is below this is quantised to zero


@dataclass(frozen=True)
class Weights:
    """A packed matrix beside what it stands for: `values` [rows, cols] times `scales` [rows, blocks] (bf16: values, 1)."""

    format: int
    rows: int
    cols: int
    data: np.ndarray  # uint8, begins at a multiple of 64
    values: np.ndarray  # int16, or float32 that bf16 holds
    scales: np.ndarray  # float32 that binary16 holds

    def dequantised(self) -> np.ndarray:
        per_column = np.repeat(self.scales, BLOCK, axis=1)[:, : self.cols]
        return self.values.astype(np.float64) * per_column


@dataclass(frozen=True)
class Quantised:
    """shoal::Activations: q [n, padded] int8, scale [n, blocks] f32, sum16 [n, padded / 16] i16, sum256 [n, blocks] i32."""

    q: np.ndarray
    scale: np.ndarray
    sum16: np.ndarray
    sum256: np.ndarray


def aligned(shape, dtype) -> np.ndarray:
    """Zeros that begin at a multiple of 64 bytes."""
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(num_bytes + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + num_bytes].view(dtype).reshape(shape)


def align(array: np.ndarray) -> np.ndarray:
    out = aligned(array.shape, array.dtype)
    out[...] = array
    return out


def up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def padded(array: np.ndarray, row_unit: int, col_unit: int, fill=0) -> np.ndarray:
    rows, cols = array.shape
    widths = ((0, up(rows, row_unit) - rows), (0, up(cols, col_unit) - cols))
    return np.pad(array, widths, constant_values=fill)


# --- packing ---------------------------------------------------------------------------------------------------------


def pack_int4(nibbles: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """nibbles [rows, cols], codes [rows, ceil(cols / 16)], scales [rows, ceil(cols / 256)] -> bytes.

    >>> pack_int4(np.zeros((1, 1), int), np.zeros((1, 1), int), np.zeros((1, 1))).size
    4416
    """
    n = padded(nibbles.astype(np.uint8), PANEL, BLOCK, fill=8)
    panels, blocks = n.shape[0] // PANEL, n.shape[1] // BLOCK
    n = n.reshape(panels, 2, 16, blocks, 16, 2, 2, 4)  # panel, half, row, block, group, j, low or high, b
    lines = (n[..., 0, :] | n[..., 1, :] << 4).transpose(0, 3, 4, 5, 1, 2, 6)
    c = padded(codes.astype(np.uint8), PANEL, 16).reshape(panels, 2, 16, blocks, 2, 8)  # ..., low or high, group % 8
    bytes_of_codes = (c[..., 0, :] | c[..., 1, :] << 4).transpose(0, 3, 1, 4, 2)
    return align(
        np.concatenate(
            [
                bytes_of_codes.reshape(panels, blocks, 256),
                lines.reshape(panels, blocks, 4096),
                _packed_scales(scales, panels, blocks),
            ],
            axis=2,
        ).ravel()
    )


def unpack_int4(data: np.ndarray, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inverse: nibbles [rows, cols], codes [rows, ceil(cols / 16)], scales [rows, ceil(cols / 256)]."""
    blocks = up(cols, BLOCK) // BLOCK
    b = data.reshape(-1, blocks, BLOCK_BYTES[INT4])
    panels = b.shape[0]
    c = b[..., :256].reshape(panels, blocks, 2, 8, 16)  # panel, block, half, group % 8, row
    c = np.stack([c & 15, c >> 4], axis=3).transpose(0, 2, 5, 1, 3, 4).reshape(panels * PANEL, blocks * 16)
    n = b[..., 256:4352].reshape(panels, blocks, 16, 2, 2, 16, 4)  # panel, block, group, j, half, row, b
    n = np.stack([n & 15, n >> 4], axis=6).transpose(0, 4, 5, 1, 2, 3, 6, 7).reshape(panels * PANEL, blocks * BLOCK)
    return n[:rows, :cols], c[:rows, : up(cols, 16) // 16], _unpacked_scales(b[..., 4352:])[:rows]


def pack_int8(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """values [rows, cols] in -127..127, scales [rows, ceil(cols / 256)] -> bytes."""
    v = padded((values.astype(np.int16) + 128).astype(np.uint8), PANEL, BLOCK, fill=128)
    panels, blocks = v.shape[0] // PANEL, v.shape[1] // BLOCK
    lines = v.reshape(panels, 2, 16, blocks, 64, 4).transpose(0, 3, 4, 1, 2, 5).reshape(panels, blocks, 8192)
    return align(np.concatenate([lines, _packed_scales(scales, panels, blocks)], axis=2).ravel())


def unpack_int8(data: np.ndarray, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    blocks = up(cols, BLOCK) // BLOCK
    b = data.reshape(-1, blocks, BLOCK_BYTES[INT8])
    v = b[..., :8192].reshape(-1, blocks, 64, 2, 16, 4).transpose(0, 3, 4, 1, 2, 5).reshape(-1, blocks * BLOCK)
    return v[:rows, :cols].astype(np.int16) - 128, _unpacked_scales(b[..., 8192:])[:rows]


def pack_bf16(values: np.ndarray) -> np.ndarray:
    """values [rows, cols] f32, rounded to bfloat16 -> bytes."""
    v = padded(to_bf16(values), PANEL, BLOCK)
    panels, blocks = v.shape[0] // PANEL, v.shape[1] // BLOCK
    lines = v.reshape(panels, 2, 16, blocks, 128, 2).transpose(0, 3, 4, 1, 2, 5)
    return align(np.ascontiguousarray(lines).ravel().view(np.uint8))


def unpack_bf16(data: np.ndarray, rows: int, cols: int) -> np.ndarray:
    blocks = up(cols, BLOCK) // BLOCK
    v = data.view(np.uint16).reshape(-1, blocks, 128, 2, 16, 2).transpose(0, 3, 4, 1, 2, 5).reshape(-1, blocks * BLOCK)
    return from_bf16(v[:rows, :cols])


def pack_rows8(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """A table of rows: values [rows, cols] int8, scales [rows, ceil(cols / 256)] -> bytes [rows, row_bytes]."""
    v = padded(values.astype(np.int8), 1, BLOCK).view(np.uint8)
    s = np.ascontiguousarray(scales.astype(np.float16)).view(np.uint8)
    return align(np.concatenate([v, s], axis=1))


def pack_rows16(values: np.ndarray) -> np.ndarray:
    return align(np.ascontiguousarray(padded(to_bf16(values), 1, BLOCK)).view(np.uint8))


def to_bf16(x: np.ndarray) -> np.ndarray:
    """To nearest, ties to even; finite values only."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def _packed_scales(scales: np.ndarray, panels: int, blocks: int) -> np.ndarray:
    s = padded(scales.astype(np.float16), PANEL, 1).reshape(panels, PANEL, blocks).transpose(0, 2, 1)
    return np.ascontiguousarray(s).view(np.uint8).reshape(panels, blocks, 64)


def _unpacked_scales(bytes_of_scales: np.ndarray) -> np.ndarray:
    s = np.ascontiguousarray(bytes_of_scales).view(np.float16)  # panel, block, row
    return s.transpose(0, 2, 1).reshape(-1, s.shape[1]).astype(np.float32)


# --- matrices to test with -------------------------------------------------------------------------------------------


def int4_weights(nibbles: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> Weights:
    rows, cols = nibbles.shape
    values = LEVELS[nibbles] * np.repeat(SCALES[codes], GROUP, axis=1)[:, :cols]
    halves = scales.astype(np.float16).astype(np.float32)
    return Weights(INT4, rows, cols, pack_int4(nibbles, codes, scales), values, halves)


def int8_weights(values: np.ndarray, scales: np.ndarray) -> Weights:
    halves = scales.astype(np.float16).astype(np.float32)
    return Weights(INT8, *values.shape, pack_int8(values, scales), values.astype(np.int16), halves)


def bf16_weights(values: np.ndarray) -> Weights:
    rows, cols = values.shape
    ones = np.ones((rows, up(cols, BLOCK) // BLOCK), np.float32)
    return Weights(BF16, rows, cols, pack_bf16(values), from_bf16(to_bf16(values)), ones)


def random_weights(rng: np.random.Generator, weight_format: int, rows: int, cols: int) -> Weights:
    """Every code, level and value occurs; scales of both signs, one in eight a subnormal of binary16."""
    if weight_format == BF16:
        return bf16_weights(rng.standard_normal((rows, cols), np.float32) / 8)
    blocks = up(cols, BLOCK) // BLOCK
    scales = rng.uniform(0.25, 2.0, (rows, blocks)) * rng.choice([-(2.0**-9), 2.0**-9], (rows, blocks))
    scales *= rng.choice([1.0, 2.0**-10], (rows, blocks), p=[0.875, 0.125])
    if weight_format == INT8:
        return int8_weights(rng.integers(-127, 128, (rows, cols)), scales)
    nibbles, codes = rng.integers(0, 16, (rows, cols)), rng.integers(0, 16, (rows, up(cols, GROUP) // GROUP))
    return int4_weights(nibbles, codes, scales)


# --- exact arithmetic ------------------------------------------------------------------------------------------------


def fma(a, b, c) -> np.ndarray:
    """a * b + c in f32, rounded once: the sum is rounded to odd in f64, which leaves the last rounding right."""
    p = np.asarray(a, np.float64) * np.asarray(b, np.float64)  # exact: 48 bits
    c = np.asarray(c, np.float64)
    s = p + c
    t = s - p
    error = (p - (s - t)) + (c - t)
    bits = s.view(np.int64) if isinstance(s, np.ndarray) else np.float64(s).view(np.int64)
    step = np.where((error > 0) == (s > 0), 1, -1)
    odd = np.where((error != 0) & (bits & 1 == 0), bits + step, bits)
    return odd.view(np.float64).astype(np.float32)


def exp(x: np.ndarray) -> np.ndarray:
    """kernels/cpu/vector/functions.h, bit for bit."""
    f = np.float32
    x = np.asarray(x, f)
    capped = np.minimum(x, f(88.3))
    t = fma(capped, f(1.44269504088896341), f(12582912.0))
    n = t - f(12582912.0)
    r = fma(-n, f(0.693359375), capped)
    r = fma(-n, f(-2.12194440e-4), r)
    p = f(1.98412698e-4)
    for term in (1.38888889e-3, 8.33333333e-3, 4.16666667e-2, 1.66666667e-1, 0.5, 1.0, 1.0):
        p = fma(p, r, f(term))
    scaled = (p.view(np.uint32) + (t.view(np.uint32) << 23)).view(f)
    return np.where(x >= f(-87.3), scaled, f(0))


def silu(x: np.ndarray) -> np.ndarray:
    one = np.float32(1)
    return x * (one / (one + exp(np.float32(0) - x)))


def quantise(x: np.ndarray) -> Quantised:
    """scale = largest / 127; q = x * (127 / largest) to the nearest, ties to even. A block of nothing but magnitudes below
    2^-100 has scale 0 and zeros; one with a NaN or an infinity has scale NaN and zeros."""
    n = x.shape[0]
    num_blocks = up(x.shape[1], BLOCK) // BLOCK
    blocks = padded(x.astype(np.float32), 1, BLOCK).reshape(n, num_blocks, BLOCK)
    bad = ~np.isfinite(blocks).all(-1)
    blocks = np.where(bad[..., None], np.float32(0), blocks)
    largest = np.abs(blocks).max(-1, initial=0)
    small = largest < SMALLEST_BLOCK
    largest = np.where(small, np.float32(127), largest)
    scale = largest / np.float32(127)
    q = np.rint(blocks * (np.float32(127) / largest)[..., None])
    q = np.where(small[..., None], 0, q).astype(np.int8)
    scale = np.where(bad, np.float32(np.nan), np.where(small, np.float32(0), scale))
    groups = q.reshape(n, num_blocks * BLOCK // GROUP, GROUP).sum(-1, dtype=np.int32)
    return Quantised(
        q.reshape(n, num_blocks * BLOCK), scale, (-16 * groups).astype(np.int16), -128 * q.sum(-1, dtype=np.int32)
    )


def product(weights: Weights, x: np.ndarray) -> np.ndarray:
    """x [n, cols] -> f32 [n, rows], the bits that every kernel gives."""
    f = np.zeros((x.shape[0], weights.rows), np.float32)
    values = padded(weights.values, 1, BLOCK)
    if weights.format == BF16:
        x = padded(x.astype(np.float32), 1, BLOCK)
        for begin in range(0, values.shape[1], BLOCK):
            s = np.zeros_like(f)
            for first in range(begin, begin + BLOCK, CHAIN):
                t = np.zeros_like(f)
                for k in range(first, first + CHAIN):
                    t = fma(x[:, k, None], values[None, :, k], t)
                s = s + t
            f = f + s
        return f
    a = quantise(x)
    for block in range(weights.scales.shape[1]):
        k = slice(block * BLOCK, (block + 1) * BLOCK)
        total = (a.q[:, k].astype(np.float64) @ values[:, k].T.astype(np.float64)).astype(np.float32)
        f = fma(total * weights.scales[None, :, block], a.scale[:, block, None], f)
    return f


def stored(p: np.ndarray, y: np.ndarray, store: int) -> np.ndarray:
    """What y [n, rows or rows / 2] holds after products p [n, rows] are stored."""
    if store == SET:
        return p
    if store == ADD:
        return y + p
    wide = padded(p, 1, PANEL).reshape(p.shape[0], -1, 2, 16)
    return (silu(wide[:, :, 0]) * wide[:, :, 1]).reshape(p.shape[0], -1)[:, : p.shape[1] // 2]


def multiply(weights: Weights, x: np.ndarray, y: np.ndarray, store: int = SET) -> np.ndarray:
    return stored(product(weights, x), y, store)
