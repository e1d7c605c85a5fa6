"""The native engine: all layers of a step, for every row of a batch, in one call that holds no lock of the interpreter.

How an engine is opened, and of what, is in engine_shape.py.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _cpu
from .engine_shape import (
    ATTENTION,
    DELTA,
    PAGE_TOKENS,
    EngineShape,
    EngineSizes,
    UnsupportedIsa,
    UnsupportedShape,
    WeightTensor,
    check_shape,
    expected_tensors,
    open_engine,
    pool_bytes,
)

__all__ = [
    "ATTENTION",
    "DELTA",
    "PAGE_TOKENS",
    "Engine",
    "EngineShape",
    "EngineSizes",
    "TopRequest",
    "TopRow",
    "UnsupportedIsa",
    "UnsupportedShape",
    "WeightTensor",
    "check_shape",
    "expected_tensors",
    "pool_bytes",
]

Int32: TypeAlias = NDArray[np.int32]
Float32: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = "Int32 | list[int] | list[array[int]]"
"""An int32 array, a list of ints, or of int32 arrays which are read end to end."""

MAX_TOP_K = 256


class TopRequest(NamedTuple):
    """The `k` best tokens after the token at index `at` of the step."""

    at: int
    k: int
    """1..256"""
    adjust_ids: Int32 | array[int] | None = None
    """int32: distinct ids whose logits `adjust_values` are added to before the best are chosen; -inf bans one."""
    adjust_values: Float32 | array[float] | None = None
    """float32"""


TopRow: TypeAlias = tuple[list[int], list[float], list[float]]
"""Ids, adjusted logits, and logits before the adjustment, whose bits are those of the row's whole logits. Best first: by adjusted
logit, then by id. Each has the k of its request, or the number of drawable ids."""


class Engine:
    """A model on a pool of threads. One thread at a time may call an engine."""

    def __init__(
        self,
        shape: EngineShape,
        sizes: EngineSizes,
        source: Path | NDArray[np.uint8],
        tensors: Sequence[WeightTensor],
    ) -> None:
        """Open one: see engine_shape.open_engine, whose errors it raises."""
        self.shape = shape
        self.sizes = sizes
        self._native = open_engine(shape, sizes, source, tensors)

    @classmethod
    def around(cls, shape: EngineShape, sizes: EngineSizes, opened: _cpu.Engine) -> Engine:
        """Of what `open_engine` gave back for the same shape and sizes."""
        engine = cls.__new__(cls)
        engine.shape, engine.sizes, engine._native = shape, sizes, opened
        return engine

    @property
    def isa(self) -> str:
        """The instruction set that runs."""
        return self._native.isa

    @property
    def pool_bytes(self) -> Mapping[str, int]:
        """Bytes that were allocated (weights: mapped), by pool."""
        return self._native.pool_bytes

    @property
    def allocations_in_last_step(self) -> int:
        """Heap allocations of the last step on any of its threads; -1 in builds that cannot count them."""
        return self._native.allocations_in_last_step

    def step(
        self,
        token_ids: Ints,
        rows: Ints,
        tables: Ints,
        top: Sequence[TopRequest] = (),
        full_at: Ints | None = None,
        full: Float32 | None = None,
    ) -> list[TopRow]:
        """Compute rows, which are sequences' shares, one after another in `token_ids`, advance every sequence, and answer `top`.

        rows      [R, 4]: num_tokens, start (position of the first), slot, index in `tables` of its block table. At start 0 the
                  slot's states begin at zero whatever it held.
        tables    block tables end to end: entry i of a sequence's is the page of positions 64 i .. 64 i + 63 in every attention
                  layer
        full_at   indices of `token_ids` whose whole logits go to `full` [F, vocab_size]

        Raises ValueError for what leaves a bound.
        """
        return self._native.step(token_ids, rows, tables, [] if full_at is None else full_at, full, top)

    def logits(self, token_ids: Ints, rows: Ints, tables: Ints, full_at: Ints) -> Float32:
        """A step that answers with whole rows, [F, vocab_size]."""
        full = np.empty((len(full_at), self.shape.vocab_size), np.float32)
        self.step(token_ids, rows, tables, (), full_at, full)
        return full

    def make_present(self) -> None:
        """Every page of the pools now, where it would otherwise come when it is used or when nothing else is to be done."""
        self._native.make_present()

    def copy_slot(self, source: int, target: int) -> None:
        """Make `target` hold the states of `source`."""
        self._native.copy_slot(source, target)

    def copy_page(self, source: int, target: int) -> None:
        """Copy the keys and values of a page in every attention layer."""
        self._native.copy_page(source, target)

    def read_columns(self, layer: int, slot: int) -> Float32:
        """[conv_dim, 3]: the last raw inputs of a DeltaNet layer's convolution, oldest first."""
        shape = self.shape
        conv_dim = 2 * shape.key_heads * shape.key_dim + shape.value_heads * shape.value_dim
        out = np.empty((conv_dim, shape.num_taps - 1), np.float32)
        self._native.read_columns(layer, slot, out)
        return out

    def read_state(self, layer: int, slot: int, position: int) -> Float32:
        """[value_heads, key_dim, value_dim]: a DeltaNet layer's state after `position` tokens."""
        out = np.empty((self.shape.value_heads, self.shape.key_dim, self.shape.value_dim), np.float32)
        self._native.read_state(layer, slot, position, out)
        return out

    def read_keys(self, layer: int, table: Int32, num_tokens: int) -> Float32:
        """[num_tokens, kv_heads, head_dim]: an attention layer's keys, normed and turned, as they are stored."""
        return self._read_past(layer, table, num_tokens, values=False)

    def read_values(self, layer: int, table: Int32, num_tokens: int) -> Float32:
        """[num_tokens, kv_heads, head_dim]: an attention layer's values as they are stored."""
        return self._read_past(layer, table, num_tokens, values=True)

    def _read_past(self, layer: int, table: Int32, num_tokens: int, *, values: bool) -> Float32:
        out = np.empty((num_tokens, self.shape.kv_heads, self.shape.head_dim), np.float32)
        self._native.read_past(layer, table, values, out)
        return out
