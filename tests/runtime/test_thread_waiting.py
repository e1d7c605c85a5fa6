"""Threads of a step sleep while they wait, and whoever says otherwise is heard."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import os, sys
from shoal.runtime.thread_waiting import wait_passively
assert "torch" not in sys.modules
wait_passively()
print(os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"])
"""


def printed(**given: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | given
    done = subprocess.run(
        [sys.executable, "-P", "-c", CODE], env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout.strip()


def test_waiting_is_passive_unless_told_otherwise() -> None:
    assert printed() == "PASSIVE 0"
    assert printed(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE 0"
