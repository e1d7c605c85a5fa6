"""Causal grouped-query attention over a paged cache.

A cache is [num_blocks, block_tokens, kv heads, D] in any float dtype. Query head h reads kv head h // (query heads / kv heads).
Scores, softmax and sums are f32; the scale is D^-0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUERY_TILE = 64
"""Queries that meet their keys at once: bounds the score matrix at [query heads, QUERY_TILE, length]."""


def write_cache(cache: Tensor, places: Tensor, values: Tensor) -> None:
    """Store values [N, kv heads, D] at flat places [N] (block * block_tokens + offset), in the cache's dtype."""
    cache.flatten(0, 1).index_copy_(0, places, values.to(cache.dtype))


def read_cache(cache: Tensor, block_table: Tensor, length: int) -> Tensor:
    """The first `length` tokens of a sequence, [length, kv heads, D] in the cache's dtype. block_table [B] int64."""
    return cache.index_select(0, block_table).flatten(0, 1)[:length]


def attend(q: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """T queries of one sequence, the first at position `start`, against its L = start + T keys.

    q [T, Hq, D]; keys, values [L, Hkv, D]. Returns [T, Hq, D] in q's dtype. The tiles begin at multiples of QUERY_TILE in absolute
    positions.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv = keys.shape[1]
    grouped = q.float().view(num_tokens, num_kv, num_heads // num_kv, head_dim) * head_dim**-0.5
    keys_t = keys.float().permute(1, 2, 0)  # [Hkv, D, L]
    values_h = values.float().transpose(0, 1)  # [Hkv, L, D]
    outputs = []
    begin = 0
    while begin < num_tokens:
        end = min(num_tokens, begin + QUERY_TILE - (start + begin) % QUERY_TILE)
        length = start + end  # no query of the tile sees beyond
        tile = grouped[begin:end].permute(1, 2, 0, 3).flatten(1, 2)  # [Hkv, group * n, D]
        scores = (tile @ keys_t[..., :length]).unflatten(1, (-1, end - begin))
        position = torch.arange(start + begin, length, device=q.device).unsqueeze(-1)
        future = torch.arange(length, device=q.device) > position
        weights = scores.masked_fill_(future, -torch.inf).softmax(-1)
        mixed = weights.flatten(1, 2) @ values_h[:, :length]
        outputs.append(mixed.unflatten(1, (-1, end - begin)).permute(2, 0, 1, 3).flatten(1, 2))
        begin = end
    return torch.cat(outputs).to(q.dtype)
