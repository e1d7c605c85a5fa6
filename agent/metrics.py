"""The node's own metrics page, in Prometheus' text or OpenMetrics, whichever the scraper asks for.

Names, units and labels are those of the controller's page, without the node label: the scrape target is the node.
Only what is known appears; a value that has no source has no sample.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from shoal.runtime import wire

from .node import Node


class NodeMetrics:
    """Renders one node. Nothing is stored here: each page is made from the node's state of that moment."""

    def __init__(self, node: Node, version: str) -> None:
        self._node = node
        self._version = version
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, for the value of an Accept header."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def describe(self) -> list[Metric]:
        """Nothing: the registry holds only this collector, so that names cannot clash."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every family that has a sample now."""
        node = self._node
        build = {"version": self._version, "python": platform.python_version(), "component": "agent"}
        if (ready := node.ready) is not None:
            build |= {"model": ready.model, "format": ready.format, "backend": ready.backend, "isa": ready.isa}
        yield InfoMetricFamily("shoal_build", "What is running here.", value=build)
        yield CounterMetricFamily(
            "shoal_engine_restarts", "Engines that died and were started again.", value=node.num_engine_restarts
        )
        planned = GaugeMetricFamily("shoal_memory_planned_bytes", "Planned memory by pool.", labels=["pool"])
        for pool, size in sorted(node.planned_bytes.items()):
            planned.add_metric([pool], size)
        yield planned
        yield from _resident_and_power(node)
        stats = node.books.total()
        if stats is not None:
            yield from _books(stats)


def _resident_and_power(node: Node) -> Iterator[Metric]:
    sample = node.sample
    if sample is None:
        return
    yield GaugeMetricFamily(
        "shoal_memory_resident_bytes",
        "Memory resident: the node's agent and its engine.",
        value=sample.agent_resident_bytes + (sample.engine_resident_bytes or 0),
    )
    if sample.cpu_load_ratio is not None:
        yield GaugeMetricFamily("shoal_cpu_load_ratio", "Busy share of all processors.", value=sample.cpu_load_ratio)
    if sample.battery_ratio is not None:
        yield GaugeMetricFamily("shoal_battery_ratio", "Charge of the battery.", value=sample.battery_ratio)
    if sample.power:
        power = GaugeMetricFamily("shoal_power_watts", "Power by domain.", labels=["domain", "provenance"])
        for reading in sample.power:
            power.add_metric([reading.domain, reading.provenance], reading.watts)
        yield power


def _books(stats: wire.Stats) -> Iterator[Metric]:
    yield GaugeMetricFamily("shoal_requests_running", "Sequences being prefilled or decoded.", value=stats.running)
    yield GaugeMetricFamily("shoal_requests_waiting", "Sequences that wait for memory or a slot.", value=stats.waiting)
    blocks = GaugeMetricFamily("shoal_kv_blocks", "Blocks of the attention cache by state.", labels=["state"])
    slots = GaugeMetricFamily("shoal_state_slots", "Slots of recurrent state by state.", labels=["state"])
    for state in ("used", "cached", "free"):
        blocks.add_metric([state], getattr(stats, f"kv_blocks_{state}"))
        slots.add_metric([state], getattr(stats, f"state_slots_{state}"))
    yield blocks
    yield slots
    for name, help_text, value in (
        ("prompt_tokens", "Prompt tokens processed.", stats.prompt_tokens),
        ("generation_tokens", "Tokens generated.", stats.generation_tokens),
        ("preemptions", "Sequences that gave their memory back and were computed again.", stats.preemptions),
        ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_cache_queries),
        ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits),
    ):
        yield CounterMetricFamily(f"shoal_{name}", help_text, value=value)
    for name, help_text, histogram, bounds in (
        ("engine_step_seconds", "Duration of an engine step.", stats.step_s, wire.HISTOGRAM_STEP_S),
        ("engine_host_seconds", "Share of a step outside the model.", stats.host_s, wire.HISTOGRAM_STEP_S),
        ("inter_token_latency_seconds", "Time between two tokens.", stats.inter_token_s, wire.HISTOGRAM_TOKEN_S),
    ):
        yield HistogramMetricFamily(
            f"shoal_{name}", help_text, buckets=_cumulative(histogram, bounds), sum_value=histogram.total
        )


def _cumulative(histogram: wire.Histogram, bounds: tuple[float, ...]) -> list[tuple[str, float]]:
    """Buckets as Prometheus wants them: counts up to and including each bound, the last one `+Inf`."""
    edges = [*(str(bound) for bound in bounds), "+Inf"]
    total = 0
    buckets: list[tuple[str, float]] = []
    for edge, count in zip(edges, histogram.counts, strict=True):
        total += count
        buckets.append((edge, float(total)))
    return buckets
