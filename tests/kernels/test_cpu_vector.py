"""The sixteen-lane vectors: the same bits on every instruction set, and how far the functions lie from double precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from shoal.kernels.cpu import _cpu, available_isas

ISAS = available_isas()
NAMES = [
    "exp",
    "sigmoid",
    "silu",
    "softplus",
    "log1p_unit",
    "round_bf16",
    "round_s8",
    "sum",
    "largest",
    "split_quads",
    "transpose",
]

Array = NDArray[np.float32]
Wide = NDArray[np.float64]


def apply(isa: str, name: str, x: Array) -> Array:
    y = np.full_like(x, np.nan)
    _cpu.vector_map(isa, name, x, y)
    return y


def arguments(name: str) -> Array:
    """What the function is made for, edges included, a multiple of 256 numbers."""
    rng = np.random.default_rng(0)
    tiny = np.float32(1e-30)
    edges = np.array(
        [0, -0.0, 1, -1, 0.5, 1.5, 2.5, -2.5, tiny, -tiny, 87.2, -87.2, -87.4, 88.2, 88.4, 100, -100, 1e4, -1e4]
    )
    wide = np.concatenate([edges, rng.normal(0, 1, 3000), rng.normal(0, 20, 3000), rng.uniform(-0.01, 0.01, 2000)])
    if name == "log1p_unit":
        wide = np.concatenate([[0, 1, tiny, 0.5], rng.uniform(0, 1, 4000), 10 ** rng.uniform(-30, 0, 4000)])
    if name == "round_s8":
        wide = np.concatenate([np.arange(-127, 127.5, 0.5), rng.uniform(-127, 127, 8000)])
    return wide.astype(np.float32)[: len(wide) // 256 * 256]


def in_last_places(got: Array, want: Wide) -> float:
    """The largest error in units of the last place of the wanted number."""
    normal = np.abs(want) >= np.finfo(np.float32).tiny
    return float((np.abs(got - want)[normal] / np.spacing(np.abs(want[normal]).astype(np.float32))).max())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NAMES)
def test_same_bits_on_every_set(isa: str, name: str) -> None:
    x = arguments(name)
    assert np.array_equal(apply(isa, name, x).view(np.uint32), apply("scalar", name, x).view(np.uint32))


def exp(x: Wide) -> Wide:
    return np.exp(x)


def sigmoid(x: Wide) -> Wide:
    return 1 / (1 + np.exp(-x))


def silu(x: Wide) -> Wide:
    return x / (1 + np.exp(-x))


def softplus(x: Wide) -> Wide:
    return np.logaddexp(0, x)


@pytest.mark.parametrize(
    ("name", "truth", "places"),
    [
        ("exp", exp, 2),
        ("sigmoid", sigmoid, 3),
        ("silu", silu, 4),
        ("softplus", softplus, 4),
        ("log1p_unit", np.log1p, 3),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_error_in_last_places(name: str, truth: Callable[[Wide], Wide], places: float) -> None:
    """Within the range where the result is a normal number; exp, and with it the others, ends at +-87."""
    x = arguments(name)
    x = x[np.abs(x) < 87]
    x = x[: len(x) // 256 * 256]
    assert in_last_places(apply("scalar", name, x), truth(x.astype(np.float64))) < places


def test_beyond_the_range() -> None:
    x = np.zeros(256, np.float32)
    x[:4] = -88, -1e4, 89, 1e4
    assert (apply("auto", "exp", x)[:2] == 0).all()
    assert np.isfinite(apply("auto", "exp", x)[2:4]).all()
    assert (apply("auto", "sigmoid", x)[:2] < 1e-37).all()
    assert (apply("auto", "sigmoid", x)[2:4] == 1).all()
    assert np.array_equal(apply("auto", "softplus", x)[:4], np.float32([0, 0, 89, 1e4]))
    assert apply("auto", "exp", x)[4] == 1


def test_rounding_is_to_nearest_even() -> None:
    x = arguments("round_bf16")
    half = x.view(np.uint32) & 0xFFFF
    down, up = (x.view(np.uint32) - half).view(np.float32), (x.view(np.uint32) - half + 0x10000).view(np.float32)
    odd = (x.view(np.uint32) >> 16) & 1
    want = np.where((half > 0x8000) | ((half == 0x8000) & (odd == 1)), up, down)
    assert np.array_equal(apply("scalar", "round_bf16", x), want)
    y = arguments("round_s8")
    assert np.array_equal(apply("scalar", "round_s8", y), np.rint(y))


def test_sums_and_moves() -> None:
    x = np.random.default_rng(1).normal(0, 1, 512).astype(np.float32)
    lanes = x.reshape(-1, 16)
    total = lanes
    while total.shape[1] > 1:
        width = total.shape[1] // 2
        total = total[:, :width] + total[:, width:]
    assert np.array_equal(apply("scalar", "sum", x).reshape(-1, 16), np.repeat(total, 16, 1))
    assert np.array_equal(apply("scalar", "largest", x).reshape(-1, 16), np.repeat(lanes.max(1, keepdims=True), 16, 1))
    squares = x.reshape(-1, 16, 16)
    assert np.array_equal(apply("scalar", "transpose", x).reshape(-1, 16, 16), squares.transpose(0, 2, 1))
    quads = x.reshape(-1, 16, 4)
    assert np.array_equal(apply("scalar", "split_quads", x).reshape(-1, 4, 16), quads.transpose(0, 2, 1))


def test_what_is_refused() -> None:
    x = np.zeros(256, np.float32)
    with pytest.raises(ValueError, match="no operation"):
        apply("auto", "tanh", x)
    with pytest.raises(ValueError, match="multiple of 256"):
        apply("auto", "exp", np.zeros(255, np.float32))
