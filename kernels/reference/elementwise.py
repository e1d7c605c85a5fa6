"""Functions of single elements, computed alike wherever an element stands.

The library computes whole vectors one way and what is left of a tensor at its end another way, with other last bits. Where rows come
in multiples of eight, a width that is a multiple of eight too leaves nothing over.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

WIDTH_MULTIPLE = 8


def in_whole_vectors(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)` for an elementwise function. x [8 n, ..., D]; padded up to whole vectors where D is no multiple of eight."""
    width = x.shape[-1]
    missing = -width % WIDTH_MULTIPLE
    return function(F.pad(x, (0, missing)))[..., :width] if missing else function(x)
