"""Watts from sensors that exist: energy counters of the processor package, the battery's discharge, hardware monitors.

Linux only so far. A sensor that is missing, unreadable or stalled gives no reading; nothing is ever zero for want of one.
Each reading names its domain and its provenance:

    counter_model   a counter computed inside the chip (powercap, RAPL), not a meter
    measured_rail   a sensor on a supply rail or a board (hwmon)
    measured_wall   would be a meter at the plug; none is read yet
    battery         what leaves the battery, screen and losses included; only while discharging
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAX_PLAUSIBLE_WATTS = 3000.0
"""A difference that would mean more is a counter that was reset, not power."""

MIN_INTERVAL_S = 0.05
"""Two looks at a counter closer than this give no difference worth a number."""

MAX_SENSORS = 64


@dataclass(frozen=True, slots=True)
class PowerReading:
    """Watts of one domain now. `joules_total` is what a counter has added up since the agent began, where there is one."""

    domain: str
    provenance: str
    watts: float
    joules_total: float | None = None


@dataclass(slots=True)
class _Counter:
    """One energy counter in microjoules that wraps at `range_uj`."""

    domain: str
    path: Path
    range_uj: int
    last_uj: int
    last_at: float
    joules_total: float = 0.0

    def read(self, now: float) -> PowerReading | None:
        elapsed_s = now - self.last_at
        if elapsed_s < MIN_INTERVAL_S:
            return None
        value_uj = _integer(self.path)
        if value_uj is None:
            return None
        step_uj = value_uj - self.last_uj
        if step_uj < 0:
            step_uj += self.range_uj
        self.last_uj, self.last_at = value_uj, now
        watts = step_uj / 1e6 / elapsed_s
        # A counter that does not move while the machine runs is stalled; a huge step is a reset. Both are "not known".
        if step_uj <= 0 or watts > MAX_PLAUSIBLE_WATTS:
            return None
        self.joules_total += step_uj / 1e6
        return PowerReading(self.domain, "counter_model", watts, self.joules_total)


class PowerSensors:
    """All sensors below `root` (the machine's own, or a recorded one in tests). `now` is monotonic seconds."""

    def __init__(self, root: Path, now: float) -> None:
        self._counters = _find_counters(root / "sys/class/powercap", now)
        self._supplies = _children(root / "sys/class/power_supply")
        self._monitors = _find_monitors(root / "sys/class/hwmon")

    def read(self, now: float) -> list[PowerReading]:
        """One look at every sensor. Counters need two looks before the first reading."""
        readings = [reading for counter in self._counters if (reading := counter.read(now)) is not None]
        readings += [reading for supply in self._supplies if (reading := _battery(supply)) is not None]
        for domain, path in self._monitors:
            microwatts = _integer(path)
            if microwatts is not None and microwatts > 0:
                readings.append(PowerReading(domain, "measured_rail", microwatts / 1e6))
        return readings


def _find_counters(folder: Path, now: float) -> list[_Counter]:
    """Package domains and `psys` only: core and uncore lie inside the package, the mmio interface mirrors it."""
    found: dict[str, _Counter] = {}
    for zone in _children(folder):
        if zone.name.count(":") != 1 or "mmio" in zone.name:
            continue
        name, path = _text(zone / "name"), zone / "energy_uj"
        value_uj, range_uj = _integer(path), _integer(zone / "max_energy_range_uj")
        if name is None or value_uj is None or range_uj is None or range_uj <= 0:
            continue  # root only on most systems: then it is absent
        if name.startswith("package") or name == "psys":
            # Several zones of one name are several views of one package on some processors.
            found.setdefault(name, _Counter(name, path, range_uj, value_uj, now))
    return list(found.values())


def _battery(supply: Path) -> PowerReading | None:
    if _text(supply / "type") != "Battery" or _text(supply / "status") != "Discharging":
        return None
    if _text(supply / "scope") == "Device":
        return None  # a mouse's or a headset's
    microwatts = _integer(supply / "power_now")
    if microwatts is None:
        microamps, microvolts = _integer(supply / "current_now"), _integer(supply / "voltage_now")
        if microamps is None or microvolts is None:
            return None
        microwatts = microamps * microvolts // 1_000_000
    # Some drivers give a discharge a negative sign.
    return PowerReading(f"battery:{supply.name}", "battery", abs(microwatts) / 1e6) if microwatts else None


def _find_monitors(folder: Path) -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    for monitor in _children(folder):
        name = _text(monitor / "name") or monitor.name
        for kind in ("average", "input"):
            paths = sorted(monitor.glob(f"power[0-9]*_{kind}"))
            for path in paths:
                label = _text(path.with_name(path.name.replace(f"_{kind}", "_label")))
                found.append((f"{name}:{label or path.name.removesuffix(f'_{kind}')}", path))
            if paths:
                break  # the average says more than the instant; never both
    return found[:MAX_SENSORS]


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:MAX_SENSORS]
    except OSError:
        return []


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _integer(path: Path) -> int | None:
    text = _text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
