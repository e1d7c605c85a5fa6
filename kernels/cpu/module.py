"""Which native kernels this build and this machine have."""

from __future__ import annotations

from . import _cpu
from ._cpu import UnsupportedIsa

__all__ = ["UnsupportedIsa", "available_isas", "best_isa"]


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this build has and this machine can run, best first; the last is "scalar"."""
    return _cpu.available_isas()


def best_isa() -> str:
    """What "auto" stands for on this machine."""
    return _cpu.available_isas()[0]
