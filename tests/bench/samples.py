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
    limit_per_s: float | None = None
    """What the machine could do at most right before and behind, where that was measured."""

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


@dataclass(frozen=True)
class Limit:
    """Medians over the repetitions that count: the limit beside each, and each one's value over its own limit."""

    per_s: float
    value_share: float
    quiet: int = 0
    taken: int = 0


def counted(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The undisturbed; all where there is none."""
    with_values = [one for one in measurements if one.values]
    return [one for one in with_values if not one.disturbed] or with_values


def summarise(measurements: Sequence[Measurement]) -> Summary | None:
    """None without values."""
    values = [value for one in counted(measurements) for value in one.values]
    if not values:
        return None
    median = statistics.median(values)
    quiet = sum(len(one.values) for one in measurements if not one.disturbed)
    taken = sum(len(one.values) for one in measurements)
    return Summary(median, (max(values) - min(values)) / 2 / median if median else 0.0, quiet, taken)


def beside_limits(measurements: Sequence[Measurement]) -> Limit | None:
    """None where no limit was measured beside. Each such measurement has one value."""
    pairs = [(one.values[0], one.limit_per_s) for one in counted(measurements) if one.limit_per_s]
    if not pairs:
        return None
    with_limits = [one for one in measurements if one.limit_per_s]
    return Limit(
        per_s=statistics.median(limit for _, limit in pairs),
        value_share=statistics.median(value / limit for value, limit in pairs),
        quiet=sum(not one.disturbed for one in with_limits),
        taken=len(with_limits),
    )
