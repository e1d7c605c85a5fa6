"""What this machine can do at most, measured: reading memory, products of 8-bit integers, f32 multiply-adds.

A kernel's speed means something only beside these, measured in the same minutes: a shared machine changes by the hour.
Repetitions during which the system took a processor away are discarded; what remains gives the median.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np

from . import _cpu

__all__ = ["Rate", "dot_int8_rate", "fma_f32_rate", "read_rate"]

READ_LOOPS = 4
ROUNDS = 100_000  # of a compute loop: about a millisecond, so that a quiet moment holds many


@dataclass(frozen=True)
class Rate:
    """Bytes or operations a second. `kept` of `taken` repetitions were undisturbed; if none was, the fastest counts."""

    per_s: float
    kept: int
    taken: int


def _rate(amount: float, repetitions: list[tuple[float, int]]) -> Rate:
    quiet = [seconds for seconds, switches in repetitions if switches == 0]
    seconds = statistics.median(quiet) if quiet else min(seconds for seconds, _ in repetitions)
    return Rate(amount / seconds, len(quiet), len(repetitions))


def read_rate(isa: str, threads: int, *, num_bytes: int = 512 << 20, repetitions: int = 15) -> Rate:
    """Streaming read in bytes a second by the best of the loops. The caches do not count: read several times their size."""
    data = np.ones(num_bytes, np.uint8)
    amount = float(num_bytes // threads // 1024 * 1024 * threads)
    rates = [_rate(amount, _cpu.time_read(isa, data, loop, threads, repetitions + 1)[1:]) for loop in range(READ_LOOPS)]
    return max(rates, key=lambda rate: rate.per_s)


def dot_int8_rate(isa: str, threads: int, *, repetitions: int = 60) -> Rate:
    """Operations a second (a multiply and an add are two) of 8-bit integer products summed in registers."""
    amount = float(_cpu.limit_operations(isa)[0] * ROUNDS * threads)
    return _rate(amount, _cpu.time_dot_int8(isa, ROUNDS, threads, repetitions))


def fma_f32_rate(isa: str, threads: int, *, repetitions: int = 60) -> Rate:
    """Operations a second of f32 multiply-adds in registers."""
    amount = float(_cpu.limit_operations(isa)[1] * ROUNDS * threads)
    return _rate(amount, _cpu.time_fma_f32(isa, ROUNDS, threads, repetitions))
