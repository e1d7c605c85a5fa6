"""What an engine is made of, and the engine itself opened: no numpy, which takes longer to import than a model to map.

The tensors that a model consists of, their layouts and the memory that an engine takes are defined by the compiled module
(kernels/cpu/engine/model.h); this file gives them types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import _cpu
from ._cpu import UnsupportedIsa, UnsupportedShape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "ATTENTION",
    "DELTA",
    "PAGE_TOKENS",
    "EngineShape",
    "EngineSizes",
    "UnsupportedIsa",
    "UnsupportedShape",
    "WeightTensor",
    "check_shape",
    "expected_tensors",
    "open_engine",
    "pool_bytes",
]

DELTA = "delta"
ATTENTION = "attention"
PAGE_TOKENS = 64
"""Tokens of one page of keys and values."""


@dataclass(frozen=True, slots=True)
class EngineShape:
    """The sizes of a model. Names follow kernels/cpu/layout.h; sizes count elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: tuple[str, ...]
    """DELTA or ATTENTION, a layer each."""
    heads: int
    kv_heads: int
    head_dim: int
    key_heads: int
    value_heads: int
    key_dim: int
    """Of one key head; `value_dim` alike."""
    value_dim: int
    eps: float
    inverse_frequencies: tuple[float, ...]
    """Radians a position, [rotary_dim / 2]."""
    rotary_axes: tuple[int, ...]
    """Which position axis (0 time, 1 height, 2 width) turns each frequency."""
    rotary_amplitude: float = 1.0
    tied_head: bool = True
    """Whether exact scores read the embedding's table; else there is a `head.table`."""
    num_taps: int = 4
    num_experts: int = 0


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """How much an engine holds at once, and how it runs."""

    num_pages: int
    num_slots: int
    max_tokens: int
    """Of all rows of a step together."""
    max_rows: int
    """Sequences of a step, and so rows whose best tokens are asked for."""
    max_full_rows: int
    """Rows of a step whose whole logits are asked for."""
    kv_format: str = "bf16"
    """bf16, int8 or f32."""
    threads: int = 1
    cpus: tuple[int, ...] = ()
    """A processor for each thread; empty: the operating system places them."""
    isa: str = "auto"
    drawable_vocab_size: int | None = None
    """Ids at and above this are never among a row's best (the tokenizer does not know them). None: all may be."""


@dataclass(frozen=True, slots=True)
class WeightTensor:
    """Where a tensor lies in the file. `offset` counts from the beginning of the file (or buffer) and is a multiple of 64."""

    name: str
    layout: str
    """int4, int8, bf16 (panels), rows8, rows16 (tables) or f32 (a vector)."""
    rows: int
    cols: int
    """As published, before padding; a vector has 1 column."""
    offset: int
    num_bytes: int


def check_shape(shape: EngineShape) -> None:
    """Raise UnsupportedShape, which names the constraint that `shape` breaks."""
    _cpu.check_shape(asdict(shape))


def expected_tensors(shape: EngineShape, weight_format: str) -> list[WeightTensor]:
    """Names, layouts and sizes of a model of one format (bf16, int8, int4), offsets as if end to end. Raises UnsupportedShape."""
    return [WeightTensor(*entry) for entry in _cpu.expected_tensors(asdict(shape), weight_format)]


def pool_bytes(shape: EngineShape, sizes: EngineSizes, weight_format: str) -> Mapping[str, int]:
    """Bytes by pool: `weights` (mapped, of a model without exceptions from its format), `kv`, `state`, `activations`.

    Allocates nothing. Raises UnsupportedShape.
    """
    return _cpu.pool_bytes(asdict(shape), asdict(sizes), weight_format)


def open_engine(
    shape: EngineShape, sizes: EngineSizes, source: Path | NDArray[np.uint8], tensors: Sequence[WeightTensor]
) -> _cpu.Engine:
    """Map the file `source` (or use the buffer, which must begin at a multiple of 64) and allocate every pool, without the
    interpreter's lock. What comes back is for engine.Engine.

    Raises UnsupportedShape, UnsupportedIsa, ValueError (a tensor that is missing or does not fit), OSError, MemoryError.
    """
    entries = [(t.name, t.layout, t.rows, t.cols, t.offset, t.num_bytes) for t in tensors]
    path, buffer = (str(source), None) if isinstance(source, Path) else (None, source)
    return _cpu.Engine(asdict(shape), asdict(sizes), path, buffer, entries)
