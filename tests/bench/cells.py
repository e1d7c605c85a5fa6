"""What is measured and what is wanted, as data. Pure.

A cell is one figure of ours: size, format, metric, threads, instruction set. Each of its targets makes a row of
docs/performance.json: against a peer, against a limit of the machine, against ourselves, or in absolute terms.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

LLAMA, LLAMA_AVX2, IK, TRANSFORMERS = "llama.cpp", "llama.cpp without AVX-512", "ik_llama.cpp", "transformers"
BEST_ISA = "shoal, best instruction set"
READ, INT8 = "read limit", "int8 limit"
ABSOLUTE = "absolute"

PEER_TYPES = {
    LLAMA: {"int4": "Q4_0", "int8": "Q8_0", "bf16": "BF16"},
    LLAMA_AVX2: {"int4": "Q4_0", "int8": "Q8_0", "bf16": "BF16"},
    IK: {"int4": "IQ4_KS", "int8": "Q8_0", "bf16": "BF16"},
    TRANSFORMERS: {"bf16": "bf16"},
}
UNITS = {"prefill": "tok/s", "decode": "tok/s", "first_token": "s", "resident": "MB", "token_bytes": "MB"}
LESS_IS_BETTER = {"first_token", "resident", "token_bytes"}


@dataclass(frozen=True)
class Cell:
    """`tokens`: of the prompt for prefill and first_token, the depth for decode, 0 for the others."""

    size: str
    format: str
    metric: str
    tokens: int
    threads: int
    isa: str = "auto"

    @property
    def key(self) -> str:
        return f"{self.size}/{self.format}/{self.metric}-{self.tokens}/t{self.threads}/{self.isa}"

    @property
    def unit(self) -> str:
        return UNITS[self.metric]


@dataclass(frozen=True)
class Target:
    """`wanted`: the least ratio to a peer (for metrics where less is better: how many times less), the least share of a
    limit, or the most in absolute terms. None: recorded, nothing wanted. `wanted_wide` instead where reading is wide."""

    against: str
    wanted: float | None = None
    wanted_wide: float | None = None


WIDE_READ_PER_S = 60e9
"""Below, memory is so narrow that a token's bytes decide alone; above, the work between the reads counts too."""

_WANTED: dict[tuple[str, str, str, int, int], tuple[Target, ...]] = {
    ("0.8B", "int4", "decode", 0, 2): (Target(LLAMA, 1.9), Target(IK, 1.2), Target(READ, 0.88, 0.83)),
    ("0.8B", "int4", "decode", 0, 1): (Target(LLAMA), Target(IK, 1.6), Target(READ)),
    ("0.8B", "int4", "token_bytes", 0, 2): (Target(ABSOLUTE, 435.0),),
    ("4B", "int4", "decode", 0, 2): (Target(LLAMA, 1.4), Target(IK, 1.08), Target(READ, 0.90, 0.86)),
    ("0.8B", "int8", "decode", 0, 2): (Target(LLAMA, 1.5), Target(IK, 1.15), Target(READ)),
    ("0.8B", "bf16", "decode", 0, 2): (Target(LLAMA, 1.25), Target(TRANSFORMERS), Target(READ)),
    ("4B", "int8", "decode", 0, 2): (Target(LLAMA), Target(IK), Target(READ, 0.90)),
    ("4B", "bf16", "decode", 0, 2): (Target(READ, 0.90),),
    ("0.8B", "int4", "prefill", 512, 2): (Target(LLAMA, 4.2), Target(IK, 1.4), Target(INT8, 0.65)),
    ("0.8B", "int4", "prefill", 2048, 2): (Target(LLAMA, 4.2), Target(IK, 1.4), Target(INT8, 0.60)),
    ("4B", "int4", "prefill", 512, 2): (Target(LLAMA, 3.2), Target(IK, 1.4), Target(INT8, 0.75)),
    ("4B", "int4", "prefill", 2048, 2): (Target(LLAMA, 3.2), Target(IK, 1.4), Target(INT8, 0.75)),
    ("0.8B", "int4", "first_token", 16, 2): (Target(LLAMA, 2.0), Target(IK)),
    ("4B", "int4", "first_token", 16, 2): (Target(ABSOLUTE, 0.6), Target(LLAMA)),
}
_ISA_DECODE = {"avxvnni": 0.90, "avx2": 0.80}
_ISA_PEER = 1.3


def targets_of(cell: Cell) -> tuple[Target, ...]:
    """The comparisons of a cell, those that nothing is wanted of too."""
    if cell.isa != "auto":
        own = (Target(BEST_ISA, _ISA_DECODE[cell.isa] if cell.metric == "decode" else None),)
        return (*own, Target(LLAMA_AVX2, _ISA_PEER), Target(READ if cell.metric == "decode" else INT8))
    if cell.metric == "resident":
        return (Target(LLAMA),)
    key = (cell.size, cell.format, cell.metric, cell.tokens, cell.threads)
    if key in _WANTED:
        return _WANTED[key]
    limit = {"prefill": (Target(INT8),), "decode": (Target(READ),)}.get(cell.metric, ())
    peers = (Target(LLAMA), Target(IK)) + (
        (Target(TRANSFORMERS),) if cell.format == "bf16" and cell.size == "0.8B" else ()
    )
    return (*peers, *limit)


def all_cells() -> Iterator[Cell]:
    """The important ones first: a run with a budget ends somewhere in this order."""
    for size in ("0.8B", "4B"):
        yield Cell(size, "int4", "decode", 0, 2)
        yield Cell(size, "int4", "prefill", 512, 2)
        yield Cell(size, "int4", "first_token", 16, 2)
        yield Cell(size, "int8", "decode", 0, 2)
        if size == "0.8B":
            yield Cell(size, "int4", "token_bytes", 0, 2)
            yield Cell(size, "int4", "decode", 0, 1)
            yield Cell(size, "bf16", "decode", 0, 2)
        yield Cell(size, "int4", "prefill", 2048, 2)
        for isa, (metric, tokens) in product(_ISA_DECODE, (("decode", 0), ("prefill", 512))):
            yield Cell(size, "int4", metric, tokens, 2, isa)
    yield Cell("4B", "bf16", "decode", 0, 2)
    yield Cell("0.8B", "int4", "prefill", 512, 1)
    for size in ("0.8B", "4B"):
        yield Cell(size, "int4", "decode", 4096, 2)
    for metric, tokens in (("decode", 0), ("prefill", 512), ("first_token", 16)):
        yield Cell("2B", "int4", metric, tokens, 2)
    yield Cell("9B", "int4", "decode", 0, 2)
    for format, tokens in product(("int8", "bf16"), (512, 2048)):
        yield Cell("0.8B", format, "prefill", tokens, 2)
    for size, format in product(("0.8B", "4B"), ("int8", "int4")):
        yield Cell(size, format, "resident", 0, 2)
    yield Cell("2B", "int8", "decode", 0, 2)
    yield Cell("4B", "int8", "prefill", 512, 2)
    yield Cell("0.8B", "bf16", "first_token", 16, 2)
