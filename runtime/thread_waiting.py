"""How the threads of a step wait for each other."""

from __future__ import annotations

import os


def wait_passively() -> None:
    """Let OpenMP threads sleep at a barrier instead of spinning. Call before torch is imported; what is set already stays.

    Spinning wins microseconds on an idle machine. Where something else has a core, each barrier then lasts as long as the
    scheduler's turn: the pocket model with two threads beside two busy processes decoded 30 tokens/s spinning, 100 sleeping.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
