"""The native CPU kernels as Python calls them.

Arrays may be numpy arrays, torch tensors on the CPU, or anything else that speaks DLPack or the buffer protocol. They
are read in place, never converted: a wrong type or layout is an error, not a hidden copy. numpy has no bfloat16, so
its arrays hold the bits as uint16.

Every call releases the interpreter lock and uses the calling thread only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _cpu
from ._cpu import UnsupportedIsa

__all__ = ["UnsupportedIsa", "available_isas", "best_isa", "matvec_bf16"]


def matvec_bf16(w: Any, x: Any, out: Any = None, isa: str = "auto") -> Any:
    """y = x @ w.T, products and sums in f32.

    w     [out, in] bf16 (or uint16 bits), C-contiguous
    x     [in] or [n, in] f32, C-contiguous
    out   [out] or [n, out] f32, C-contiguous, not overlapping w or x; a new numpy array if None
    isa   a name of `available_isas()`, or "auto" for the best

    Returns `out`. Row i of a batch has the same bits as a call with that row alone. Raises TypeError for a wrong element
    type or device, ValueError for a wrong shape or layout, and UnsupportedIsa (a ValueError) for an instruction set
    that this machine or this build lacks.
    """
    if out is None:
        out = np.empty(_out_shape(w, x), dtype=np.float32)
    _cpu.matvec_bf16(w, x, out, isa)
    return out


def _out_shape(w: Any, x: Any) -> tuple[int, ...]:
    try:
        return (*x.shape[:-1], w.shape[0])
    except (AttributeError, IndexError):
        raise TypeError("w and x must be arrays: w [out, in], x [in] or [n, in]") from None


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this build has and this machine can run, best first; the last is "scalar"."""
    return _cpu.available_isas()


def best_isa() -> str:
    """What "auto" stands for on this machine."""
    return _cpu.available_isas()[0]
