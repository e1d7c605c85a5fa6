"""Full-jitter back-off: how long to wait before the next attempt.

`random() * min(cap, base * 2**n)`: the ceiling doubles with each failure, the draw spreads a fleet's reconnects over it.
"""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Counts consecutive failures. The source of chance is the caller's, so that a seed replays it."""

    def __init__(self, base_s: float, cap_s: float, draw: Callable[[], float], *, num_free: int = 0) -> None:
        """`draw` returns values in [0, 1). The first `num_free` failures in a row cost no wait."""
        self._base_s = base_s
        self._cap_s = cap_s
        self._draw = draw
        self._num_free = num_free
        self.num_failures = 0

    def next_delay_s(self) -> float:
        """Count one more failure and return the seconds to wait before the next attempt."""
        exponent = self.num_failures - self._num_free
        self.num_failures += 1
        if exponent < 0:
            return 0.0
        # 2**64 seconds is beyond every cap; the bound keeps the power a small integer for ever.
        return self._draw() * min(self._cap_s, self._base_s * float(1 << min(exponent, 64)))

    def reset(self) -> None:
        """The last attempt succeeded."""
        self.num_failures = 0
