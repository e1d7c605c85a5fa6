"""Rotary positions on the first dims of a head, each frequency turned by one of three position axes."""

from __future__ import annotations

import torch
from torch import Tensor

from .elementwise import in_whole_vectors


def rope_tables(
    positions: Tensor, inverse_frequencies: Tensor, axes: Tensor, amplitude: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [N, r / 2] f32. positions [3, N] (time, height, width); inverse_frequencies [r / 2] f32 radians a
    position; axes [r / 2] int, which position turns the frequency. Text has equal positions on all axes.
    """
    angles = positions.float()[axes].T * inverse_frequencies
    cos, sin = in_whole_vectors(torch.cos, angles), in_whole_vectors(torch.sin, angles)
    return cos * amplitude, sin * amplitude


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [N, heads, D]; the pairs are (j, j + r / 2) inside the first r dims, the rest passes. f32 inside, x's dtype out."""
    half = cos.shape[-1]
    wide = x.float()
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1).to(x.dtype)
