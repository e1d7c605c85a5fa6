"""Probe inputs of a matrix: how far its products are off once weights and activations are rounded as the engine rounds them.

Errors of weights alone hide what an outlier does: one large activation takes the whole range of its block of 256 from the others. So
every matrix is multiplied, as published in f32 and as converted with int8 activations, with heavy-tailed random inputs and, where there
are, with inputs of a calibration text. No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.kernels.cpu.quantise import Probe

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

BLOCK_COLS = 256
NUM_RANDOM_INPUTS = 16
CHANNEL_SPREAD = 0.8
"""Standard deviation of the logarithm of the channels' scales; the values are Student's t with 5 degrees of freedom."""
DEGREES_OF_FREEDOM = 5
MAX_ROWS = 1024
"""Rows of a matrix that are multiplied at most, evenly spread."""
FALLBACK_THRESHOLDS = {"int4": 0.15, "int8": 0.05, "bf16": math.inf}
"""Relative error of the products above which a matrix stays bf16. Well-behaved weights are at half of it."""


@dataclass(frozen=True, slots=True)
class MatrixInputs:
    """What a calibration text feeds one matrix."""

    importance: Float32
    """Mean square of each column [columns], positive, of mean 1."""
    samples: Float32
    """Some inputs [n, columns]."""


def matrix_probe(layout: str, rows: int, cols: int, given: MatrixInputs | None) -> tuple[Probe, tuple[int, ...]]:
    """Probe inputs of a matrix, and how many there are of each kind: random ones, ones of a calibration text."""
    sets = [random_inputs(cols)] + ([] if given is None else [given.samples])
    inputs = np.ascontiguousarray(np.concatenate(sets))
    rounded = round_activations(inputs) if layout in ("int4", "int8") else inputs
    return Probe(inputs, rounded, max(1, rows // MAX_ROWS)), tuple(len(each) for each in sets)


def products_error(error: Float64, energy: Float64, sizes: tuple[int, ...]) -> float:
    """Relative error of the products, of the worst kind of inputs; `error` and `energy` are sums over the rows, an input each."""
    worst, begin = 0.0, 0
    for size in sizes:
        part = slice(begin, begin + size)
        begin += size
        total = float(energy[part].sum())
        worst = max(worst, math.sqrt(float(error[part].sum()) / total) if total > 0 else 0.0)
    return worst


def random_inputs(columns: int) -> Float32:
    """[NUM_RANDOM_INPUTS, columns], the same each time."""
    draw = np.random.default_rng(columns)
    channels = np.exp(CHANNEL_SPREAD * draw.standard_normal(columns))
    return (channels * draw.standard_t(DEGREES_OF_FREEDOM, (NUM_RANDOM_INPUTS, columns))).astype(np.float32)


def round_activations(x: Float32) -> Float32:
    """int8 with one scale a block of 256 columns, back as f32."""
    count, columns = x.shape
    blocks = -(-columns // BLOCK_COLS)
    padded = np.zeros((count, blocks, BLOCK_COLS), np.float32)
    padded.reshape(count, -1)[:, :columns] = x
    scale = np.abs(padded).max(axis=2, keepdims=True) / np.float32(127)
    whole = np.rint(np.divide(padded, scale, out=np.zeros_like(padded), where=scale > 0))
    return np.ascontiguousarray((whole * scale).reshape(count, -1)[:, :columns])
