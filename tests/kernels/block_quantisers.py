"""Two well-known ways to hold weights in about four and a half bits, in numpy, as measures for our own.

q4_0   blocks of 32: w = d * (q - 8), d = (the value of largest magnitude) / -8 as binary16; 4.5 bits
q4_k   blocks of 256 in 8 groups of 32: w = d * s[g] * q - m * t[g], s and t of 6 bits, d and m binary16; 4.5 bits. Step and minimum of each
       group are searched: a row of step widths, for each the integers, then the step and minimum that fit them best (least squares)
"""

import numpy as np

STEP_WIDTHS = np.linspace(-1.0, 1.5, 40)


def half(x):
    return x.astype(np.float16).astype(np.float64)


def ratio(a, b):
    """a / b, 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b != 0)


def q4_0(w):
    blocks = w.reshape(-1, 32).astype(np.float64)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    step = half(extreme / -8)
    integers = np.clip(np.floor(ratio(blocks, step) + 8.5), 0, 15) - 8
    return (integers * step).reshape(w.shape)


def q4_k(w, importance=None):
    """w [rows, cols], cols a multiple of 256; importance [cols] weighs the squared errors."""
    x = w.reshape(-1, 32).astype(np.float64)
    weights = np.ones(w.shape) if importance is None else np.broadcast_to(importance, w.shape)
    weights = weights.reshape(-1, 32)
    lowest, span = np.minimum(x.min(axis=1), 0), np.maximum(np.ptp(x, axis=1), 1e-30)
    best, step, minimum = np.full(len(x), np.inf), np.zeros(len(x)), np.zeros(len(x))
    total, total_x = weights.sum(axis=1), (weights * x).sum(axis=1)
    for width in STEP_WIDTHS:
        q = np.clip(np.rint((x - lowest[:, None]) * ((15 + width) / span)[:, None]), 0, 15)
        sum_q, sum_qq, sum_qx = ((weights * each).sum(axis=1) for each in (q, q * q, q * x))
        determinant = total * sum_qq - sum_q * sum_q
        s = ratio(total * sum_qx - total_x * sum_q, determinant)
        t = ratio(sum_qq * total_x - sum_q * sum_qx, determinant)
        s, t = np.where(t > 0, ratio(sum_qx, sum_qq), s), np.minimum(t, 0)
        error = (weights * (s[:, None] * q + t[:, None] - x) ** 2).sum(axis=1)
        better = (error < best) & (determinant > 0)
        best, step, minimum = np.where(better, error, best), np.where(better, s, step), np.where(better, -t, minimum)
    step, minimum = six_bits(step), six_bits(minimum)
    q = np.clip(np.rint(ratio(x + minimum, step)), 0, 15)
    return (q * step - minimum).reshape(w.shape)


def six_bits(values):
    """Of the 8 groups of a block, through one binary16."""
    groups = values.reshape(-1, 8)
    unit = half(groups.max(axis=1, keepdims=True) / 63)
    return (np.clip(np.rint(ratio(groups, unit)), 0, 63) * unit).reshape(-1, 1)


def relative_error(w, approximation, importance=None):
    error, energy = (w - approximation.astype(np.float64)) ** 2, w.astype(np.float64) ** 2
    if importance is not None:
        error, energy = error * importance, energy * importance
    return float(np.sqrt(error.sum() / energy.sum()))
