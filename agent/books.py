"""The engine's books over the agent's life: an engine that dies takes its gauges with it, its counters stay counted."""

from __future__ import annotations

from shoal.runtime import wire

_COUNTERS = ("prompt_tokens", "generation_tokens", "preemptions", "prefix_cache_queries", "prefix_cache_hits")
_GAUGES = (
    "running",
    "waiting",
    "kv_blocks_used",
    "kv_blocks_cached",
    "kv_blocks_free",
    "state_slots_used",
    "state_slots_cached",
    "state_slots_free",
)


class Books:
    """The last stats of the running engine on top of the sums of those that ended."""

    def __init__(self) -> None:
        self._ended: wire.Stats | None = None
        self._now: wire.Stats | None = None

    def update(self, stats: wire.Stats) -> bool:
        """Take the newest stats. True when the gauges moved, so that a controller should hear of it soon."""
        before, self._now = self._now, stats
        return before is None or any(getattr(before, name) != getattr(stats, name) for name in _GAUGES)

    def engine_lost(self) -> None:
        """The engine is gone: nothing runs or waits, no block or slot exists."""
        total = self.total()
        if total is not None:
            for name in _GAUGES:
                setattr(total, name, 0)
        self._ended, self._now = total, None

    def total(self) -> wire.Stats | None:
        """A new struct with what is known, None before the first stats."""
        if self._now is None or self._ended is None:
            one = self._now or self._ended
            return None if one is None else _sum(one, None)
        return _sum(self._now, self._ended)


def _sum(now: wire.Stats, ended: wire.Stats | None) -> wire.Stats:
    def counter(name: str) -> int:
        return int(getattr(now, name)) + (0 if ended is None else int(getattr(ended, name)))

    return wire.Stats(
        **{name: getattr(now, name) for name in _GAUGES},
        **{name: counter(name) for name in _COUNTERS},
        step_s=_add(now.step_s, None if ended is None else ended.step_s),
        host_s=_add(now.host_s, None if ended is None else ended.host_s),
        inter_token_s=_add(now.inter_token_s, None if ended is None else ended.inter_token_s),
    )


def _add(one: wire.Histogram, other: wire.Histogram | None) -> wire.Histogram:
    if other is None:
        return wire.Histogram(counts=list(one.counts), total=one.total)
    return wire.Histogram(
        counts=[a + b for a, b in zip(one.counts, other.counts, strict=True)], total=one.total + other.total
    )
