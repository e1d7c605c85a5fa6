"""What the engine counts: cumulative counters and histograms of fixed buckets. Pure.

The state of queue, blocks and slots is not counted here but read from where it is true when a `Stats` frame is due.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, field

from .scheduler import Scheduler
from .wire import HISTOGRAM_STEP_S, HISTOGRAM_TOKEN_S, Histogram, Stats


class HistogramCounter:
    """Counts values by bucket. A value equal to a bound belongs to the bucket that the bound closes, as in Prometheus."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = array("d", bounds)  # side by side in memory, where a tuple has an object each
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def snapshot(self) -> Histogram:
        return Histogram(counts=list(self._counts), total=self._total)


@dataclass(slots=True)
class EngineCounters:
    """Since the engine's start. Tokens count when they are computed the first time: a pre-emption adds none."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    step_s: HistogramCounter = field(default_factory=lambda: HistogramCounter(HISTOGRAM_STEP_S))
    host_s: HistogramCounter = field(default_factory=lambda: HistogramCounter(HISTOGRAM_STEP_S))
    """A step without the model's forward pass: scheduling, sampling, parsing."""
    inter_token_s: HistogramCounter = field(default_factory=lambda: HistogramCounter(HISTOGRAM_TOKEN_S))


def stats_frame(counters: EngineCounters, scheduler: Scheduler) -> Stats:
    """The books at this moment. No prefix is kept after its sequence, so nothing is `cached`."""
    blocks = scheduler.blocks
    return Stats(
        running=scheduler.num_running,
        waiting=scheduler.num_waiting,
        kv_blocks_used=blocks.num_used_blocks,
        kv_blocks_cached=0,
        kv_blocks_free=blocks.num_free_blocks,
        state_slots_used=blocks.num_used_slots,
        state_slots_cached=0,
        state_slots_free=blocks.num_free_slots,
        prompt_tokens=counters.prompt_tokens,
        generation_tokens=counters.generation_tokens,
        preemptions=scheduler.num_preemptions,
        prefix_cache_queries=0,
        prefix_cache_hits=0,
        step_s=counters.step_s.snapshot(),
        host_s=counters.host_s.snapshot(),
        inter_token_s=counters.inter_token_s.snapshot(),
    )
