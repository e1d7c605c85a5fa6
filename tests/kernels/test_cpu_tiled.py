"""Products of many rows on every instruction set of this machine, bit for bit: against numpy, and against themselves.

No tolerance anywhere: the formats make sums exact inside a block, and every rounding after it is prescribed.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shoal.kernels.cpu import _cpu, available_isas

ISAS = available_isas()
FORMATS = ["int4", "int8", "bf16"]
LENGTHS = [*range(1, 26), 31, 36, 47, 48]
SET, ADD, SWIGLU = 0, 1, 2

Array = NDArray[np.float32]


def multiply(weights: Any, x: Array, y: Array, isa: str, store: int = SET, **panels: int) -> Array:
    out = y.copy()
    _cpu.tiled_multiply(weights.format, weights.data, weights.rows, weights.cols, x, out, store, isa, **panels)
    return out


def same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


def activations(rng: np.random.Generator, n: int, cols: int) -> Array:
    """Some columns far larger than the rest, as in real hidden states."""
    return (rng.standard_normal((n, cols)) * rng.choice([1, 30], cols, p=[0.98, 0.02])).astype(np.float32)


@pytest.fixture(scope="module", params=FORMATS)
def case(request: pytest.FixtureRequest, packing: ModuleType) -> tuple[Any, Array, Array]:
    """A matrix whose last panel and last block are not full, 48 rows to multiply, and the products."""
    rng = np.random.default_rng(1)
    weights = packing.random_weights(rng, packing.FORMATS[request.param], 72, 600)
    x = activations(rng, max(LENGTHS), 600)
    return weights, x, packing.product(weights, x)


@pytest.mark.parametrize("isa", ISAS)
def test_products_of_any_number_of_rows(case: tuple[Any, Array, Array], isa: str) -> None:
    weights, x, products = case
    for n in LENGTHS:
        assert same_bits(multiply(weights, x[:n], np.full((n, 72), 7, np.float32), isa), products[:n]), n


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [5, 29])
def test_panels_one_by_one(case: tuple[Any, Array, Array], isa: str, n: int) -> None:
    weights, x, products = case
    y = np.full((n, 72), 7, np.float32)
    for panel in (2, 0):
        y = multiply(weights, x[:n], y, isa, first_panel=panel, num_panels=1)
    assert same_bits(y[:, :32], products[:n, :32])
    assert (y[:, 32:64] == 7).all()
    assert same_bits(y[:, 64:], products[:n, 64:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [64, 72, 20])
@pytest.mark.parametrize("store", [ADD, SWIGLU])
@pytest.mark.parametrize("name", FORMATS)
def test_stores(packing: ModuleType, name: str, store: int, rows: int, isa: str) -> None:
    """A matrix of which fewer rows are published than packed: the gates and ups of SwiGLU are 16 rows apart all the same."""
    rng = np.random.default_rng(2)
    packed = packing.random_weights(rng, packing.FORMATS[name], packing.up(rows, 32), 256)
    x = activations(rng, 14, 256)
    y = rng.standard_normal((14, packed.rows if store == ADD else packed.rows // 2)).astype(np.float32)
    expected = packing.multiply(packed, x, y, store)
    results = rows if store == ADD else rows // 2
    out = multiply(replace(packed, rows=rows), x, np.ascontiguousarray(y[:, :results]), isa, store)
    assert same_bits(out, np.ascontiguousarray(expected[:, :results]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("n", "rows", "blocks"), [(530, 40, 2), (20, 8, 34), (17, 330, 3)])
def test_more_rows_and_columns_than_the_caches_hold(
    packing: ModuleType, n: int, rows: int, blocks: int, isa: str
) -> None:
    """256 rows are multiplied at a time; columns and panels only follow one another."""
    rng = np.random.default_rng(3)
    weights = packing.random_weights(rng, packing.INT4, rows, 256 * blocks)
    x = activations(rng, n, 256 * blocks)
    y = np.zeros((n, rows), np.float32)
    out = multiply(weights, x, y, isa)
    checked = slice(max(0, n - 24), n)  # numpy takes its time
    assert same_bits(out[checked], packing.product(weights, x[checked]))
    assert same_bits(out[:16], multiply(weights, x[:16], y[:16], isa))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["int4", "int8"])
@pytest.mark.parametrize("n", [3, 24])
def test_the_largest_sums(packing: ModuleType, name: str, n: int, isa: str) -> None:
    """All weights and all activations at the ends of their ranges: no step of 16 bits may wrap or saturate unnoticed."""
    scales = np.full((64, 1), 2.0**-10)
    rows = np.arange(64)[:, None] + np.zeros((1, 256), int)
    if name == "int4":
        codes = np.array([8, 15, 7, 9])[rows % 4][:, ::16]
        weights = packing.int4_weights(np.where(rows // 4 % 2, 0, 15), codes, scales)
    else:
        weights = packing.int8_weights(np.where(rows % 2, 127, -127), scales)
    x = np.where(np.arange(n)[:, None] % 2, 1, -1) * np.ones((n, 256))
    x[2::3, ::2] *= -1
    x = x.astype(np.float32)
    assert same_bits(multiply(weights, x, np.zeros((n, 64), np.float32), isa), packing.product(weights, x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["int4", "int8"])
def test_a_row_of_zeros_and_a_row_of_nan_keep_to_themselves(packing: ModuleType, name: str, isa: str) -> None:
    rng = np.random.default_rng(4)
    weights = packing.random_weights(rng, packing.FORMATS[name], 64, 512)
    x = activations(rng, 20, 512)
    x[3], x[7, 300] = 0, np.nan
    out = multiply(weights, x, np.ones((20, 64), np.float32), isa)
    assert (out[3] == 0).all() and np.isnan(out[7]).all()
    rest = [i for i in range(20) if i not in (3, 7)]
    assert same_bits(out[rest], packing.product(weights, x[rest]))


@pytest.mark.parametrize("isa", ISAS)
def test_few_rows_are_the_direct_products(case: tuple[Any, Array, Array], isa: str) -> None:
    weights, x, _ = case
    direct = np.zeros((20, 72), np.float32)
    _cpu.direct_multiply(weights.format, weights.data, weights.rows, weights.cols, x[:20], direct, SET, isa)
    assert same_bits(multiply(weights, x[:20], np.zeros((20, 72), np.float32), isa), direct)


def test_no_rows_and_wrong_arguments(packing: ModuleType) -> None:
    weights = packing.random_weights(np.random.default_rng(5), packing.INT4, 32, 256)
    none = np.zeros((0, 32), np.float32)
    assert multiply(weights, np.zeros((0, 256), np.float32), none, "auto").shape == (0, 32)
    x, y = np.zeros((2, 256), np.float32), np.zeros((2, 32), np.float32)
    for wrong in (
        {"format": 3},
        {"store": 3},
        {"rows": 33},
        {"x": x[:, :255].copy()},
        {"first_panel": 2},
        {"num_panels": 2},
    ):
        arguments: dict[str, Any] = {"format": 0, "weights": weights.data, "rows": 32, "cols": 256, "x": x, "out": y}
        with pytest.raises(ValueError):
            _cpu.tiled_multiply(**(arguments | wrong))
    with pytest.raises(TypeError):
        _cpu.tiled_multiply(0, weights.data, 32, 256, x.astype(np.float64), y)  # type: ignore[arg-type]
    with pytest.raises(_cpu.UnsupportedIsa):
        multiply(weights, x, y, "avx3")


# --- object code -----------------------------------------------------------------------------------------------------

JUMP = re.compile(r"^\s*([0-9a-f]+):\s+(j[a-z]+)\s+([0-9a-f]+)")
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(?:\{vex\}\s+)?(\S+)\s*(.*)$")


def loops(listing: str) -> list[list[tuple[str, str]]]:
    """Instructions of each innermost loop of at most 400: what lies between a backward jump and where it goes."""
    body: list[tuple[int, str, str]] = []
    found = []
    for line in listing.splitlines():
        if not (match := INSTRUCTION.match(line)):
            continue
        body.append((int(match[1], 16), match[2], match[3]))
        if (jump := JUMP.match(line)) and int(jump[3], 16) <= body[-1][0]:
            inside = [(name, operands) for at, name, operands in body[-400:] if at >= int(jump[3], 16)]
            if body[-len(inside)][0] == int(jump[3], 16) and not any(name.startswith("j") for name, _ in inside[:-1]):
                found.append(inside)
    return found


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64")
    or shutil.which("objdump") is None
    or not _cpu.__file__.endswith("so"),
    reason="needs objdump and a module for x86-64",
)
def test_the_inner_loops_keep_their_sums_in_registers() -> None:
    """Compilers spill the accumulators of these loops when left to themselves, at half of the speed."""
    assert _cpu.__file__ is not None
    command = ["objdump", "-d", "--no-show-raw-insn", _cpu.__file__]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tiles = set()
    for loop in loops(listing):
        names = [name for name, _ in loop]
        per_step, rest = divmod(names.count("vpdpbusd"), 4)  # an iteration is four steps
        if per_step >= 8 and rest == 0 and "vpbroadcastd" in names:
            assert not any("%rsp" in operands for _, operands in loop), loop
            tiles.add((per_step, any("%zmm" in operands for _, operands in loop), "vpmullw" in names))
    alone = {(24, True, False), (16, True, False), (8, True, False), (12, False, False), (8, False, False)}
    assert alone | {(24, True, True), (16, True, True)} <= tiles
