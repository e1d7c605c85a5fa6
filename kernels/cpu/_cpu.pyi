"""Types of the compiled module. What the functions mean stands beside the Python that calls them."""

from array import array
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_U8: TypeAlias = NDArray[np.uint8]
_I8: TypeAlias = NDArray[np.int8]
_I16: TypeAlias = NDArray[np.int16]
_I32: TypeAlias = NDArray[np.int32]
_F32: TypeAlias = NDArray[np.float32]
_Ints: TypeAlias = _I32 | list[int] | list[array[int]]

class UnsupportedIsa(ValueError): ...

def available_isas() -> tuple[str, ...]: ...
def choose_isa(asked: str) -> str: ...

# bindings/vocabulary.cc. Raises ValueError for anything but an object of ids by token, and for an id of 2^24 or more.
class Vocabulary:
    def __init__(self, json: bytes) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def longest(self) -> int: ...
    def literal(self, id: int) -> bytes | None: ...

# engine.py
class UnsupportedShape(ValueError): ...

def check_shape(shape: dict[str, Any]) -> None: ...
def expected_tensors(shape: dict[str, Any], weight_format: str) -> list[tuple[str, str, int, int, int, int]]: ...
def pool_bytes(shape: dict[str, Any], sizes: dict[str, Any], weight_format: str) -> dict[str, int]: ...

# Of the file, mapped as an engine does, while it is.
def large_page_bytes(path: str) -> int: ...

class Engine:
    def __init__(
        self,
        shape: dict[str, Any],
        sizes: dict[str, Any],
        path: str | None,
        buffer: _U8 | None,
        tensors: list[tuple[str, str, int, int, int, int]],
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def pool_bytes(self) -> dict[str, int]: ...
    @property
    def allocations_in_last_step(self) -> int: ...
    def step(
        self,
        token_ids: _Ints,
        rows: _Ints,
        tables: _Ints,
        full_at: _Ints,
        full: _F32 | None,
        top: Sequence[tuple[int, int, _I32 | array[int] | None, _F32 | array[float] | None]],
    ) -> list[tuple[list[int], list[float], list[float]]]: ...
    def make_present(self) -> None: ...
    def copy_slot(self, source: int, target: int) -> None: ...
    def copy_page(self, source: int, target: int) -> None: ...
    def read_columns(self, layer: int, slot: int, out: _F32) -> None: ...
    def read_state(self, layer: int, slot: int, position: int, out: _F32) -> None: ...
    def read_past(self, layer: int, table: _I32, values: bool, out: _F32) -> None: ...

# bindings/attention.cc: one layer of one sequence, all its kv heads. rows [n, 2 * (heads + kv_heads) * head_dim],
# cos and sin [n, rotary_dim / 2], pool of whole pages, pages: where the positions from 0 on lie; kv_format bf16 or int8.
def attention_store(
    isa: str,
    rows: _F32,
    position: int,
    cos: _F32,
    sin: _F32,
    k_norm: _F32,
    pool: _U8,
    kv_format: str,
    pages: _I32,
    heads: int,
    kv_heads: int,
    eps: float,
) -> None: ...
def attention_attend(
    isa: str,
    rows: _F32,
    position: int,
    cos: _F32,
    sin: _F32,
    q_norm: _F32,
    pool: _U8,
    kv_format: str,
    pages: _I32,
    heads: int,
    kv_heads: int,
    scale: float,
    eps: float,
    out: _F32,
    begin: int,
    end: int,
) -> None: ...
def time_read(isa: str, data: Any, loop: int, threads: int, repetitions: int) -> list[tuple[float, int]]: ...
def time_dot_int8(isa: str, rounds: int, threads: int, repetitions: int) -> list[tuple[float, int]]: ...
def time_fma_f32(isa: str, rounds: int, threads: int, repetitions: int) -> list[tuple[float, int]]: ...
def limit_operations(isa: str) -> tuple[int, int]: ...

# Gated DeltaNet of one layer of one sequence. x [n, 2 Hk Dk + Hv Dv + Hv Dv] (q, k, v, z), gates [n, 2 Hv] (b, a) and out
# [n, Hv Dv] may have rows that stand apart.
def delta_state_floats(key_heads: int, value_heads: int, key_dim: int, value_dim: int) -> int: ...
def delta_advance(
    isa: str,
    key_heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
    conv: _F32,
    decay: _F32,
    dt_bias: _F32,
    norm: _F32,
    eps: float,
    state: _F32,
    x: _F32,
    gates: _F32,
    position: int,
    out: _F32,
) -> None: ...
def delta_state(
    isa: str,
    key_heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
    state: _F32,
    position: int,
    out: _F32,
) -> None: ...

# The lanes' operations by name, over a multiple of 256 elements.
def vector_map(isa: str, name: str, x: _F32, y: _F32) -> None: ...

# bindings/direct.cc: x [n, cols] is quantised, then multiplied with panels [first_panel, first_panel + num_panels) of the
# packed matrix [rows, cols] (num_panels -1: all that are left); out [n, rows], or [n, rows / 2] where store is 2.
# format 0 int4, 1 int8, 2 bf16; store 0 set, 1 add, 2 swiglu. q [n, padded], scale and sum256 [n, padded / 256], sum16
# [n, padded / 16], padded being cols up to a multiple of 256. measure_prefetch_distance: kernels.h; what it left, in bytes.
def quantise(x: _F32, q: _I8, scale: _F32, sum16: _I16, sum256: _I32, isa: str = "auto") -> None: ...
def measure_prefetch_distance(format: int, weights: _U8, rows: int, cols: int, isa: str = "auto") -> int: ...
def direct_multiply(
    format: int,
    weights: _U8,
    rows: int,
    cols: int,
    x: _F32,
    out: _F32,
    store: int = 0,
    isa: str = "auto",
    first_panel: int = 0,
    num_panels: int = -1,
) -> None: ...

# bindings/tiled.cc: the same of many rows, with the same arguments.
def tiled_multiply(
    format: int,
    weights: _U8,
    rows: int,
    cols: int,
    x: _F32,
    out: _F32,
    store: int = 0,
    isa: str = "auto",
    first_panel: int = 0,
    num_panels: int = -1,
) -> None: ...

# bindings/convert.cc; kernels/cpu/quantise.py says what they do
def quantise_weights(
    layout: str,
    source: NDArray[Any],
    source_type: str,
    rows: int,
    cols: int,
    out: _U8,
    *,
    importance: _F32 | None = None,
    sigma: _F32 | None = None,
    exact: str = "rows8",
    inputs: _F32 | None = None,
    rounded: _F32 | None = None,
    num_inputs: int = 0,
    probe_step: int = 1,
    output_error: NDArray[np.float64] | None = None,
    output_energy: NDArray[np.float64] | None = None,
    threads: int = 1,
    isa: str = "auto",
) -> tuple[bool, float, float, float, float]: ...
def dequantise_weights(layout: str, packed: _U8, rows: int, cols: int, out: _F32) -> None: ...

# bindings/rows.cc: tables as bytes, rows8 or rows16 [rows, row_bytes]; y, x and out are padded to 256 columns.
def rms_norm(x: _F32, w: _F32, eps: float, n: int, cols: int, y: _F32, isa: str) -> None: ...
def read_row(table: _U8, is_rows8: bool, rows: int, cols: int, row: int, out: _F32, isa: str) -> None: ...
def score_rows(table: _U8, is_rows8: bool, rows: int, cols: int, ids: _I32, x: _F32, out: _F32, isa: str) -> None: ...
