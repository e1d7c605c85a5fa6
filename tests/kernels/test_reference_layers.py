"""Norms, convolution and feed-forwards against torch's own operations and plain loops."""

import pytest
import torch
from torch.nn import functional as F

from shoal.kernels.reference.causal_conv import causal_conv, causal_conv_step
from shoal.kernels.reference.elementwise import in_whole_vectors
from shoal.kernels.reference.feed_forward import sparse_swiglu, swiglu
from shoal.kernels.reference.linear import pad_rows, tiled_linear, tiles_of
from shoal.kernels.reference.norm import gated_rms_norm, rms_norm, unit_norm

torch.set_num_threads(1)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rms_norm_adds_one_to_its_weight_and_the_gated_one_does_not():
    x, weight, gate = normal(5, 16), normal(16, seed=1), normal(5, 16, seed=2)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), F.rms_norm(x, (16,), 1 + weight, 1e-6))
    want = F.rms_norm(x, (16,), weight, 1e-6) * F.silu(gate)
    torch.testing.assert_close(gated_rms_norm(x, weight, gate, 1e-6), want)


def test_rms_norm_of_bf16_rounds_once():
    x, weight = normal(64, 16).bfloat16(), normal(16, seed=1)
    want = F.rms_norm(x.float(), (16,), 1 + weight, 1e-6).bfloat16()
    got = rms_norm(x, weight, 1e-6)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=2**-8, atol=0)  # a last bit where f32 itself rounds otherwise


def test_unit_norm_sums_and_keeps_epsilon_inside():
    x = normal(4, 3, 8)
    torch.testing.assert_close(unit_norm(x), x / (x.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt())
    assert unit_norm(torch.zeros(1, 8)).abs().max() == 0


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 40])
def test_conv_is_a_padded_depthwise_convolution(num_tokens, taps):
    x, weight, columns = normal(num_tokens, 6), normal(6, taps, seed=1), normal(6, taps - 1, seed=2)
    history = torch.cat([columns, x.T], 1)
    want = F.silu(F.conv1d(history.unsqueeze(0), weight.unsqueeze(1), groups=6))[0].T
    got, after = causal_conv(x, columns, weight)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(after, history[:, num_tokens:], rtol=0, atol=0)


@pytest.mark.parametrize("taps", [1, 2, 4])
def test_conv_step_equals_conv_a_sequence_each(taps):
    x, weight, columns = normal(3, 6), normal(6, taps, seed=1), normal(3, 6, taps - 1, seed=2)
    got, after = causal_conv_step(x, columns, weight)
    for row in range(3):
        want, want_after = causal_conv(x[row : row + 1], columns[row], weight)
        torch.testing.assert_close(got[row : row + 1], want)
        torch.testing.assert_close(after[row], want_after, rtol=0, atol=0)


def test_swiglu():
    x, gate, up, down = normal(3, 8), normal(12, 8, seed=1), normal(12, 8, seed=2), normal(8, 12, seed=3)
    want = (torch.sigmoid(x @ gate.T) * (x @ gate.T) * (x @ up.T)) @ down.T
    torch.testing.assert_close(swiglu(x, gate, up, down, [slice(0, 3)]), want, rtol=1e-5, atol=1e-5)


def test_sparse_swiglu_token_by_token():
    x, router = normal(9, 8), normal(5, 8, seed=1)
    gate_up, down = normal(5, 12, 8, seed=2), normal(5, 8, 6, seed=3)
    got = sparse_swiglu(x, router, gate_up, down, 2, [slice(0, 4), slice(4, 9)])
    for t in range(9):
        probabilities = torch.softmax(router @ x[t], 0)
        chosen = sorted(range(5), key=lambda e: -probabilities[e])[:2]
        total = sum(probabilities[e] for e in chosen)
        want = sum(
            probabilities[e] / total * swiglu(x[t : t + 1], gate_up[e, :6], gate_up[e, 6:], down[e], [slice(0, 1)])[0]
            for e in chosen
        )
        torch.testing.assert_close(got[t], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("height", [8, 32])
@pytest.mark.parametrize(("wide", "out"), [(48, 65), (256, 1024), (1024, 512)])
def test_a_row_is_the_same_whatever_its_neighbours_and_its_place(wide, out, height, dtype):
    weight, rows = normal(out, wide).to(dtype), normal(3 * height, wide, seed=1).to(dtype)
    together = tiled_linear(rows, weight, tiles_of(3 * height, height))
    torch.testing.assert_close(
        together, F.linear(rows, weight), rtol=1e-2, atol=1e-1 if dtype == torch.bfloat16 else 1e-4
    )
    for row in (0, 1, height - 1, height, 2 * height + 3):
        alone = tiled_linear(pad_rows(rows[row : row + 1], height), weight, tiles_of(height, height))[:1]
        assert torch.equal(alone[0], together[row]), row


def test_padding_adds_zero_rows_only_where_they_are_missing():
    x = normal(5, 3)
    padded = pad_rows(x, 4)
    assert padded.shape == (8, 3) and torch.equal(padded[:5], x) and not padded[5:].any()
    assert pad_rows(padded, 4) is padded


@pytest.mark.parametrize("function", [torch.exp, torch.sigmoid, torch.cos, F.silu, F.softplus])
@pytest.mark.parametrize("width", [1, 2, 6, 8, 28])
def test_an_element_is_the_same_wherever_it_stands(width, function):
    rows = normal(40, width)
    whole = in_whole_vectors(function, rows)
    torch.testing.assert_close(whole, function(rows))
    for begin in (0, 8, 32):
        assert torch.equal(in_whole_vectors(function, rows[begin : begin + 8].clone()), whole[begin : begin + 8])
