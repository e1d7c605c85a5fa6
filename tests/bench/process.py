"""Runs one contestant as a process of its own and says what the system knows of it: seconds, switches, memory."""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class ContestantFailed(Exception):
    """The process ended with an error; the message is its last words."""


@dataclass(frozen=True)
class Finished:
    """`seconds` from before the process exists until it is gone; `switches`: involuntary, of it and of its children."""

    output: str
    seconds: float
    switches: int
    resident_bytes: int


def run(command: Sequence[str], environment: Mapping[str, str] | None = None, *, timeout_s: float = 900.0) -> Finished:
    """Raises ContestantFailed, on a timeout too. Nothing of ours runs meanwhile: waiting would take a processor away."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        child = subprocess.Popen(
            ["timeout", "--kill-after=5", f"{timeout_s:.0f}", *command],
            stdout=out, stderr=errors, stdin=subprocess.DEVNULL, env={**os.environ, **(environment or {})},
        )  # fmt: skip
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-3:]
            raise ContestantFailed(f"{command[0]} ended with {child.returncode}: {' | '.join(last)}")
        out.seek(0)
        return Finished(out.read().decode(errors="replace"), seconds, usage.ru_nivcsw, usage.ru_maxrss * 1024)
