"""The native bf16 matrix-vector product against numpy in f64, for every instruction set of this machine."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from shoal.kernels import cpu

SIZES = (0, 1, 7, 8, 63, 64, 65, 257)
ISAS = cpu.available_isas()


def to_bf16(values):
    """f32 array -> uint16 bits of its bfloat16, cut towards zero (the tests need some bf16 values, not the nearest)."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def to_f64(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def random_case(num_out, num_in, n=None, seed=0):
    rng = np.random.default_rng(seed)
    w = to_bf16(rng.standard_normal((num_out, num_in)))
    x = rng.standard_normal(num_in if n is None else (n, num_in)).astype(np.float32)
    return w, x


def assert_close(y, w, x):
    """Summing k products in f32, in whatever order, errs by at most (k + 1) half-ulps of the sum of magnitudes."""
    w64, x64 = to_f64(w), x.astype(np.float64)
    bound = (w.shape[1] + 1) * 2.0**-24 * (np.abs(x64) @ np.abs(w64).T)
    assert y.dtype == np.float32
    assert np.all(np.abs(y - x64 @ w64.T) <= bound)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("num_out", "num_in"), list(itertools.product(SIZES, SIZES)))
def test_one_row(isa, num_out, num_in):
    w, x = random_case(num_out, num_in)
    y = cpu.matvec_bf16(w, x, isa=isa)
    assert y.shape == (num_out,)
    assert_close(y, w, x)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_rows_of_a_batch_have_the_bits_of_a_single_row(isa, n):
    w, x = random_case(33, 65, n)
    y = cpu.matvec_bf16(w, x, isa=isa)
    assert y.shape == (n, 33)
    assert_close(y, w, x)
    for row, alone in zip(y, x, strict=True):
        assert row.tobytes() == cpu.matvec_bf16(w, alone, isa=isa).tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_no_column_is_forgotten_or_read_twice(isa):
    """Powers of two that a f32 holds exactly: each column has its own bit in the sum."""
    for num_in in range(1, 25):
        w = to_bf16(np.ones((1, num_in)))
        x = 2.0 ** np.arange(num_in, dtype=np.float32)
        assert cpu.matvec_bf16(w, x, isa=isa)[0] == 2.0**num_in - 1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_in", [1, 8, 33])
def test_special_values_pass_through(isa, num_in):
    w = np.zeros((7, num_in), np.uint16)
    smallest_normal, smallest_subnormal = 2.0**-126, 2.0**-133
    w[:, -1] = to_bf16(np.array([np.inf, -np.inf, np.nan, smallest_normal, smallest_subnormal, 1.0, 0.0]))
    x = np.ones(num_in, np.float32)
    y = cpu.matvec_bf16(w, x, isa=isa)
    np.testing.assert_array_equal(y, np.array([np.inf, -np.inf, np.nan, 2.0**-126, 2.0**-133, 1, 0], np.float32))
    x[-1] = 2.0**-149  # the smallest f32 of all: x is not flushed to zero either
    assert cpu.matvec_bf16(w, x, isa=isa)[5] == np.float32(2.0**-149)
    x[-1] = np.inf
    assert np.isnan(cpu.matvec_bf16(w, x, isa=isa)[6])  # 0 * inf


def test_instruction_sets_agree():
    w, x = random_case(65, 257, 3)
    for isa in ISAS:
        np.testing.assert_allclose(
            cpu.matvec_bf16(w, x, isa=isa), cpu.matvec_bf16(w, x, isa="scalar"), rtol=1e-4, atol=1e-4
        )


def test_the_list_of_instruction_sets():
    assert ISAS[-1] == "scalar"
    assert cpu.best_isa() == ISAS[0]
    assert len(set(ISAS)) == len(ISAS)
    w, x = random_case(9, 65)
    assert cpu.matvec_bf16(w, x).tobytes() == cpu.matvec_bf16(w, x, isa=cpu.best_isa()).tobytes()


def test_out_is_filled_and_returned():
    w, x = random_case(5, 9)
    out = np.full(5, np.nan, np.float32)
    assert cpu.matvec_bf16(w, x, out) is out
    assert_close(out, w, x)


def test_read_only_memory_and_unaligned_views_are_read_in_place():
    w, x = random_case(6, 33)
    w.flags.writeable = x.flags.writeable = False
    expected = cpu.matvec_bf16(w, x)
    shifted = np.empty(w.nbytes + 2, np.uint8)[2:].view(np.uint16).reshape(w.shape)
    shifted[:] = w
    assert cpu.matvec_bf16(shifted, x).tobytes() == expected.tobytes()
    assert cpu.matvec_bf16(memoryview(w), x).tobytes() == expected.tobytes()


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    w, x = random_case(6, 33)
    w_tensor, x_tensor = torch.from_numpy(w).view(torch.bfloat16), torch.from_numpy(x)
    out = torch.empty(6)
    assert cpu.matvec_bf16(w_tensor, x_tensor, out) is out
    assert out.numpy().tobytes() == cpu.matvec_bf16(w, x).tobytes()


W, X, OUT = np.zeros((4, 8), np.uint16), np.zeros(8, np.float32), np.zeros(4, np.float32)
READ_ONLY = np.zeros(4, np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("error", "message", "w", "x", "out"),
    [
        (TypeError, "w must be bfloat16", W.astype(np.float32), X, None),
        (TypeError, "w must be bfloat16", W.astype(np.int16), X, None),
        (TypeError, "x must be float32", W, X.astype(np.float64), None),
        (TypeError, "x must be float32", W, X.view(np.int32), None),
        (TypeError, "out must be float32", W, X, OUT.astype(np.float64)),
        (TypeError, "arrays", [[1, 2]], X, None),
        (TypeError, "arrays", np.uint16(3), X, None),
        (TypeError, "incompatible", [[1, 2]], X, OUT),
        (TypeError, "incompatible", W, X, READ_ONLY),
        (ValueError, r"got w \[4, 8\] and x \[7\]", W, X[:7], None),
        (ValueError, r"got w \[8\]", W[0], X, None),
        (ValueError, r"x \[1, 1, 8\]", W, X[None, None], None),
        (ValueError, r"out \[3\]", W, X, OUT[:3]),
        (ValueError, r"out \[1, 4\]", W, X, OUT[None]),
        (ValueError, r"out \[4\]", W, X[None], OUT),
        (ValueError, r"out \[2, 4\]", W, np.zeros((3, 8), np.float32), np.zeros((2, 4), np.float32)),
        (ValueError, "w must be C-contiguous", np.zeros((8, 4), np.uint16).T, X, None),
        (ValueError, "w must be C-contiguous", np.zeros((4, 16), np.uint16)[:, ::2], X, None),
        (ValueError, "x must be C-contiguous", W, np.zeros(16, np.float32)[::2], None),
        (ValueError, "out must be C-contiguous", W, X, np.zeros(8, np.float32)[::2]),
    ],
)
def test_wrong_arguments(error, message, w, x, out):
    with pytest.raises(error, match=message):
        cpu.matvec_bf16(w, x, out)


def test_unknown_instruction_set():
    with pytest.raises(cpu.UnsupportedIsa, match=r"no kernels named 'sse9'.*auto.* scalar"):
        cpu.matvec_bf16(W, X, isa="sse9")
    assert issubclass(cpu.UnsupportedIsa, ValueError)


def test_importing_the_package_loads_nothing():
    code = "import sys, shoal.kernels; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name for name in loaded if name.startswith("shoal")} == {"shoal", "shoal.kernels"}
    assert not {"numpy", "torch"} & set(loaded)
