"""From floats to the layouts of kernels/cpu/layout.h and back, in native code that holds no lock of the interpreter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _cpu

__all__ = ["LAYOUTS", "PackedPiece", "dequantise", "packed_bytes", "quantise"]

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
    approximation: NDArray[np.float32] | None
    """What `packed` stands for [rows, cols], where it was asked for."""
    sigma: NDArray[np.float32] | None
    """Root mean square of w - w^ of each row [rows], for the first pass of a head."""


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
    approximate: bool = False,
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
    approximation = np.empty((rows, cols), np.float32) if approximate else None
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
        approximation=approximation,
        threads=threads,
        isa=isa,
    )
    sums = (error, energy, weighted_error, weighted_energy)
    return PackedPiece(out, finite and all(map(math.isfinite, sums)), *sums, approximation, sigma)


def dequantise(layout: str, packed: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.float32]:
    """What packed bytes stand for, [rows, cols]."""
    out = np.empty((rows, cols), np.float32)
    _cpu.dequantise_weights(layout, packed, rows, cols, out)
    return out
