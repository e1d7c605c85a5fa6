"""Sizes and engine options."""

from __future__ import annotations

import pytest

from shoal.agent.errors import BadOption
from shoal.agent.options import parse_size, to_engine_options


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 << 30),
        ("1.5 gib", 3 << 29),
        ("500MB", 500_000_000),
        ("1073741824", 1 << 30),
        ("64KiB", 65536),
        ("2g", 2_000_000_000),
        ("1TiB", 1 << 40),
        ("7b", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "GiB", "-4GiB", "4XB", "4 GiB x", "1e9", "0.0000001", "9999999TiB", "4GiBs"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(BadOption):
        parse_size(text)


def test_engine_options_keep_their_defaults() -> None:
    given = {"backend": None, "dtype": "bf16", "format": None, "context": None, "parallel": 2, "memory": 5}
    options = to_engine_options(given)
    assert (options.dtype, options.parallel, options.memory, options.format) == ("bf16", 2, 5, "auto")


def test_an_option_that_the_engine_refuses() -> None:
    with pytest.raises(BadOption, match="--parallel"):
        to_engine_options({"parallel": 10**9})
