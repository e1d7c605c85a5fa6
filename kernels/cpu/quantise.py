"""From floats to the layouts of kernels/cpu/layout.h and back, in native code that holds no lock of the interpreter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _cpu

__all__ = ["LAYOUTS", "PackedPiece", "Probe", "dequantise", "packed_bytes", "quantise"]

LAYOUTS = ("int4", "int8", "bf16", "rows8", "rows16")
PANEL_ROWS, BLOCK_COLS = 32, 256
BLOCK_BYTES = {"int4": 4416, "int8": 8256, "bf16": 16384}
ROW_BLOCK_BYTES = {"rows8": 258, "rows16": 512}


@dataclass(frozen=True, slots=True)
class PackedPiece:
    """Rows in their layout, and how far they are from what they were made of."""

    packed: NDArray[np.uint8]
    is_finite: bool
    """False: the source holds NaN or infinity, and nothing else here means anything."""
    error: float
    """Sum of (w - w^)^2; `energy` of w^2. The weighted ones: each column times its importance, 0 without one."""
    energy: float
    weighted_error: float
    weighted_energy: float
    sigma: NDArray[np.float32] | None
    """Root mean square of w - w^ of each row [rows], for the first pass of a head."""
    output_error: NDArray[np.float64]
    """For each probe input [n]: sum over the probed rows of (product as packed - product as published)^2."""
    output_energy: NDArray[np.float64]
    """The same of (product as published)^2."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Inputs whose products with every `step`-th row are compared: `published` [n, cols] times the source, `rounded` [n, cols] times
    what is packed.
    """

    published: NDArray[np.float32]
    rounded: NDArray[np.float32]
    step: int = 1


def packed_bytes(layout: str, rows: int, cols: int) -> int:
    """Bytes that `quantise` returns for a matrix or table. Raises KeyError for another layout."""
    blocks = -(-cols // BLOCK_COLS)
    if layout in ROW_BLOCK_BYTES:
        return rows * blocks * ROW_BLOCK_BYTES[layout]
    return -(-rows // PANEL_ROWS) * blocks * BLOCK_BYTES[layout]


def quantise(
    layout: str,
    source: NDArray[Any],
    source_type: str,
    *,
    importance: NDArray[np.float32] | None = None,
    scan_of: str | None = None,
    probe: Probe | None = None,
    threads: int = 1,
    isa: str = "auto",
) -> PackedPiece:
    """Pack `source` [rows, cols], C-contiguous: float32 as "F32", or the bits as uint16 of "F16" or "BF16".

    The bytes depend on nothing but source, layout and importance. `importance` [cols] > 0 is what the squared error of a column counts
    in int4's search. `scan_of` ("rows8", "rows16"): rows are scaled so that scores against that table are unbiased, and `sigma` is
    filled.
    """
    rows, cols = source.shape
    out = np.empty(packed_bytes(layout, rows, cols), np.uint8)
    sigma = np.empty(rows, np.float32) if scan_of is not None else None
    num_inputs = 0 if probe is None else len(probe.published)
    output_error, output_energy = np.zeros(num_inputs), np.zeros(num_inputs)
    finite, error, energy, weighted_error, weighted_energy = _cpu.quantise_weights(
        layout,
        source,
        source_type,
        rows,
        cols,
        out,
        importance=importance,
        sigma=sigma,
        exact=scan_of or "rows8",
        inputs=None if probe is None else probe.published,
        rounded=None if probe is None else probe.rounded,
        num_inputs=num_inputs,
        probe_step=1 if probe is None else probe.step,
        output_error=output_error,
        output_energy=output_energy,
        threads=threads,
        isa=isa,
    )
    sums = (error, energy, weighted_error, weighted_energy)
    return PackedPiece(out, finite and all(map(math.isfinite, sums)), *sums, sigma, output_error, output_energy)


def dequantise(layout: str, packed: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.float32]:
    """What packed bytes stand for, [rows, cols]."""
    out = np.empty((rows, cols), np.float32)
    _cpu.dequantise_weights(layout, packed, rows, cols, out)
    return out
