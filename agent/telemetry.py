"""What the agent measures of its machine each second: resident memory, processor load, battery, watts.

A value that cannot be had is None.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

from .power import PowerReading, PowerSensors

SAMPLE_INTERVAL_S = 1.0
MIN_LOAD_INTERVAL_S = 0.2


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. Ratios are 0 to 1."""

    agent_resident_bytes: int
    engine_resident_bytes: int | None
    cpu_load_ratio: float | None
    battery_ratio: float | None
    on_battery: bool | None
    power: tuple[PowerReading, ...]


class Telemetry:
    """Reads the sensors. `root` is `/`, or a recorded machine in tests."""

    def __init__(self, root: Path, now: float) -> None:
        self._sensors = PowerSensors(root, now)
        self._own = psutil.Process(os.getpid())
        self._last_at = now
        psutil.cpu_percent(interval=None)  # sets the mark that the next call is measured from

    def sample(self, engine_pid: int | None, now: float) -> Sample:
        """All of it, in well under a millisecond a sensor."""
        battery = _battery()
        # Over a shorter time than this the clock's own grain is what would be measured.
        elapsed_s, self._last_at = now - self._last_at, now
        cpu_percent = psutil.cpu_percent(interval=None)
        return Sample(
            agent_resident_bytes=self._own.memory_info().rss,
            engine_resident_bytes=None if engine_pid is None else resident_bytes(engine_pid),
            cpu_load_ratio=cpu_percent / 100 if elapsed_s >= MIN_LOAD_INTERVAL_S else None,
            battery_ratio=None if battery is None else battery[0],
            on_battery=None if battery is None else battery[1],
            power=tuple(self._sensors.read(now)),
        )


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process, None when it is gone or hidden."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def _battery() -> tuple[float, bool | None] | None:
    """Charge ratio and whether the machine runs on it, None without a battery."""
    read = getattr(psutil, "sensors_battery", None)  # not on every platform
    try:
        battery = None if read is None else read()
    except (OSError, psutil.Error, ValueError):
        return None
    if battery is None:
        return None
    return battery.percent / 100, None if battery.power_plugged is None else not battery.power_plugged
