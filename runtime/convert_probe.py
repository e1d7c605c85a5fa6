"""Probe inputs of a matrix: how far its products are off once weights and activations are rounded as the engine rounds them.

Errors of weights alone hide what an outlier does: one large activation takes the whole range of its block of 256 from the others. So
every matrix is multiplied, as published in f32 and as converted with int8 activations, with heavy-tailed random inputs and, where there
are, with inputs of a calibration text. No torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

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


@dataclass(slots=True)
class Probe:
    """Sums over the rows of one matrix as they pass."""

    inputs: tuple[Float32, ...]
    """Sets of inputs [n, columns]; the worst set counts."""
    is_integer: bool
    """Whether the engine rounds the activations for this layout."""
    rows: int
    _rounded: list[Float32] = field(default_factory=list)
    _error: list[float] = field(default_factory=list)
    _energy: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rounded = [round_activations(x) if self.is_integer else x for x in self.inputs]
        self._error, self._energy = [0.0] * len(self.inputs), [0.0] * len(self.inputs)

    def add(self, begin: int, published: Float32, converted: Float32) -> None:
        """Rows from `begin` on, as [count, columns]; some of them are multiplied."""
        step = max(1, self.rows // MAX_ROWS)
        chosen = slice(-begin % step, None, step)
        w, v = published[chosen], converted[chosen]
        for i, (x, rounded) in enumerate(zip(self.inputs, self._rounded, strict=True)):
            exact = x @ w.T
            self._error[i] += float(np.square(rounded @ v.T - exact, dtype=np.float64).sum())
            self._energy[i] += float(np.square(exact, dtype=np.float64).sum())

    @property
    def error(self) -> float:
        """Relative error of the products, of the worst set of inputs."""
        pairs = zip(self._error, self._energy, strict=True)
        return max((math.sqrt(error / energy) for error, energy in pairs if energy > 0), default=0.0)


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
    rounded: Float32 = (whole * scale).reshape(count, -1)[:, :columns]
    return rounded
