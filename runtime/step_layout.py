"""A batch laid out for the layers, computed once a step: rows of one token go through together, longer ones one by one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.kernels import ops

from .batch import Batch, Row
from .plan import GATHER_TOKENS
from .rope_config import RopeConfig


@dataclass(frozen=True, slots=True)
class Piece:
    """A row of several tokens: where they stand in the batch, where they begin in their sequence, where its past is."""

    tokens: slice
    start: int
    end: int
    slot: int
    blocks: Tensor
    """[B] int64, the blocks of positions 0..end - 1."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows of one token that attend together, so many that what they gather stays bounded."""

    tokens: Tensor
    """[R] int64, places in the batch."""
    block_tables: Tensor
    """[R, B] int64, padded with block 0 of the row."""
    lengths: Tensor
    """[R] int64, tokens of the past, the new one included."""


@dataclass(frozen=True, slots=True)
class StepLayout:
    """What every layer of one step shares."""

    cos: Tensor
    """[N, rotary_dim / 2] f32; `sin` alike."""
    sin: Tensor
    places: Tensor
    """[N] int64, flat places of the tokens in a paged cache."""
    pieces: tuple[Piece, ...]
    singles: Tensor
    """[R] int64, places in the batch of the rows of one token."""
    slots: Tensor
    """[R] int64, their state slots."""
    fresh: Tensor | None
    """[F] int64, which of the R begin their sequence; None where none does."""
    groups: tuple[DecodeGroup, ...]
    """The R rows again, in attention's grouping."""

    def take_singles(self, x: Tensor) -> Tensor:
        """x [N, ...] at the rows of one token, [R, ...]; x itself where there are no others."""
        return x.index_select(0, self.singles) if self.pieces else x

    def put_singles(self, x: Tensor, values: Tensor) -> None:
        """Write values [R, ...] into x [N, ...] at the rows of one token."""
        if self.pieces:
            x.index_copy_(0, self.singles, values)
        else:
            x.copy_(values)


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
    """Positions, places and groups of a checked batch. Text tokens have equal positions on all three axes."""
    positions: list[int] = []
    places: list[int] = []
    pieces: list[Piece] = []
    singles: list[tuple[int, Row]] = []
    for row in batch.rows:
        at = len(positions)
        for position in range(row.start, row.end):
            block, offset = divmod(position, block_tokens)
            positions.append(position)
            places.append(row.block_table[block] * block_tokens + offset)
        if row.num_tokens == 1:
            singles.append((at, row))
        else:
            blocks = torch.tensor(row.block_table[: -(-row.end // block_tokens)], dtype=torch.int64)
            pieces.append(Piece(slice(at, at + row.num_tokens), row.start, row.end, row.slot, blocks))
    cos, sin = ops.rope_tables(
        torch.tensor(positions).expand(3, -1), basis.inverse_frequencies, basis.axes, basis.amplitude
    )
    fresh = [i for i, (_, row) in enumerate(singles) if row.start == 0]
    return StepLayout(
        cos=cos,
        sin=sin,
        places=torch.tensor(places),
        pieces=tuple(pieces),
        singles=torch.tensor([at for at, _ in singles], dtype=torch.int64),
        slots=torch.tensor([row.slot for _, row in singles], dtype=torch.int64),
        fresh=torch.tensor(fresh) if fresh else None,
        groups=tuple(group_singles(singles, block_tokens)),
    )


def group_singles(singles: list[tuple[int, Row]], block_tokens: int) -> list[DecodeGroup]:
    """Shortest first, so that rows of a group have similar lengths and little of what is gathered is padding."""
    groups: list[list[tuple[int, Row]]] = []
    for at, row in sorted(singles, key=lambda item: item[1].end):
        gathered = -(-row.end // block_tokens) * block_tokens
        if not groups or (len(groups[-1]) + 1) * gathered > GATHER_TOKENS:
            groups.append([])
        groups[-1].append((at, row))
    return [_decode_group(group, block_tokens) for group in groups]


def _decode_group(group: list[tuple[int, Row]], block_tokens: int) -> DecodeGroup:
    width = -(-group[-1][1].end // block_tokens)  # the last row is the longest
    tables = [
        (*row.block_table[: -(-row.end // block_tokens)], *([row.block_table[0]] * width))[:width] for _, row in group
    ]
    return DecodeGroup(
        tokens=torch.tensor([at for at, _ in group]),
        block_tables=torch.tensor(tables),
        lengths=torch.tensor([row.end for _, row in group]),
    )
