"""Paged attention against torch's own attention on contiguous tensors; rotation against complex numbers."""

import pytest
import torch
from torch.nn import functional as F

from shoal.kernels.reference.attention import QUERY_TILE, attend, read_cache, write_cache
from shoal.kernels.reference.rope import rope_tables, rotate

torch.set_num_threads(1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(q, keys, values, start):
    mask = torch.arange(len(keys)) <= torch.arange(start, start + len(q)).unsqueeze(-1)
    heads_first = (x.transpose(0, 1).unsqueeze(0) for x in (q, keys, values))
    return F.scaled_dot_product_attention(*heads_first, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (6, 2), (4, 1)])
@pytest.mark.parametrize("start", [0, 1, 63, 64, 100])
@pytest.mark.parametrize("num_tokens", [1, 2, 64, 65, 150])
def test_prefill(num_tokens, start, heads):
    query_heads, kv_heads = heads
    q = normal(num_tokens, query_heads, 12)
    keys, values = normal(start + num_tokens, kv_heads, 12, seed=1), normal(start + num_tokens, kv_heads, 12, seed=2)
    got = attend(q, keys, values, start)
    torch.testing.assert_close(got, reference(q, keys, values, start), rtol=1e-5, atol=1e-5)


def test_prefill_in_pieces_is_the_whole():
    q, keys, values = (
        normal(3 * QUERY_TILE, 4, 8),
        normal(3 * QUERY_TILE, 2, 8, seed=1),
        normal(3 * QUERY_TILE, 2, 8, seed=2),
    )
    whole = attend(q, keys, values, 0)
    last = attend(q[2 * QUERY_TILE :], keys, values, 2 * QUERY_TILE)
    torch.testing.assert_close(last, whole[2 * QUERY_TILE :], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_over_scattered_blocks(dtype):
    """Sequences of different lengths in shuffled blocks of 4 give what each gives alone on contiguous keys."""
    lengths, block_tokens, kv_heads, dim = [1, 4, 5, 23], 4, 2, 12
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5)).tolist()
    key_cache = torch.full((20, block_tokens, kv_heads, dim), 7.0, dtype=dtype)  # what is not written must not matter
    value_cache = key_cache.clone()
    got, alone = [], []
    q = normal(len(lengths), 6, dim).to(dtype)
    for row, length in enumerate(lengths):
        num_blocks = -(-length // block_tokens)
        table = [order.pop() for _ in range(num_blocks)]
        keys, values = (
            normal(length, kv_heads, dim, seed=row).to(dtype),
            normal(length, kv_heads, dim, seed=9 + row).to(dtype),
        )
        places = torch.tensor([table[i // block_tokens] * block_tokens + i % block_tokens for i in range(length)])
        write_cache(key_cache, places, keys)
        write_cache(value_cache, places, values)
        torch.testing.assert_close(read_cache(key_cache, torch.tensor(table), length), keys, rtol=0, atol=0)
        past = (read_cache(cache, torch.tensor(table), length) for cache in (key_cache, value_cache))
        got.append(attend(q[row : row + 1], *past, length - 1)[0])
        alone.append(reference(q[row : row + 1].float(), keys.float(), values.float(), length - 1)[0])
    assert got[0].dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2  # bf16 output has 8 bits
    torch.testing.assert_close(torch.stack(got).float(), torch.stack(alone), rtol=tolerance, atol=tolerance)


def test_rotation_turns_pairs_by_their_angles():
    """Pair (j, j + r/2) is a complex number multiplied by e^(i angle); the dims after r pass."""
    frequencies, axes = torch.tensor([1.0, 0.5, 0.25]), torch.tensor([0, 1, 2])
    positions = torch.tensor([[0, 1, 5], [0, 2, 7], [0, 3, 11]])
    x = normal(3, 2, 8)
    cos, sin = rope_tables(positions, frequencies, axes)
    got = rotate(x, cos, sin)
    angles = torch.stack([positions[axis] * f for axis, f in zip(axes, frequencies, strict=True)], -1)
    turned = torch.complex(x[..., :3], x[..., 3:6]) * torch.polar(torch.ones(3, 3), angles).unsqueeze(1)
    torch.testing.assert_close(got[..., :3], turned.real)
    torch.testing.assert_close(got[..., 3:6], turned.imag)
    torch.testing.assert_close(got[..., 6:], x[..., 6:], rtol=0, atol=0)


def test_amplitude_scales_the_rotated_dims_only():
    cos, sin = rope_tables(torch.zeros(3, 1, dtype=torch.int64), torch.tensor([1.0]), torch.tensor([0]), amplitude=1.5)
    got = rotate(torch.ones(1, 1, 4), cos, sin)
    torch.testing.assert_close(got, torch.tensor([[[1.5, 1.5, 1.0, 1.0]]]))
