"""Which native kernels this build and this machine have."""

from __future__ import annotations

from pathlib import Path

from . import _cpu
from ._cpu import UnsupportedIsa, Vocabulary

__all__ = ["UnsupportedIsa", "Vocabulary", "available_isas", "best_isa", "choose_isa", "module_path"]


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this build has and this machine can run, best first; the last is "scalar"."""
    return _cpu.available_isas()


def best_isa() -> str:
    """What "auto" stands for on this machine."""
    return _cpu.available_isas()[0]


def choose_isa(asked: str) -> str:
    """The set that an engine takes for this name. Raises UnsupportedIsa where there is none."""
    return _cpu.choose_isa(asked)


def module_path() -> Path:
    """The compiled module's file: its bytes tell builds apart."""
    assert _cpu.__file__ is not None
    return Path(_cpu.__file__)
