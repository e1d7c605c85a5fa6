"""How the console writes numbers, and how it finds rates in counters. What is not known is a dash."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

DASH = "—"

MIN_INTERVAL_S = 1.0
"""Two looks closer than this give no steady rate: the last one stands."""

MAX_INTERVAL_S = 30.0
"""Looks further apart say nothing about now."""


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def size(num_bytes: float | None) -> str:
    """Binary units."""
    if num_bytes is None:
        return DASH
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" or num_bytes >= 100 else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} TiB"


def duration(seconds: float | None) -> str:
    """Milliseconds below a second, minutes above a hundred of them."""
    if seconds is None:
        return DASH
    if seconds < 0.001:
        return f"{seconds * 1000:.2f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def watts(value: float | None) -> str:
    """Watts, or a dash where there is no sensor."""
    return DASH if value is None else f"{value:.3g} W"


def clock(epoch_s: float) -> str:
    """Time of day, in the controller's zone."""
    return time.strftime("%H:%M:%S", time.localtime(epoch_s))


def instant(epoch_s: float) -> str:
    """For machines: RFC 3339."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch_s))


FILTERS: dict[str, Callable[..., Any]] = {
    "number": number,
    "size": size,
    "duration": duration,
    "watts": watts,
    "clock": clock,
    "instant": instant,
}


class Rates:
    """Growth a second of one counter a node, between looks. Bounded by the nodes of the last look."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int, float | None]] = {}

    def observe(self, counters: Mapping[str, int | None], now: float) -> dict[str, float]:
        """The rates that are known; `now` in seconds, monotonic."""
        looked: dict[str, tuple[float, int, float | None]] = {}
        for key, value in counters.items():
            if value is None:
                continue
            at, before, rate = self._last.get(key, (now, value, None))
            interval_s = now - at
            if value < before or interval_s > MAX_INTERVAL_S:
                looked[key] = (now, value, None)
            elif interval_s >= MIN_INTERVAL_S:
                looked[key] = (now, value, (value - before) / interval_s)
            else:
                looked[key] = (at, before, rate)
        self._last = looked
        return {key: rate for key, (_, _, rate) in looked.items() if rate is not None}
