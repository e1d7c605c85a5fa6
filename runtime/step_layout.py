"""A batch laid out for the layers, computed once a step.

The layers work on P rows: first the sequences with one token, together, then each longer one; both padded to whole tiles, so that no
product depends on what else is in the batch (see kernels' `tiled_linear`). What stands in padding is finite and goes nowhere.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels import ops

from .batch import Batch, Row
from .plan import PIECE_TILE, SINGLE_TILE
from .rope_config import RopeConfig


@dataclass(frozen=True, slots=True)
class Piece:
    """A sequence's tokens: where they stand in the layout, where they begin in their sequence, where its past is."""

    tokens: slice
    start: int
    end: int
    slot: int
    blocks: Tensor
    """[B] int64, the blocks of positions 0..end - 1."""


@dataclass(frozen=True, slots=True)
class StepLayout:
    """What every layer of one step shares."""

    token_ids: Tensor
    """[P] int64, 0 in padding."""
    cos: Tensor
    """[P, rotary_dim / 2] f32; `sin` alike."""
    sin: Tensor
    tiles: tuple[slice, ...]
    """They cover the P rows: SINGLE_TILE rows each, then PIECE_TILE rows each."""
    tokens: Tensor
    """[N] int64, the rows that are no padding; `places` are theirs in a paged cache, flat."""
    places: Tensor
    rows: Tensor
    """[N] int64, the layout's row of each token of the batch."""
    pieces: tuple[Piece, ...]
    """All sequences of the batch, those with one token first: piece r of them is row r."""
    num_singles: int
    num_single_rows: int
    """With padding."""

    @property
    def singles(self) -> tuple[Piece, ...]:
        """Those with one token."""
        return self.pieces[: self.num_singles]

    @property
    def slots(self) -> list[int]:
        """State slots of the singles."""
        return [piece.slot for piece in self.singles]

    @property
    def long_pieces(self) -> tuple[Piece, ...]:
        """Those with several tokens."""
        return self.pieces[self.num_singles :]


@dataclass(frozen=True, slots=True)
class RopeBasis:
    """Constants of the rotation as tensors."""

    inverse_frequencies: Tensor
    axes: Tensor
    amplitude: float

    @classmethod
    def of(cls, rope: RopeConfig) -> RopeBasis:
        """From the config, f32."""
        return cls(
            torch.tensor(rope.inverse_frequencies, dtype=torch.float32),
            torch.tensor(rope.axes, dtype=torch.int64),
            rope.amplitude,
        )


def lay_out(batch: Batch, basis: RopeBasis, block_tokens: int) -> StepLayout:
    """Rows, positions and places of a checked batch. Text tokens have equal positions on all three axes."""
    begins = [0, *itertools.accumulate(row.num_tokens for row in batch.rows)]
    singles = [i for i, row in enumerate(batch.rows) if row.num_tokens == 1]
    longer = [i for i, row in enumerate(batch.rows) if row.num_tokens > 1]
    num_single_rows = num_rows = -(-len(singles) // SINGLE_TILE) * SINGLE_TILE
    tiles = ops.tiles_of(num_rows, SINGLE_TILE)
    at_of = {i: at for at, i in enumerate(singles)}
    for i in longer:
        at_of[i] = num_rows
        added = ops.tiles_of(batch.rows[i].num_tokens, PIECE_TILE, num_rows)
        tiles += added
        num_rows = added[-1].stop
    token_ids, positions = [0] * num_rows, [0] * num_rows
    tokens: list[int] = []
    places: list[int] = []
    rows = [0] * len(batch.token_ids)
    pieces: list[Piece] = []
    for i in (*singles, *longer):
        row, at, begin = batch.rows[i], at_of[i], begins[i]
        token_ids[at : at + row.num_tokens] = batch.token_ids[begin : begin + row.num_tokens]
        positions[at : at + row.num_tokens] = range(row.start, row.end)
        rows[begin : begin + row.num_tokens] = range(at, at + row.num_tokens)
        tokens += range(at, at + row.num_tokens)
        places += _places(row, block_tokens)
        blocks = torch.tensor(row.block_table[: -(-row.end // block_tokens)], dtype=torch.int64)
        pieces.append(Piece(slice(at, at + row.num_tokens), row.start, row.end, row.slot, blocks))
    cos, sin = ops.rope_tables(
        torch.tensor(positions, dtype=torch.int64).expand(3, -1), basis.inverse_frequencies, basis.axes, basis.amplitude
    )
    return StepLayout(
        token_ids=torch.tensor(token_ids, dtype=torch.int64),
        cos=cos,
        sin=sin,
        tiles=tuple(tiles),
        tokens=torch.tensor(tokens, dtype=torch.int64),
        places=torch.tensor(places, dtype=torch.int64),
        rows=torch.tensor(rows, dtype=torch.int64),
        pieces=tuple(pieces),
        num_singles=len(singles),
        num_single_rows=num_single_rows,
    )


def _places(row: Row, block_tokens: int) -> list[int]:
    """Flat places of the row's tokens in a paged cache."""
    return [
        row.block_table[position // block_tokens] * block_tokens + position % block_tokens
        for position in range(row.start, row.end)
    ]
