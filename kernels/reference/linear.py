"""Matrix products in tiles of fixed height.

A library picks another way to sum for another number of rows, so a row's last bits would depend on its neighbours. In tiles of one
height they do not: a token's result is the same alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def tiled_linear(x: Tensor, weight: Tensor, tiles: Sequence[slice]) -> Tensor:
    """`x @ weight^T`. x [N, in]; weight [out, in] of the same dtype; `tiles` cover 0..N without a gap. Returns [N, out]."""
    out = torch.empty(len(x), len(weight), dtype=x.dtype, device=x.device)
    transposed = weight.T
    for tile in tiles:
        torch.mm(x[tile], transposed, out=out[tile])
    return out


def tiles_of(num_rows: int, height: int, begin: int = 0) -> list[slice]:
    """Slices of `height` rows that cover `num_rows` from `begin`; the last reaches into padding where they do not divide."""
    return [slice(at, at + height) for at in range(begin, begin + num_rows, height)]


def pad_rows(x: Tensor, height: int) -> Tensor:
    """x [N, ...] with zero rows behind, up to a multiple of `height`."""
    missing = -len(x) % height
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else x
