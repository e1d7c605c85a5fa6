"""The native engine: all layers of a step, for every row of a batch, in one call that holds no lock of the interpreter.

How an engine is opened, and of what, is in engine_shape.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

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
    "Step",
    "StepResult",
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

MAX_TOP_K = 256


@dataclass(frozen=True, slots=True)
class TopRequest:
    """The `k` best tokens after the token at index `at` of the step."""

    at: int
    k: int
    """1..256"""
    adjust_ids: Int32 | None = None
    """Distinct ids whose logits `adjust_values` are added to before the best are chosen; -inf bans one."""
    adjust_values: Float32 | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What one call computes: rows are sequences' shares, one after another in `token_ids`."""

    token_ids: Int32
    rows: Int32
    """[R, 4]: num_tokens, start (position of the first), slot, index in `tables` of its block table. At start 0 the slot's
    states begin at zero whatever it held."""
    tables: Int32
    """Block tables end to end: entry i of a sequence's is the page of positions 64 i .. 64 i + 63 in every attention layer."""
    full_at: Int32 | None = None
    """Indices of `token_ids` whose whole logits are wanted."""
    top: Sequence[TopRequest] = ()


@dataclass(frozen=True, slots=True)
class TopRow:
    """Best first: by adjusted logit, then by id. Every array has the k of its request (or the number of drawable ids)."""

    ids: Int32
    adjusted: Float32
    logits: Float32
    """Before the adjustment: the same bits as in the row's whole logits."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """In the order of the step's `full_at` and `top`."""

    full: Float32
    """[F, vocab_size]"""
    top: tuple[TopRow, ...] = field(default=())


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

    def step(self, step: Step, full: Float32 | None = None) -> StepResult:
        """Advance every row. Whole logits go to `full` [F, vocab_size] where given. Raises ValueError for what leaves a bound."""
        none = _NO_IDS
        full_at = none if step.full_at is None else step.full_at
        if full is None:
            full = np.empty((len(full_at), self.shape.vocab_size), np.float32)
        num_top = len(step.top)
        top_at = np.empty((num_top, 3), np.int32)  # token, k, number of adjustments
        adjust_ids: list[Int32] = []
        adjust_values: list[Float32] = []
        width = 0
        for i, top in enumerate(step.top):
            num_adjusted = 0
            if top.adjust_ids is not None and top.adjust_values is not None:
                num_adjusted = len(top.adjust_ids)
                if len(top.adjust_values) != num_adjusted:
                    raise ValueError("adjust_ids and adjust_values differ in length")
                order = np.argsort(top.adjust_ids)
                adjust_ids.append(top.adjust_ids[order])
                adjust_values.append(top.adjust_values[order])
            top_at[i] = top.at, top.k, num_adjusted
            width = max(width, top.k)
        ids = np.empty((num_top, width), np.int32)
        adjusted = np.empty((num_top, width), np.float32)
        logits = np.empty((num_top, width), np.float32)
        self._native.step(
            step.token_ids,
            step.rows,
            step.tables,
            full_at,
            full,
            top_at,
            np.concatenate(adjust_ids) if adjust_ids else none,
            np.concatenate(adjust_values) if adjust_values else _NO_VALUES,
            ids,
            adjusted,
            logits,
        )
        limit = self.shape.vocab_size if self.sizes.drawable_vocab_size is None else self.sizes.drawable_vocab_size
        counts = [min(top.k, limit) for top in step.top]
        rows = tuple(TopRow(ids[i, :n], adjusted[i, :n], logits[i, :n]) for i, n in enumerate(counts))
        return StepResult(full, rows)

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


_NO_IDS: Int32 = np.empty(0, np.int32)
_NO_VALUES: Float32 = np.empty(0, np.float32)
