"""What repetitions say: which of them count, and their median. Pure.

A machine that is shared takes processors away from what is measured. The system counts that as involuntary context
switches, and a repetition that met more than a trickle of them says nothing about the program: it is discarded.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MAX_SWITCHES_PER_S = 10.0
"""A competitor for a core causes a hundred or more a second, each of milliseconds; the kernel's own chores a few, each of
microseconds. None at all would discard every repetition of more than a second."""


@dataclass(frozen=True)
class Measurement:
    """One process or one loop: what it said of its repetitions, how long it took, and how often it lost a processor."""

    values: tuple[float, ...]
    seconds: float
    switches: int

    @property
    def disturbed(self) -> bool:
        return self.switches > MAX_SWITCHES_PER_S * self.seconds


@dataclass(frozen=True)
class Summary:
    """The median of the undisturbed values. Where all were disturbed, of all, and `quiet` says so with 0."""

    median: float
    spread: float
    """Half the distance between the largest and the smallest value that counts, relative to the median."""
    quiet: int
    taken: int

    def to_json(self) -> dict[str, float | int]:
        return {"quiet": self.quiet, "taken": self.taken, "spread": round(self.spread, 3)}


def summarise(measurements: Sequence[Measurement]) -> Summary | None:
    """None without values."""
    taken = [value for one in measurements for value in one.values]
    quiet = [value for one in measurements if not one.disturbed for value in one.values]
    counted = quiet or taken
    if not counted:
        return None
    median = statistics.median(counted)
    return Summary(median, (max(counted) - min(counted)) / 2 / median if median else 0.0, len(quiet), len(taken))
