"""The table of operations: one name each, and the one place that picks who computes it.

There is one computing back end so far, the reference in plain torch, so every entry is the reference's. Importing this module
imports torch; `shoal.kernels` itself imports nothing. The native kernels in `shoal.kernels.cpu` stand beside, each tested against
plain arithmetic, and are not called from here yet.
"""

from __future__ import annotations

from .reference.attention import attend, read_cache, write_cache
from .reference.causal_conv import causal_conv, causal_conv_step
from .reference.feed_forward import sparse_swiglu, swiglu
from .reference.gated_delta import chunked as gated_delta_prefill
from .reference.gated_delta import delta_gates
from .reference.gated_delta import step as gated_delta_step
from .reference.linear import pad_rows, tiled_linear, tiles_of
from .reference.norm import gated_rms_norm, rms_norm, unit_norm
from .reference.rope import rope_tables, rotate

__all__ = [
    "attend",
    "causal_conv",
    "causal_conv_step",
    "delta_gates",
    "gated_delta_prefill",
    "gated_delta_step",
    "gated_rms_norm",
    "pad_rows",
    "read_cache",
    "rms_norm",
    "rope_tables",
    "rotate",
    "sparse_swiglu",
    "swiglu",
    "tiled_linear",
    "tiles_of",
    "unit_norm",
    "write_cache",
]
